"""Matrices quantized block after block, each made up for what those before it changed in its inputs.

Where x is the input of a matrix in the original model and y that in the model quantized so far, the matrix
that keeps its outputs best is ``W E[x y^T] E[y y^T]^-1`` (as in GPTAQ, Li et al. 2025, arXiv:2504.02692). It
is moved a part of the way only: what is measured on a finite text is noisy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rdq.chain import blocks
from rdq.errors import RdqError
from rdq.matrices import Matrix
from rdq.statistics import batches

MIX = 0.5  # of H from the quantized model's inputs; the rest is the original's
DAMPING = 0.01

Hidden = torch.Tensor


@dataclass
class Moments:
    """Means over the tokens: ``cross`` E[x y^T], ``own`` E[y y^T], both [columns, columns]."""

    cross: torch.Tensor
    own: torch.Tensor
    tokens: int = 0

    def corrected(self, weight: torch.Tensor, part: float) -> torch.Tensor:
        """``weight`` [rows, columns] moved ``part`` of the way."""
        own = self.own.double() / self.tokens
        away = weight.double() @ (self.cross.double() / self.tokens - own)
        own.diagonal().add_(DAMPING * own.diagonal().mean())
        moved: torch.Tensor = torch.linalg.solve(own, away.T).T
        return weight.double() + part * moved

    def mixed(self, hessian: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = (1 - MIX) * hessian + MIX * (self.own / self.tokens).to(hessian)
        return mixed


@dataclass
class Streams:
    """The original model, the one quantized so far, and the hidden states of both before the next block."""

    original: PreTrainedModel
    sequences: Sequence[Sequence[int]]
    changed: PreTrainedModel = field(init=False)
    _hidden: list[tuple[Hidden, Hidden]] = field(default_factory=list)
    _settings: list[list[Mapping[str, Any]]] = field(default_factory=list)  # of each batch for each block

    def __post_init__(self) -> None:
        self.changed = copy.deepcopy(self.original)
        self._batches = list(batches(self.sequences, 8, self.original.device))

    def put(self, matrix: Matrix, weight: torch.Tensor) -> None:
        """Give the changed model a weight as [rows, columns]."""
        own = self.changed.get_submodule(matrix.name.removesuffix(".weight")).weight
        assert isinstance(own, torch.Tensor)
        own.data.copy_(weight.T if matrix.turned else weight)

    @torch.no_grad()
    def begin(self) -> None:
        """Once the embeddings are quantized: the hidden states before the first block."""
        for tokens in self._batches:
            settings: list[Mapping[str, Any]] = []
            first: list[Hidden] = []
            for model in (self.original, self.changed):
                seen: list[tuple[Hidden, Mapping[str, Any]]] = []
                handles = [
                    block.register_forward_pre_hook(_catcher(seen), with_kwargs=True)
                    for block in blocks(model)
                ]
                model(tokens, use_cache=False)
                for handle in handles:
                    handle.remove()
                first.append(seen[0][0])
                settings = [one for _, one in seen]
            self._hidden.append((first[0], first[1]))
            self._settings.append(settings)

    @torch.no_grad()
    def moments(self, number: int, names: Mapping[str, str]) -> dict[str, Moments]:
        """Of each matrix of block ``number``. ``names``: module within the block -> matrix."""
        found: dict[str, Moments] = {}
        pair = [blocks(model)[number] for model in (self.original, self.changed)]
        for (before, after), settings in zip(self._hidden, self._settings, strict=True):
            inputs: list[dict[str, torch.Tensor]] = [{}, {}]
            for block, hidden, seen in zip(pair, (before, after), inputs, strict=True):
                handles = [
                    block.get_submodule(path).register_forward_pre_hook(_keeper(seen, name))
                    for path, name in names.items()
                ]
                block(hidden, **settings[number])
                for handle in handles:
                    handle.remove()
            _add(found, *inputs)
        return found

    @torch.no_grad()
    def advance(self, number: int) -> None:
        """Run both through block ``number``, whose matrices the changed model has by now."""
        for i, ((before, after), settings) in enumerate(zip(self._hidden, self._settings, strict=True)):
            original, changed = blocks(self.original)[number], blocks(self.changed)[number]
            self._hidden[i] = (
                _first(original(before, **settings[number])),
                _first(changed(after, **settings[number])),
            )

    @torch.no_grad()
    def at_head(self, name: str) -> dict[str, Moments]:
        """Of lm_head, once all blocks are quantized."""
        found: dict[str, Moments] = {}
        for tokens in self._batches:
            inputs: list[dict[str, torch.Tensor]] = [{}, {}]
            for model, seen in zip((self.original, self.changed), inputs, strict=True):
                handle = model.get_output_embeddings().register_forward_pre_hook(_keeper(seen, name))
                model(tokens, use_cache=False)
                handle.remove()
            _add(found, *inputs)
        return found


def _catcher(seen: list[tuple[Hidden, Mapping[str, Any]]]) -> Callable[..., None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        rest = dict(settings)
        hidden = arguments[0] if arguments else rest.pop("hidden_states")
        seen.append((hidden, rest))

    return hook


def _keeper(seen: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[name] = arguments[0].reshape(-1, arguments[0].shape[-1]).float()

    return hook


def _add(
    found: dict[str, Moments], before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> None:
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, y in after.items():
        x = before[name]
        if y.data_ptr() not in done:  # matrices with the same input share the products
            done[y.data_ptr()] = (x.T @ y, y.T @ y)
        cross, own = done[y.data_ptr()]
        moments = found.setdefault(name, Moments(torch.zeros_like(cross), torch.zeros_like(own)))
        moments.cross += cross
        moments.own += own
        moments.tokens += len(y)


def _first(output: Any) -> Hidden:
    hidden: Hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def in_order(
    model: PreTrainedModel, matrices: Sequence[Matrix]
) -> Iterator[tuple[int | None, dict[str, Matrix]]]:
    """In the order of the model: (None, embeddings), (number of a block, module in it -> matrix), head.

    Raises RdqError for a matrix that is a part of a stacked parameter.
    """
    names = {id(module): name for name, module in model.named_modules()}
    prefixes = [names[id(block)] + "." for block in blocks(model)]
    of_block: dict[int, dict[str, Matrix]] = {number: {} for number in range(len(prefixes))}
    before: dict[str, Matrix] = {}
    after: dict[str, Matrix] = {}
    modules = dict(model.named_modules())
    for matrix in matrices:
        path = matrix.name.removesuffix(".weight")
        if path not in modules:
            raise RdqError(f"drift: {matrix.name} is a part of stacked experts; leave drift out")
        number = next((n for n, prefix in enumerate(prefixes) if path.startswith(prefix)), None)
        if number is not None:
            of_block[number][path.removeprefix(prefixes[number])] = matrix
        elif matrix.kind == "head":
            after[path] = matrix
        else:
            before[path] = matrix
    yield None, before
    yield from of_block.items()
    yield None, after
