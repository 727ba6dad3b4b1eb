"""The forward passes of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runners._scoring import cache as kept
from runners._scoring import memory
from runners._scoring.packed import Packed, pack
from runners._scoring.plan import Costs, Step, batch_length
from runners._scoring.queries import Picks, Queries

if TYPE_CHECKING:
    import torch

    from runners._scoring.parts import Parts


class Readout(Protocol):
    """Takes the hidden states [rows, width] of a pass and what is asked of them."""

    def add(self, states: torch.Tensor, picks: Picks) -> None: ...


class Engine:
    """Runs plans on one model, in passes of at most ``tokens`` tokens; fewer once memory ran out."""

    def __init__(
        self, parts: Parts, costs: Costs, tokens: int, device: Any, dtype: Any, *, caches: bool = True
    ) -> None:
        """``caches``: whether a sequence may run in pieces; else only ``separate`` plans can be run."""
        self.parts, self.costs, self.tokens = parts, costs, tokens
        self._device, self._dtype, self._caches = device, dtype, caches
        self.forwarded = 0  # tokens, with padding
        self.farthest = (0, 0)  # places a token stood off its position in its text, and which sequence

    def run(self, queries: Queries, root: Step, readout: Readout) -> None:
        """Every prediction that ``queries`` ask for goes to ``readout`` once."""
        import torch

        self.farthest = (0, 0)
        with torch.no_grad():
            work = [(root, None)]
            while work:
                step, before = work.pop()
                cache = self._chain(queries, step, before, readout) if step.end > step.depth else before
                self._rows(queries, step, cache, readout)
                work += [(child, cache) for child in reversed(step.children)]

    def _chain(self, queries: Queries, step: Step, cache: Any, readout: Readout) -> Any:
        """The cache with the chain of ``step`` added; it runs in as many pieces as memory wants."""
        cache = kept.empty() if cache is None else kept.repeated(cache, 1)
        tokens, start = queries.trie.tokens[step.first], step.depth
        while start < step.end:
            piece = tokens[start : min(step.end, start + self.tokens)]
            ids = self._tensor([piece])
            positions = self._tensor([range(start, start + len(piece))])
            states = self._tried(len(piece), input_ids=ids, position_ids=positions, past_key_values=cache)
            if states is None:
                continue
            picks = Picks([], [], [])
            for place in range(step.first, step.last):
                queries.add(picks, place, range(len(piece)), start)
            readout.add(states[0], picks)
            start += len(piece)
        return cache

    def _rows(self, queries: Queries, step: Step, cache: Any, readout: Readout) -> None:
        """The rows of ``step``, longest first, in batches of nearly one length."""
        packs = [pack(queries.trie, row, step.end) for row in step.rows]
        while packs:
            packs.sort(key=lambda packed: -len(packed.tokens))
            count = batch_length([len(p.tokens) for p in packs], step.end, self.tokens, self.costs)
            batch = packs[:count]
            states = self._batch(batch, cache)
            if states is not None:
                self.farthest = max(self.farthest, *(_shift(queries, packed) for packed in batch))
                readout.add(states.flatten(0, 1), _picks(queries, batch, states.shape[1]))
                packs = packs[count:]
            elif count == 1:
                first, *rest = batch[0].places
                if rest:
                    parts = _halves(batch[0].places)
                    packs = [*(pack(queries.trie, part, step.end) for part in parts), *packs[1:]]
                else:
                    alone = Step(first, first + 1, step.end, len(queries.trie.tokens[first]))
                    self._chain(queries, alone, cache, readout)
                    packs = packs[1:]

    def _batch(self, batch: Sequence[Packed], cache: Any) -> torch.Tensor | None:
        """States [rows, longest, width]. Rows that neither branch nor stand behind a chain need no mask."""
        length = max(len(packed.tokens) for packed in batch)
        inputs = {"input_ids": self._tensor([_padded(p.tokens, length) for p in batch])}
        if cache is not None or any(packed.branches for packed in batch):
            inputs["position_ids"] = self._tensor([_padded(p.positions, length) for p in batch])
            inputs["attention_mask"] = self._mask(batch, length)
        if cache is not None:
            inputs["past_key_values"] = kept.repeated(cache, len(batch))
        single = len(batch) == 1 and len(batch[0].places) == 1
        return self._tried(length * len(batch), last=single and not self._caches, **inputs)

    def _mask(self, batch: Sequence[Packed], length: int) -> torch.Tensor:
        """[rows, 1, length, depth + length]: 0 where a token (third) sees another (fourth), else very low.

        Padding sees itself, so that no row of the softmax is empty.
        """
        import torch

        own = torch.arange(length, device=self._device)
        ends = self._tensor([p.ends + list(range(len(p.ends) + 1, length + 1)) for p in batch])
        hidden = (own > own[:, None]) | (own[:, None] >= ends[:, None, :])
        depth = batch[0].depth
        mask = torch.zeros(len(batch), 1, length, depth + length, dtype=self._dtype, device=self._device)
        mask[:, 0, :, depth:].masked_fill_(hidden, torch.finfo(self._dtype).min)
        return mask

    def _tried(self, tokens: int, *, last: bool = False, **inputs: Any) -> torch.Tensor | None:
        """The states, or ``None`` where memory ran out: from then on passes are half as long.

        ``last``: nothing smaller can be tried.
        """
        inputs["use_cache"] = "past_key_values" in inputs
        try:
            states = self.parts.states(**inputs)
        except (MemoryError, RuntimeError) as error:
            if last or tokens <= memory.LEAST_TOKENS or not memory.is_out_of_memory(error):
                raise
        else:
            self.forwarded += tokens
            return states
        memory.release(self._device)
        self.tokens = max(memory.LEAST_TOKENS, min(self.tokens, tokens) // 2)
        return None

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        return torch.tensor([list(row) for row in rows], device=self._device)


def _shift(queries: Queries, packed: Packed) -> tuple[int, int]:
    last = packed.places[-1]
    return packed.depth + len(packed.tokens) - len(queries.trie.tokens[last]), last


def _picks(queries: Queries, batch: Sequence[Packed], length: int) -> Picks:
    picks = Picks([], [], [])
    for number, packed in enumerate(batch):
        for place, path in zip(packed.places, packed.paths, strict=True):
            queries.add(picks, place, [number * length + row for row in path], packed.depth)
    return picks


def _padded(row: list[int], length: int) -> list[int]:
    return row + [0] * (length - len(row))


def _halves(places: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    return places[: len(places) // 2], places[len(places) // 2 :]
