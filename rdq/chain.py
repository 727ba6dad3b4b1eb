"""A model of any architecture taken apart at its decoder blocks: what comes before, the blocks, the rest.

Nothing of a model is written again here. Its own ``forward`` runs, with that of the blocks replaced for the
moment: so it is seen with what else than hidden states each block is called (masks, position embeddings),
and what comes after the blocks can be given any hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rdq.errors import RdqError

Hidden = torch.Tensor
PROBED = 4  # tokens


@dataclass(frozen=True)
class Call:
    """What a block is called with beside its hidden states. ``named``: those too were passed by name."""

    arguments: tuple[Any, ...]
    settings: Mapping[str, Any]
    named: bool


class _Enough(Exception):
    """The last block was reached."""


class Chain:
    """A causal language model whose blocks each take what the one before gives."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Runs a few tokens through one block of each kind.

        Raises RdqError where the model does not fit: no list of blocks, blocks that are not called one after
        the other, or that are given something else that depends on the weights before.
        """
        self.model, self.blocks = model, list(blocks(model))
        inside = {id(p) for block in self.blocks for p in block.parameters()}
        self.outer = [p for p in model.parameters() if id(p) not in inside]
        self.embedding = model.get_input_embeddings()
        self._rests: dict[type[nn.Module], tuple[Any, ...] | None] = {}
        self._probe()

    def front(self, tokens: torch.Tensor) -> tuple[Hidden, list[Call]]:
        """Hidden states [batch, tokens, width] before the first block, and how each block is called.

        tokens: [batch, tokens].
        """
        first: list[Hidden] = []
        calls: list[Call] = []

        def stub(number: int, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
            hidden, call = _split(arguments, settings)
            first.append(hidden)
            calls.append(call)
            if len(calls) == len(self.blocks):
                raise _Enough
            return self._like(number, hidden)

        with self._replaced(stub), suppress(_Enough):
            self.model(tokens, use_cache=False)
        return first[0], calls

    def run(self, number: int, hidden: Hidden, call: Call) -> Hidden:
        """One block."""
        if call.named:
            return _hidden(self.blocks[number](*call.arguments, hidden_states=hidden, **call.settings))
        return _hidden(self.blocks[number](hidden, *call.arguments, **call.settings))

    def back(self, hidden: Hidden, begins: Callable[[], object] = lambda: None) -> torch.Tensor:
        """Logits float32 [tokens, vocabulary] for hidden states [tokens, width] after the last block.

        ``begins`` is called where the last block would end. What comes after the blocks looks at each token
        by itself, so these may be any tokens, in any order.
        """

        def stub(number: int, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
            if number + 1 < len(self.blocks):
                return self._like(number, _split(arguments, settings)[0])
            begins()
            return self._like(number, hidden[None])

        any_tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with self._replaced(stub):
            logits: torch.Tensor = self.model(any_tokens, use_cache=False).logits
        return logits[0].float()

    def _like(self, number: int, hidden: Hidden) -> Any:
        """Hidden states in the form in which this block returns them."""
        rest = self._rests.get(type(self.blocks[number]))
        return hidden if rest is None else (hidden, *rest)

    @contextmanager
    def _replaced(self, stub: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
        """Within it the blocks' ``forward`` is ``stub(number, arguments, settings)``."""

        def replacement(number: int) -> Callable[..., Any]:
            return lambda *arguments, **settings: stub(number, arguments, settings)

        for number, block in enumerate(self.blocks):
            block.__dict__["forward"] = replacement(number)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.__dict__["forward"]

    def _probe(self) -> None:
        """What each kind of block returns; RdqError where the model is no chain."""
        given: list[Hidden] = []

        def stub(number: int, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
            hidden, call = _split(arguments, settings)
            if number != len(given) or (given and hidden is not given[-1]):
                raise RdqError(
                    f"offload: block {number} is not called with what the one before gave; {_ELSE}"
                )
            if any(t.requires_grad for t in _tensors((call.arguments, call.settings))):
                raise RdqError(f"offload: block {number} is given more that depends on weights; {_ELSE}")
            kind = type(self.blocks[number])
            if kind not in self._rests:
                found = kind.forward(self.blocks[number], *arguments, **settings)
                self._rests[kind] = tuple(found[1:]) if isinstance(found, tuple) else None
            given.append(hidden.detach().clone().requires_grad_())
            return self._like(number, given[-1])

        hooks = [
            module.register_forward_hook(lambda *seen: seen[-1].requires_grad_())
            for module in self.model.modules()
            if isinstance(module, nn.Embedding)
        ]
        self.model.requires_grad_(False)
        try:
            with self._replaced(stub), torch.enable_grad():
                tokens = torch.arange(PROBED, device=next(self.model.buffers(), torch.empty(0)).device)
                self.model(tokens[None], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        if len(given) != len(self.blocks):
            raise RdqError(f"offload: {len(given)} of {len(self.blocks)} blocks are called; {_ELSE}")


_ELSE = "this model has to be in memory, leave offload out"


def _split(arguments: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Hidden, Call]:
    if arguments:
        return arguments[0], Call(arguments[1:], settings, named=False)
    if "hidden_states" not in settings:
        raise RdqError(f"offload: a block is called without hidden states; {_ELSE}")
    rest = dict(settings)
    return rest.pop("hidden_states"), Call((), rest, named=True)


def _tensors(of: Any) -> Iterator[torch.Tensor]:
    if isinstance(of, torch.Tensor):
        yield of
    elif isinstance(of, Mapping):
        yield from _tensors(tuple(of.values()))
    elif isinstance(of, list | tuple):
        for one in of:
            yield from _tensors(one)


def _hidden(output: Any) -> Hidden:
    hidden: Hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of modules that holds the most parameters. Raises RdqError where there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise RdqError("this model has no list of blocks; leave drift and offload out")
    return max(lists, key=lambda one: sum(parameter.numel() for parameter in one.parameters()))
