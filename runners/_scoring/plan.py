"""Which beginnings of a trie run once on their own, and which sequences share a packed row.

A *step* runs the tokens that all its sequences share (its *chain*) behind what its parent has run, keeps
their keys and values, and runs its *rows* behind them. A row is a sub-trie written in depth-first order, so
that neighbours share their beginning there too (tree attention, as in SpecInfer, arXiv:2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runners._scoring.trie import Trie


@dataclass(frozen=True)
class Costs:
    """What a plan weighs; the unit is the work of one token that attends to nothing.

    ``row_tokens``: a row is cut before it gets longer. ``call``: one forward pass, whatever is in it.
    ``attention``: one more position that a token attends to. ``copy``: one kept position, for each row.
    ``kept``: the memory of a kept position, in that of a token on its way through the model.
    """

    row_tokens: int = 512
    call: float = 30.0
    attention: float = 1 / 1000
    copy: float = 0.04
    kept: float = 0.2

    def row(self, depth: int, tokens: float) -> float:
        """A row of ``tokens`` behind ``depth`` kept positions."""
        return tokens * (1 + self.attention * (depth + tokens)) + self.copy * depth


@dataclass
class Step:
    """Tokens ``depth`` to ``end`` of sequence ``first`` run once for sequences ``first`` to ``last``."""

    first: int
    last: int
    depth: int
    end: int
    rows: list[list[int]] = field(default_factory=list)
    children: list[Step] = field(default_factory=list)

    def walk(self) -> Iterator[Step]:
        """This step and all below it."""
        steps = [self]
        while steps:
            yield (step := steps.pop())
            steps += step.children


def plan(trie: Trie, costs: Costs) -> Step:
    """The whole trie: a root without a chain, rows, and steps below it."""
    root = Step(0, len(trie), 0, 0)
    loose: list[tuple[Step, int, int]] = []
    branches = [(root, 0, len(trie))] if len(trie) else []
    while branches:
        step, start, stop = branches.pop()
        if _cannot_gain(trie, step.end, start, stop, costs):
            loose.append((step, start, stop))
            continue
        common = trie.common(start, stop)
        if _pays(trie, step.end, common, start, stop, costs):
            step.children.append(Step(start, stop, step.end, common))
            step = step.children[-1]
        branches += [(step, *branch) for branch in trie.branches(start, stop)]
    _fill_rows(trie, loose, costs)
    return root


def separate(trie: Trie) -> Step:
    """A plan that shares nothing: each sequence is a row of its own."""
    return Step(0, len(trie), 0, 0, rows=[[place] for place in range(len(trie))])


def _cannot_gain(trie: Trie, depth: int, start: int, stop: int, costs: Costs) -> bool:
    """Whether not even the longest possible chain in this range would pay for its forward pass."""
    longest = max(map(len, trie.tokens[start:stop])) - depth
    return stop - start < 2 or (stop - start - 1) * longest <= costs.call


def _pays(trie: Trie, depth: int, common: int, start: int, stop: int, costs: Costs) -> bool:
    """Whether the shared tokens cost less in a pass of their own than once in every row."""
    chain, rest = common - depth, trie.size(start, stop, common)
    if not chain or not rest:
        return False
    room = costs.row_tokens - chain
    rows = max(1, -(-rest // room)) if room > 0 else stop - start
    each = rest / rows
    within = rows * costs.row(depth, chain + each)
    kept = rows * costs.row(common, each) + costs.row(depth, chain)
    return kept + (2 if rows == 1 else 1) * costs.call < within


def _fill_rows(trie: Trie, loose: Sequence[tuple[Step, int, int]], costs: Costs) -> None:
    """Rows of the ranges that became no step; what is all in the chain needs none."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    steps = {id(step): step for step, _, _ in loose}
    for step, start, stop in loose:
        ranges.setdefault(id(step), []).append((start, stop))
    for key, step in steps.items():
        places = [place for start, stop in sorted(ranges[key]) for place in range(start, stop)]
        step.rows = _rows(trie, [p for p in places if len(trie.tokens[p]) > step.end], step.end, costs)


def _rows(trie: Trie, places: Sequence[int], depth: int, costs: Costs) -> list[list[int]]:
    """Neighbours share a row where the tokens that they share outweigh the longer attention."""
    rows: list[list[int]] = []
    row, shared, size = list(places[:1]), [depth], 0
    if row:
        size = len(trie.tokens[row[0]]) - depth
    for place in places[1:]:
        alone, common = len(trie.tokens[place]) - depth, trie.between(row[-1], place)
        together = size + alone - (common - depth)
        if costs.row(depth, together) > costs.row(depth, size) + costs.row(depth, alone):
            rows.append(row)
            row, shared, size = [place], [depth], alone
            continue
        row, shared, size = [*row, place], [*shared, common], together
        while size > costs.row_tokens and len(row) > 1:
            cut = max(range(1, len(row)), key=lambda at: (-shared[at], at))  # where least is shared
            rows.append(row[:cut])
            row, shared = row[cut:], [depth, *shared[cut + 1 :]]
            size = sum(len(trie.tokens[p]) - s for p, s in zip(row, shared, strict=True))
    return [*rows, row] if row else rows


def batch_length(lengths: Sequence[int], depth: int, tokens: int, costs: Costs) -> int:
    """How many of the rows behind ``depth`` kept positions (longest first) go into the first batch.

    A batch has the memory of at most ``tokens`` tokens, with its padding and a copy of what is kept for each
    row, and less padding than a forward pass costs: other rows had better wait for the next. One row always
    goes.
    """
    wasted, each = 0, lengths[0] + costs.kept * depth
    for count, length in enumerate(lengths[1:], start=1):
        wasted += lengths[0] - length
        if wasted > costs.call or (count + 1) * each > tokens:
            return count
    return len(lengths)
