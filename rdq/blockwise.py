"""The same statistics as ``statistics.collect``, with one block of the model in memory at a time.

Forward, only the hidden states before each block are kept, in files. Backward, each block runs once more from
these (activation checkpointing: Chen et al. 2016, arXiv:1604.06174), and what it tells is handed over as soon
as it is done. All is computed in float32, on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from rdq.chain import Call, Chain
from rdq.mapped import Held, Maps
from rdq.shelf import Pages
from rdq.statistics import Sums, batches, draw, rows_of

Parameters = Sequence[nn.Parameter]
CPU = torch.device("cpu")


@dataclass
class Walk:
    """A model run block after block over some batches of tokens. ``scratch``: a folder for hidden states."""

    chain: Chain
    maps: Maps
    scratch: Path

    def sums(
        self,
        sequences: Sequence[Sequence[int]],
        wanted: Collection[int],
        *,
        sensitivity: bool,
        batch: int = 8,
        seed: int = 0,
    ) -> Iterator[tuple[Parameters, Sums]]:
        """For each block, and at last for what is outside of them: its parameters, and the sums of its sites.

        The arguments are those of ``statistics.collect``; all sums together are what that gives.
        """
        groups = list(batches(sequences, batch, CPU))
        count = sum(tokens.numel() for tokens in groups)
        last = len(self.chain.blocks)
        pages = Pages(self.scratch)
        calls = self._start(groups, pages)
        for number in range(last):
            if sensitivity:
                with Held(self._inside(number), self.maps):
                    self._forward(number, pages, calls, None, keep=True)
                continue
            sums = Sums((), False)
            with self._watched(number, sums, wanted):
                self._forward(number, pages, calls, sums, keep=False)
            sums.tokens = count
            yield self._inside(number), sums
        outer = Sums((), sensitivity)
        self._predict(groups, pages, outer, wanted, seed)
        for number in reversed(range(last) if sensitivity else ()):
            sums = Sums((), True)
            with self._watched(number, sums, wanted):
                self._backward(number, pages, calls, sums)
            sums.tokens = count
            yield self._inside(number), sums
        self._finish(groups, pages, outer, wanted)
        yield self.chain.outer, outer

    def logits(self, groups: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """float32 [at most ROWS, vocabulary], part after part, for batches [batch, tokens]."""
        pages = Pages(self.scratch)
        calls = self._start(groups, pages)
        for number in range(len(self.chain.blocks)):
            with Held(self._inside(number), self.maps):
                self._forward(number, pages, calls, None, keep=False)
        with self._behind():
            for n, tokens in enumerate(groups):
                hidden = pages.get(len(self.chain.blocks), n)
                pages.drop(len(self.chain.blocks), n)
                for part in torch.split(hidden.reshape(-1, hidden.shape[-1]), rows_of(tokens)):
                    with torch.no_grad():
                        logits = self.chain.back(part)
                    yield logits

    def _start(self, groups: Sequence[torch.Tensor], pages: Pages) -> list[list[Call]]:
        """Hidden states before the first block; how each batch calls each block."""
        calls = []
        with Held(self._before(), self.maps), torch.no_grad():
            for n, tokens in enumerate(groups):
                hidden, call = self.chain.front(tokens)
                pages.put(0, n, hidden)
                calls.append(call)
        return calls

    def _forward(
        self, number: int, pages: Pages, calls: list[list[Call]], sums: Sums | None, *, keep: bool
    ) -> None:
        for n, call in enumerate(calls):
            with torch.no_grad(), sums or nullcontext():
                hidden = self.chain.run(number, pages.get(number, n), call[number])
            if sums:
                sums.forget()
            pages.put(number + 1, n, hidden)
            if not keep:
                pages.drop(number, n)

    def _backward(self, number: int, pages: Pages, calls: list[list[Call]], sums: Sums) -> None:
        """In the place of the gradients after the block, and of its inputs, those before it."""
        for n, call in enumerate(calls):
            hidden = pages.get(number, n).requires_grad_()
            with torch.enable_grad(), sums:
                after = self.chain.run(number, hidden, call[number])
            sums.forget()
            after.backward(pages.get(number + 1, n))  # type: ignore[no-untyped-call]
            pages.drop(number + 1, n)
            assert hidden.grad is not None
            pages.put(number, n, hidden.grad)

    def _predict(
        self,
        groups: Sequence[torch.Tensor],
        pages: Pages,
        sums: Sums,
        wanted: Collection[int],
        seed: int,
    ) -> None:
        """What is behind the blocks; for sensitivity, gradients in the place of the last hidden states."""
        generator = torch.Generator().manual_seed(seed)
        last = len(self.chain.blocks)

        def begins() -> None:
            sums.watching = True

        with self._behind() as held, _translated(held, sums, wanted):
            for n, tokens in enumerate(groups):
                hidden = pages.get(last, n)
                gradients = []
                for part in torch.split(hidden.reshape(-1, hidden.shape[-1]), rows_of(tokens)):
                    part = part.detach().requires_grad_(sums.sensitivity)
                    sums.watching = False
                    with torch.set_grad_enabled(sums.sensitivity), sums:
                        logits = self.chain.back(part, begins)
                    sums.predicted(logits.detach())
                    if sums.sensitivity:
                        drawn = draw(logits.detach(), generator)
                        functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
                        gradients.append(part.grad)
                if sums.sensitivity:
                    pages.put(
                        last, n, torch.cat([g for g in gradients if g is not None]).reshape(hidden.shape)
                    )
                else:
                    pages.drop(last, n)

    def _finish(
        self, groups: Sequence[torch.Tensor], pages: Pages, sums: Sums, wanted: Collection[int]
    ) -> None:
        """What is before the blocks, once more, now watched."""
        with Held(self._before(), self.maps) as held, _translated(held, sums, wanted):
            for n, tokens in enumerate(groups):
                with torch.set_grad_enabled(sums.sensitivity), sums:
                    hidden, _ = self.chain.front(tokens)
                sums.forget()
                if sums.sensitivity:
                    hidden.backward(pages.get(0, n))  # type: ignore[no-untyped-call]
                    pages.drop(0, n)

    def _inside(self, number: int) -> Parameters:
        return list(self.chain.blocks[number].parameters())

    @contextmanager
    def _watched(self, number: int, sums: Sums, wanted: Collection[int]) -> Iterator[None]:
        with Held(self._inside(number), self.maps) as held, _translated(held, sums, wanted):
            yield

    def _before(self) -> Parameters:
        """What is needed before the blocks: all but an lm_head of its own."""
        head = self.chain.model.get_output_embeddings()
        embedding = self.chain.embedding.weight
        return [p for p in self.chain.outer if head is None or p is not head.weight or p is embedding]

    @contextmanager
    def _behind(self) -> Iterator[Held]:
        """Holds what is needed behind the blocks: all but an embedding of its own."""
        head = self.chain.model.get_output_embeddings()
        embedding = self.chain.embedding.weight
        tied = head is not None and head.weight is embedding
        parameters = [p for p in self.chain.outer if tied or p is not embedding]
        # the embedding of tokens that mean nothing; only its type matters
        hook = self.chain.embedding.register_forward_hook(lambda *seen: seen[-1].float())
        try:
            with Held(parameters, self.maps) as held:
                yield held
        finally:
            hook.remove()


@contextmanager
def _translated(held: Held, sums: Sums, wanted: Collection[int]) -> Iterator[None]:
    """Within it ``sums`` watches ``wanted`` where they are held; after it all is by their own addresses."""
    back = {there: address for address in wanted if (there := held.there(address)) is not None}
    sums.wanted = back.keys()
    yield
    sums.sites = {(back.get(key[0], key[0]), key[1]): site for key, site in sums.sites.items()}
    sums.looked = {back.get(address, address): seen for address, seen in sums.looked.items()}
