"""The one step constant c that meets a budget: of bits per weight, of bytes, or of divergence.

Bytes fall and divergence rises with c, both nearly along straight lines of logarithms, so that the secant
method needs a handful of tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from rdq.errors import RdqError

Outcome = TypeVar("Outcome")
TRIES = 24
WIDEST, FARTHEST = 8.0, 2.0**40


def search(
    trial: Callable[[float], Outcome],
    value: Callable[[Outcome], float],
    target: float,
    start: float,
    *,
    tolerance: float,
    rises: bool,
) -> Outcome:
    """The outcome of ``trial(c)`` whose ``value`` is at most ``target`` and within ``tolerance`` of it.

    ``rises``: whether the value rises with c. Where no outcome is so near, the one with the largest value
    that does not pass the target. Raises RdqError where every c passes it.
    """
    tried: dict[float, Outcome] = {}
    c = start
    for _ in range(TRIES):
        tried[c] = trial(c)
        points = sorted((math.log(one), value(outcome)) for one, outcome in tried.items())
        within = {one: outcome for one, outcome in tried.items() if value(outcome) <= target}
        best = max(within, key=lambda one: value(within[one]), default=None)
        if best is not None and value(within[best]) >= target * (1 - tolerance):
            return within[best]
        following = _following(points, math.log(target) - tolerance / 2, rises)
        if following is None or any(abs(following - math.log(one)) < 1e-5 for one in tried):
            break
        if not 1 / FARTHEST < math.exp(following) / start < FARTHEST:
            break
        c = math.exp(following)
    if best is None:
        least = min(value(outcome) for outcome in tried.values())
        raise RdqError(f"budget: {target:g} cannot be met, the least is about {least:g}; allow more")
    return within[best]


def _following(points: list[tuple[float, float]], aim: float, rises: bool) -> float | None:
    """The log c to try next: between the nearest points on both sides, or beyond the last one."""
    logs = [(x, math.log(max(y, 1e-12))) for x, y in points]
    below = [p for p in logs if (p[1] <= aim) == rises]
    above = [p for p in logs if (p[1] <= aim) != rises]
    if not below or not above:
        edge = logs[-1] if below else logs[0]
        slope = _slope(logs) or (2.0 if rises else -0.5)
        step = (aim - edge[1]) / slope
        least = math.log(1.02)
        step = max(abs(step), least) * (1 if below else -1)
        return edge[0] + max(-math.log(WIDEST), min(math.log(WIDEST), step))
    (x0, y0), (x1, y1) = max(below), min(above)
    if x1 <= x0 or y0 == y1:
        return (x0 + x1) / 2
    share = (aim - y0) / (y1 - y0)
    return x0 + min(0.95, max(0.05, share)) * (x1 - x0)


def _slope(logs: list[tuple[float, float]]) -> float | None:
    if len(logs) < 2 or logs[-1][0] == logs[0][0]:
        return None
    first, last = logs[-2:]
    return (last[1] - first[1]) / (last[0] - first[0]) or None
