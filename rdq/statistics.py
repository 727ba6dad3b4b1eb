"""What calibration text says of a model: how inputs correlate, and how much each output matters.

For a matrix with outputs ``y = W x`` the loss that an error ``dW`` does to the model's predictions, the
Kullback-Leibler divergence in nats per token, is to second order (Kronecker-factored Fisher information,
Martens and Grosse 2015)

    KL = 1/2 * sum over rows i of sensitivity[i] * dW[i] H dW[i]^T,

with ``H = E[x x^T]`` over the tokens and ``sensitivity[i] = E[g_i^2]``, ``g`` the gradient of the negative
log-likelihood with respect to ``y`` when the next token is drawn from the model's own predictions. For the
input embedding ``H = E[g g^T]`` at its output, and a row matters as often as its token occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from rdq.stacked import PRODUCTS, apart, stacked_operands

Key = tuple[int, int]  # address and number of outputs of a weight
ROWS = 128  # tokens whose predictions are looked at together


@dataclass
class Statistics:
    """``hessian`` [columns, columns] float32, which several matrices may share; ``sensitivity`` [rows].

    Of stacked matrices: [stack, columns, columns] and [stack * rows].
    """

    hessian: torch.Tensor
    sensitivity: NDArray[np.float64]


@dataclass
class Inputs:
    """Sums over the tokens of one input, which several matrices may share."""

    products: torch.Tensor  # sum of x x^T [columns, columns]
    tokens: int = 0
    _averaged: bool = False

    def mean(self) -> torch.Tensor:
        """E[x x^T], in the memory of the sum: all that share it get one tensor."""
        if not self._averaged:
            self.products /= max(1, self.tokens)
            self._averaged = True
        return self.products

    def total(self) -> torch.Tensor:
        return self.products * max(1, self.tokens) if self._averaged else self.products


@dataclass
class Site:
    """Sums over the tokens that reached one weight."""

    inputs: Inputs
    squares: torch.Tensor  # sum of g^2 [rows]


@dataclass
class Looked:
    """Sums over the tokens that were looked up in an embedding."""

    counts: torch.Tensor  # [vocabulary]
    products: torch.Tensor  # sum of g g^T at its output [width, width]


@dataclass
class Sums(TorchFunctionMode):
    """Watches every product of an input with a wanted weight, and every look-up, whatever module does it.

    A weight is known by its address, and so are the parts of a stacked one (fused experts).
    """

    wanted: Collection[int]
    sensitivity: bool
    sites: dict[Key, Site] = field(default_factory=dict)
    looked: dict[int, Looked] = field(default_factory=dict)
    doubt: torch.Tensor | None = None  # sum of p (1 - p) [vocabulary]
    tokens: int = 0
    watching: bool = True
    _last: tuple[torch.Tensor, Inputs] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        stacks = stacked_operands(func, args) if self.watching else None
        if stacks is not None and stacks[1].data_ptr() in self.wanted:
            return apart(lambda x, w: self.__torch_function__(torch.matmul, (), (x, w)), *stacks)
        output = func(*args, **(kwargs or {}))
        if not self.watching:
            return output
        if func is functional.embedding:
            return self._look(args[0], args[1], output)
        found = _operands(func, args, kwargs or {})
        if found is not None and found[1].data_ptr() in self.wanted:
            inputs, weight, turned = found
            self._note((weight.data_ptr(), int(weight.shape[1 if turned else 0])), inputs, output)
        return output

    def forget(self) -> None:
        """To be called after each forward pass: what was the last input."""
        self._last = None

    def predicted(self, logits: torch.Tensor) -> None:
        """Adds what these predictions [tokens, vocabulary] tell; ends what belongs to their forward pass."""
        self.forget()
        self.tokens += len(logits)
        p = logits.softmax(-1)
        doubt = (p * (1 - p)).sum(0)
        self.doubt = doubt if self.doubt is None else self.doubt + doubt

    def _note(self, key: Key, inputs: torch.Tensor, output: torch.Tensor) -> None:
        same = self._last if self._last is not None and self._last[0] is inputs else None
        site = self.sites.get(key)
        if site is None:
            width, device = inputs.shape[-1], output.device
            shared = same[1] if same else Inputs(torch.zeros(width, width, device=device))
            site = self.sites[key] = Site(shared, torch.zeros(key[1], device=device))
        if not (same and same[1] is site.inputs):
            flat = inputs.detach().reshape(-1, inputs.shape[-1]).float()
            site.inputs.products.addmm_(flat.T, flat)
            site.inputs.tokens += len(flat)
        self._last = (inputs, site.inputs)
        if self.sensitivity and output.requires_grad:
            output.register_hook(lambda gradient, site=site: _add_squares(site, gradient))  # type: ignore[no-untyped-call]

    def _look(self, tokens: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        size, width = weight.shape
        seen = self.looked.get(weight.data_ptr())
        if seen is None:
            seen = self.looked[weight.data_ptr()] = Looked(
                torch.zeros(size, device=output.device), torch.zeros(width, width, device=output.device)
            )
        seen.counts += torch.bincount(tokens.reshape(-1), minlength=size)
        if not self.sensitivity:
            return output
        output = output.detach().requires_grad_()
        output.register_hook(lambda gradient, seen=seen: _add_products(seen, gradient))  # type: ignore[no-untyped-call]
        return output


def _add_squares(site: Site, gradient: torch.Tensor) -> None:
    site.squares += gradient.detach().reshape(-1, len(site.squares)).float().square().sum(0)


def _add_products(seen: Looked, gradient: torch.Tensor) -> None:
    flat = gradient.detach().reshape(-1, gradient.shape[-1]).float()
    seen.products.addmm_(flat.T, flat)


def _operands(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
    """(input, weight, whether the weight is [in, out]) of a product that may be a layer."""
    if func is functional.linear:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], False
    if func is torch.addmm and len(args) == 3:
        return args[1], args[2], True
    if func in PRODUCTS and args[1].ndim == 2:
        return args[0], args[1], True
    return None


def collect(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    wanted: Collection[int],
    *,
    sensitivity: bool = True,
    batch: int = 8,
    seed: int = 0,
) -> Sums:
    """One pass over ``sequences`` (token ids), forward and, for ``sensitivity``, backward.

    ``wanted``: addresses of the weights, or parts of weights, whose sites are kept.
    """
    sums = Sums(wanted, sensitivity)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    model.requires_grad_(False)
    for tokens in batches(sequences, batch, model.device):
        with sums, torch.set_grad_enabled(sensitivity):
            logits = model(tokens, use_cache=False).logits.float()
        flat = logits.reshape(-1, logits.shape[-1])
        parts = torch.split(flat.detach(), rows_of(tokens))
        for part in parts:
            sums.predicted(part)
        if sensitivity:
            drawn = torch.cat([draw(part, generator) for part in parts])
            functional.cross_entropy(flat, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return sums


def rows_of(tokens: torch.Tensor) -> int:
    """How many tokens of a batch are looked at together: never more than one sequence has."""
    return min(ROWS, tokens.shape[1])


def draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A next token for each row of ``logits`` [tokens, vocabulary], from the model's own predictions."""
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def batches(sequences: Sequence[Sequence[int]], batch: int, device: torch.device) -> Iterable[torch.Tensor]:
    """Sequences of equal length together: padding would count as text."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for ids in sequences:
        if len(ids) > 1:
            by_length.setdefault(len(ids), []).append(ids)
    for length in sorted(by_length):
        group = by_length[length]
        for start in range(0, len(group), batch):
            yield torch.tensor(group[start : start + batch], device=device)
