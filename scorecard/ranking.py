"""Ranks of the cases of one group, with ties where a paired test cannot tell two scores apart."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from scorecard import compare
from scorecard.against import Frames, metrics
from scorecard.errors import ComparisonError
from scorecard.pairs import Column, columns, match
from scorecard.rank import competition_ranks, pareto_front, rank_limits
from scorecard.row import Row
from scorecard.significance import holm

ALPHA = 0.05
#: Only the spread of the draws is used here, which a thousand give within 2 or 3 %.
RESAMPLES = 1000


def with_ranks(made: Sequence[Row], frames: Frames, ranking: str) -> list[Row]:
    """Ranks by `ranking`, a key of SCORES, and the range that each rank is known to lie in.

    Two cases tie unless the p of their difference, corrected for all pairs of the group by Holm's method,
    is at most ALPHA.
    """
    compared = any(row.baseline for row in made)
    by_case = {
        row.case: row
        for row in made
        if row.status == "ok" and (row.baseline or row.delta_accuracy is not None or not compared)
    }
    scores = {case: score for case, row in by_case.items() if (score := row.score(ranking)) is not None}
    told_apart = _told_apart([by_case[case] for case in scores], frames, ranking)
    ranks = competition_ranks(scores, lambda a, b: frozenset((a, b)) not in told_apart)
    limits = rank_limits(scores, told_apart)
    return [
        dataclasses.replace(
            row, rank=ranks[row.case], rank_low=limits[row.case][0], rank_high=limits[row.case][1]
        )
        if row.case in ranks
        else row
        for row in made
    ]


def with_adjusted_p(made: Sequence[Row]) -> list[Row]:
    """McNemar's p against the baseline, corrected for the number of cases that are compared with it."""
    adjusted = holm({row.case: row.mcnemar_p for row in made if row.mcnemar_p is not None})
    return [dataclasses.replace(row, mcnemar_p_holm=adjusted.get(row.case)) for row in made]


def with_front(made: Sequence[Row]) -> list[Row]:
    """Whether each case is on the Pareto front of size and mean accuracy."""
    points = {
        row.case: (row.size_bytes, row.mean_accuracy)
        for row in made
        if row.status == "ok" and row.size_bytes is not None and row.mean_accuracy is not None
    }
    front = pareto_front(points)
    return [dataclasses.replace(row, pareto=row.case in front) if row.case in points else row for row in made]


def _told_apart(rows: Sequence[Row], frames: Frames, ranking: str) -> frozenset[frozenset[str]]:
    """The pairs of cases whose scores differ by more than chance explains; unmatched ones count as such."""
    own: dict[str, Mapping[str, Column] | None] = {row.case: _columns(row, frames) for row in rows}
    ps: dict[str, float] = {}
    pairs = {f"{a.case}\n{b.case}": (a, b) for a, b in itertools.combinations(rows, 2)}
    for name, (a, b) in pairs.items():
        ps[name] = _p(a, b, own, ranking)
    adjusted = holm(ps)
    return frozenset(frozenset((a.case, b.case)) for n, (a, b) in pairs.items() if adjusted[n] <= ALPHA)


def _columns(row: Row, frames: Frames) -> Mapping[str, Column] | None:
    try:
        return columns(frames.of(row), metrics(row))
    except ComparisonError:
        return None


def _p(a: Row, b: Row, own: Mapping[str, Mapping[str, Column] | None], ranking: str) -> float:
    """p that two scores are equal. Sizes are exact."""
    first, second = own[a.case], own[b.case]
    if not first or not second or metrics(a) != metrics(b):
        return 0.0
    try:
        pairs = match(first, second, common=a.stopped_early or b.stopped_early)
    except ComparisonError:
        return 0.0
    chance = {task: (a.tasks[task].chance or 0.0) if ranking == "chance-corrected" else 0.0 for task in pairs}
    pairs = {task: found for task, found in pairs.items() if chance[task] < 1}
    weights = {task: 1 / (len(pairs) * (1 - chance[task])) for task in pairs}
    offset = sum(weights[task] * chance[task] for task in pairs)
    sizes = (1.0, 1.0) if ranking == "recovery" else (a.size_gib or 1.0, b.size_gib or 1.0)
    scales = (1 / sizes[0], 1 / sizes[1])
    return compare.draw(pairs, weights, resamples=RESAMPLES).p(offset=offset, scales=scales)
