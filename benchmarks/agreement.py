"""Whether two sides gave the same answers to the requests of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tasks import Task

TIE = 1e-5  # relative; two choices this close are no different to any float32 program


@dataclass(frozen=True)
class Agreement:
    """``difference``: the largest relative one of a log-likelihood (``None`` for texts). ``flips``: documents
    with another best choice (by sum, by mean per character), other greedy flags, or another text;
    ``ties`` of them had two best choices within ``TIE``.
    """

    difference: float | None
    flips: int
    ties: int

    @property
    def difference_text(self) -> str:
        return "–" if self.difference is None else f"{self.difference:.1e}"

    @property
    def flips_text(self) -> str:
        return f"{self.flips} ({self.ties} ties)" if self.ties else str(self.flips)


def agreement(task: Task, theirs: Sequence[Any], ours: Sequence[Any]) -> Agreement:
    if task.kind == "generate_until":
        return Agreement(None, sum(a != b for a, b in zip(theirs, ours, strict=True)), 0)
    if task.kind == "loglikelihood_rolling":
        return Agreement(_largest(theirs, ours), 0, 0)
    difference = _largest([a[0] for a in theirs], [a[0] for a in ours])
    greedy = {task.owners[i] for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a[1] != b[1]}
    moved, tied = set(greedy), set()
    for lengths in ([1] * len(ours), [len(row[1]) for row in task.requests]):
        scores = [[a[0] / n for a, n in zip(side, lengths, strict=True)] for side in (theirs, ours)]
        for owner, places in _documents(task.owners).items():
            best = [max(places, key=side.__getitem__) for side in scores]
            if best[0] != best[1]:
                moved.add(owner)
                one, other = (scores[0][place] for place in best)
                tied |= {owner} if abs(one - other) <= TIE * abs(one) else set()
    return Agreement(difference, len(moved), len(tied))


def _documents(owners: Sequence[int]) -> dict[int, list[int]]:
    documents: dict[int, list[int]] = {}
    for place, owner in enumerate(owners):
        documents.setdefault(owner, []).append(place)
    return documents


def _largest(theirs: Sequence[float], ours: Sequence[float]) -> float:
    pairs = zip(theirs, ours, strict=True)
    return max((abs(a - b) / max(abs(a), 1e-9) for a, b in pairs), default=0.0)
