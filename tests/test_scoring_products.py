"""oneDNN's products stand in for a model's linear layers for one block only, and where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runners._scoring import products

pytestmark = pytest.mark.backend


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the weights that oneDNN was given."""
    seen: list[torch.Size] = []
    plain = products._product

    def product(states: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        seen.append(weight.shape)
        return plain(states, weight, bias)

    monkeypatch.setattr(products, "_product", product)
    return seen


def test_the_numbers_are_the_same_and_the_layers_are_left_as_they_were(counted: list[torch.Size]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 8, bias=False))
    states = torch.randn(2, 5, 24)
    expected = model(states)
    with products.fast(model):
        assert torch.allclose(model(states), expected, atol=1e-6)
    assert counted == [(40, 24), (8, 40)]
    assert torch.equal(model(states), expected)
    with pytest.raises(KeyError), products.fast(model):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model)


def test_other_kinds_of_layers_keep_their_own_product(counted: list[torch.Size]) -> None:
    class Mine(torch.nn.Linear):
        pass

    hooked = torch.nn.Linear(4, 4)
    hooked.forward = lambda states: states + 1  # type: ignore[method-assign]
    layers = [Mine(4, 4), hooked, torch.nn.Linear(4, 4, dtype=torch.bfloat16), torch.nn.Embedding(4, 4)]
    with products.fast(torch.nn.ModuleList(layers)):
        layers[0](torch.ones(1, 4))
        assert torch.equal(hooked(torch.ones(1, 4)), torch.full((1, 4), 2.0))
        layers[2](torch.ones(1, 4, dtype=torch.bfloat16))
    assert not counted
    assert "forward" in vars(hooked)


def test_no_rows_and_other_types_of_input_go_the_usual_way(counted: list[torch.Size]) -> None:
    layer = torch.nn.Linear(4, 3)
    with products.fast(layer):
        assert layer(torch.ones(0, 4)).shape == (0, 3)
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.ones(1, 4, dtype=torch.float64))
    assert not counted


def test_the_choice_is_made_by_time_and_by_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    seconds = iter([1.0, 1.6, 1.0, 1.4])
    choose = products.onednn_is_faster.__wrapped__
    monkeypatch.setattr(products, "_seconds", lambda call: next(seconds))
    assert choose()
    assert not choose()
    monkeypatch.setattr(products, "_product", lambda states, weight, bias: states @ weight.T + 1)
    assert not choose()
