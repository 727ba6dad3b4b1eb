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

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

HEAD_FLOOR = 0.3  # added to every row of lm_head, in means: a token that never occurs still has a logit
EMBEDDING_FLOOR = 1.0  # added to the frequency of every token, in means
FEW = 256  # tokens of its siblings that an expert's own statistics are mixed with

Key = tuple[int, int]  # address and number of rows of a weight


@dataclass
class Statistics:
    """``hessian`` [columns, columns] float32, shared by matrices with the same input; ``sensitivity`` [rows]."""

    hessian: torch.Tensor
    sensitivity: NDArray[np.float64]


@dataclass
class Site:
    """Sums over the tokens that reached one matrix."""

    rows: int
    gradient: torch.Tensor  # sum of g^2 [rows]
    inputs: Inputs | None = None


@dataclass
class Inputs:
    """Sums over the tokens of one input, which several matrices may share."""

    products: torch.Tensor  # sum of x x^T [columns, columns]
    tokens: int = 0


@dataclass
class Sums(TorchFunctionMode):
    """Watches every product of an input with a wanted weight, whatever module does it.

    Fused experts too: the slice of a stacked weight is known by its address.
    """

    wanted: Mapping[Key, str]
    sensitivity: bool
    sites: dict[str, Site] = field(default_factory=dict)
    _last: tuple[torch.Tensor, Inputs] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        found = _operands(func, args, kwargs or {})
        if found is not None:
            inputs, weight, turned = found
            name = self.wanted.get((weight.data_ptr(), weight.shape[1 if turned else 0]))
            if name is not None:
                self._note(name, inputs, output)
        return output

    def _note(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            site = self.sites.get(name)
            if site is None:
                rows = output.shape[-1]
                site = self.sites[name] = Site(rows, torch.zeros(rows, device=output.device))
            same = self._last is not None and self._last[0] is inputs
            if site.inputs is None:
                width = inputs.shape[-1]
                fresh = Inputs(torch.zeros(width, width, device=inputs.device))
                site.inputs = self._last[1] if same and self._last else fresh
            if not (same and self._last and self._last[1] is site.inputs):
                flat = inputs.detach().reshape(-1, inputs.shape[-1]).float()
                site.inputs.products.addmm_(flat.T, flat)
                site.inputs.tokens += len(flat)
            self._last = (inputs, site.inputs)
        if self.sensitivity and output.requires_grad:
            output.register_hook(lambda gradient, site=site: _add_squares(site, gradient))


def _add_squares(site: Site, gradient: torch.Tensor) -> None:
    site.gradient += gradient.detach().reshape(-1, site.rows).float().square().sum(0)


def _operands(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
    """(input, weight, whether the weight is [in, out]) of a product that may be a layer."""
    if func is functional.linear:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], False
    if func is torch.addmm and len(args) == 3:
        return args[1], args[2], True
    if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and args[1].ndim == 2:
        return args[0], args[1], True
    return None


@dataclass
class Outer:
    """Sums for the embedding and the head."""

    frequency: torch.Tensor  # [vocabulary]
    curvature: torch.Tensor  # sum of g g^T at the embedding's output
    doubt: torch.Tensor  # sum of p (1 - p) [vocabulary]
    tokens: int = 0


def collect(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    wanted: Mapping[Key, str],
    *,
    sensitivity: bool = True,
    batch: int = 8,
    seed: int = 0,
) -> tuple[dict[str, Site], Outer]:
    """One pass over ``sequences``, forward and, for ``sensitivity``, backward."""
    sums, outer = Sums(wanted, sensitivity), _outer(model)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    embedding = model.get_input_embeddings()
    model.requires_grad_(False)
    for tokens in _batches(sequences, batch, model.device):
        caught: list[torch.Tensor] = []
        handle = embedding.register_forward_hook(lambda *a, caught=caught: _catch(a[2], caught, sensitivity))
        with sums, torch.set_grad_enabled(sensitivity):
            logits = model(tokens, use_cache=False).logits.float()
        handle.remove()
        _add_outer(outer, tokens, logits)
        if sensitivity:
            logits = logits.reshape(-1, logits.shape[-1])
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            functional.cross_entropy(logits, drawn, reduction="sum").backward()
            gradient = caught[0].grad
            assert gradient is not None
            flat = gradient.reshape(-1, gradient.shape[-1]).float()
            outer.curvature.addmm_(flat.T, flat)
    return sums.sites, outer


def _catch(output: torch.Tensor, caught: list[torch.Tensor], gradient: bool) -> torch.Tensor:
    leaf = output.detach().requires_grad_(gradient)
    caught.append(leaf)
    return leaf


def _outer(model: PreTrainedModel) -> Outer:
    vocabulary, width = model.get_input_embeddings().weight.shape
    device = model.device
    return Outer(
        torch.zeros(vocabulary, device=device),
        torch.zeros(width, width, device=device),
        torch.zeros(vocabulary, device=device),
    )


def _add_outer(outer: Outer, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    vocabulary = len(outer.frequency)
    outer.frequency += torch.bincount(tokens.reshape(-1), minlength=vocabulary)[:vocabulary]
    outer.tokens += tokens.numel()
    flat = logits.detach().reshape(-1, logits.shape[-1])
    for part in flat.split(1024):
        p = part.softmax(-1)
        outer.doubt += (p * (1 - p)).sum(0)[:vocabulary]


def _batches(
    sequences: Sequence[Sequence[int]], batch: int, device: torch.device
) -> Iterable[torch.Tensor]:
    """Sequences of equal length together: padding would count as text."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for ids in sequences:
        if len(ids) > 1:
            by_length.setdefault(len(ids), []).append(ids)
    for length in sorted(by_length):
        group = by_length[length]
        for start in range(0, len(group), batch):
            yield torch.tensor(group[start : start + batch], device=device)


def family(name: str) -> str:
    """The name without the numbers of experts: their statistics are mixed where tokens are few."""
    return re.sub(r"\bexperts\.\d+\.", "experts.*.", name)


def of_body(sites: Mapping[str, Site], tokens: int, *, sensitivity: bool) -> dict[str, Statistics]:
    """Means from the sums. An expert that few tokens reached borrows from its siblings."""
    siblings: dict[str, list[Site]] = {}
    for name, site in sites.items():
        siblings.setdefault(family(name), []).append(site)
    found: dict[str, Statistics] = {}
    means: dict[int, torch.Tensor] = {}
    for name, site in sites.items():
        assert site.inputs is not None
        group = siblings[family(name)]
        gradient, products, count = site.gradient, site.inputs.products, site.inputs.tokens
        if len(group) > 1:
            total = sum(other.inputs.tokens for other in group if other.inputs)
            borrowed = FEW / max(1, total)
            gradient = (gradient + borrowed * _mean([other.gradient for other in group])) / (1 + borrowed)
            products = products + borrowed * _sum([o.inputs.products for o in group if o.inputs])
            count = count + FEW
        if id(site.inputs) not in means:
            means[id(site.inputs)] = products / max(1, count)
        hessian = means[id(site.inputs)]
        rows = gradient.double().cpu().numpy() / tokens if sensitivity else np.ones(site.rows)
        found[name] = Statistics(hessian, rows)
    return found


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).sum(0)


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).mean(0)
