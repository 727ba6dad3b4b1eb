"""Products of stacks taken apart, and the damping that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rdq.damping import CHOICES, USUAL, chosen, costs
from rdq.matrices import Matrix
from rdq.quantize import Settings
from rdq.stacked import apart, stacked_operands
from rdq.statistics import Statistics, Sums


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("func", [torch.bmm, torch.matmul, torch.Tensor.__matmul__, torch.baddbmm])
def test_a_product_taken_apart_is_the_product(func: Callable[..., Any]) -> None:
    inputs, weights = noise(3, 5, 8), noise(3, 8, 4, seed=1)
    inputs[1, 2:] = 0
    inputs[2] = 0
    arguments = (noise(3, 5, 4, seed=2), inputs, weights)[0 if func is torch.baddbmm else 1 :]
    for one in arguments:
        one.requires_grad_()
    expected = func(*arguments)
    before = torch.autograd.grad(expected.square().sum(), arguments)
    operands = stacked_operands(func, arguments)
    assert operands is not None
    output = apart(torch.matmul, *operands)
    torch.testing.assert_close(output, expected)
    reached = inputs.ne(0).any(-1)
    for one, other in zip(torch.autograd.grad(output.square().sum(), arguments), before, strict=True):
        if one.shape == inputs.shape:
            one, other = one[reached], other[reached]  # what is left out has no gradient
        torch.testing.assert_close(one, other)


def test_what_is_no_product_of_stacks_is_left_alone() -> None:
    assert stacked_operands(torch.matmul, (noise(2, 3, 4), noise(4, 5))) is None
    assert stacked_operands(torch.bmm, (noise(2, 3, 4), noise(2, 4, 5))) is not None
    assert stacked_operands(torch.add, (noise(2, 3, 4), noise(2, 3, 4))) is None


def test_each_weight_of_a_stack_is_watched_on_its_own() -> None:
    """Tokens that were sent to other experts, whose inputs are zeros, count in no sum."""
    inputs, weights = noise(2, 6, 8), noise(2, 8, 4, seed=1)
    inputs[0, 4:] = 0
    inputs[1, :4] = 0
    addresses = [weight.data_ptr() for weight in weights]
    with Sums(addresses, True) as sums:
        output = torch.bmm(inputs.requires_grad_(), weights)
    output.sum().backward()  # type: ignore[no-untyped-call]
    first, second = (sums.sites[address, 4] for address in addresses)
    assert (first.inputs.tokens, second.inputs.tokens) == (4, 2)
    torch.testing.assert_close(first.inputs.products, inputs[0].T @ inputs[0])
    torch.testing.assert_close(second.inputs.products, inputs[1].T @ inputs[1])
    torch.testing.assert_close(first.squares, torch.full((4,), 4.0))
    torch.testing.assert_close(second.squares, torch.full((4,), 2.0))


def samples(count: int, seed: int) -> torch.Tensor:
    """An estimate of one H, that of inputs which 12 directions make up, from so many tokens."""
    inputs = noise(count, 12, seed=seed) @ noise(12, 64, seed=99) + noise(count, 64, seed=seed + 50)
    return inputs.T @ inputs / count


@pytest.mark.parametrize(("tokens", "best"), [(40, 0.1), (20_000, 0.01)])
def test_little_text_needs_more_damping(tokens: int, best: float) -> None:
    weight, usual = noise(96, 64, seed=7), Settings()
    seen, fresh = (Statistics(samples(n, seed), np.ones(96)) for n, seed in ((tokens, 1), (20_000, 2)))
    found = costs(weight, seen, fresh.hessian, 0.3, usual)
    assert found[USUAL] == 0
    assert (found.min() < -0.3) == (tokens == 40)
    matrix = Matrix("one.weight", (96, 64), "body")
    told = {"one.weight": fresh}
    assert chosen([matrix], {"one.weight": seen}, lambda _: weight, lambda _: told, 0.3, usual) == best
    assert chosen([], {}, lambda _: weight, lambda _: {}, 0.3, usual) == CHOICES[USUAL]
