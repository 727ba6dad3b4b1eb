"""Ranks with ties and the Pareto front: pure functions of scores and sizes."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping


def competition_ranks(scores: Mapping[str, float], tied: Callable[[str, str], bool]) -> dict[str, int]:
    """Rank of each case, best score first; ties share the better rank (1, 1, 3).

    "Cannot be told apart" is not transitive: a may tie with b and b with c while a beats c. So a group is
    all cases that follow its best one, down to the first that ``tied(best, case)`` tells apart from that
    best; this one opens the next group. Equal scores always tie. The order of `scores` does not matter.
    """
    ranks: dict[str, int] = {}
    best: str | None = None
    for place, case in enumerate(sorted(scores, key=lambda c: (-scores[c], c)), start=1):
        if best is not None and (scores[case] == scores[best] or tied(best, case)):
            ranks[case] = ranks[best]
        else:
            best, ranks[case] = case, place
    return ranks


def pareto_front(points: Mapping[str, tuple[int, float]]) -> frozenset[str]:
    """Cases that no other dominates; a point is (size in bytes, mean accuracy).

    One case dominates another when it is no larger and no less accurate, and better in one of the two.
    """
    front: set[str] = set()
    smallest_first = sorted(points, key=lambda c: (points[c][0], -points[c][1]))
    best: tuple[int, float] | None = None
    for case in smallest_first:
        if best is None or points[case][1] > best[1] or points[case] == best:
            best = points[case]
            front.add(case)
    return frozenset(front)


def rank_limits(
    scores: Mapping[str, float], told_apart: Container[frozenset[str]]
) -> dict[str, tuple[int, int]]:
    """The best and the worst rank that each case can have.

    One more than the cases that are surely better, and as many as are not surely worse. Where the family
    of tests makes a false rejection with probability at most alpha, all true ranks lie inside with
    probability 1 - alpha at least (Mogstad, Romano, Shaikh & Wilhelm 2024).
    """
    limits = {}
    for case in scores:
        others = [other for other in scores if frozenset((case, other)) in told_apart]
        better = sum(scores[other] > scores[case] for other in others)
        worse = sum(scores[other] < scores[case] for other in others)
        limits[case] = (1 + better, len(scores) - worse)
    return limits
