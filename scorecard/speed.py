"""How surely one model is faster than another that was timed in turn with it."""

from __future__ import annotations

from collections.abc import Sequence

from scorecard.resample import SEED, Interval, stretched

RESAMPLES = 1000
PERCENTILE = 10


def speedup(theirs: Sequence[float], ours: Sequence[float], rounds: int) -> Interval | None:
    """Their 10th percentile over ours, seconds, with the interval of a bootstrap over rounds.

    Each round timed both models once or, both as often, several times in a row, so that a disturbance of
    the machine is in both; whole rounds are drawn. ``None`` with fewer than two rounds.
    """
    import numpy as np

    if rounds < 2 or min(len(theirs), len(ours)) < rounds:
        return None
    drawn = np.random.default_rng(SEED).integers(0, rounds, (RESAMPLES, rounds))
    ratios = [np.percentile(times, PERCENTILE) for times in (theirs, ours)]
    tops, bottoms = (_percentiles(times, rounds, drawn) for times in (theirs, ours))
    return stretched(float(ratios[0] / ratios[1]), np.asarray(tops) / np.asarray(bottoms), rounds - 1)


def _percentiles(times: Sequence[float], rounds: int, drawn: object) -> object:
    import numpy as np

    each = len(times) // rounds
    blocks = np.asarray(times, float)[: rounds * each].reshape(rounds, each)
    return np.percentile(blocks[np.asarray(drawn)].reshape(len(np.asarray(drawn)), -1), PERCENTILE, axis=1)
