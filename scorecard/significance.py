"""Paired tests on the same documents, and what many of them at once do to their p.

Both tests ask one thing: could the two cases have been swapped? Neither assumes a distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

_CHUNK_VALUES = 4_000_000


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that a discordant document is as likely gained as lost (McNemar 1947, binomial)."""
    from scipy.special import bdtr  # binomial distribution; scipy.stats would take a second to import

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def swap_p(differences: Array, resamples: int, seed: int) -> float:
    """Two-sided p of Fisher's randomization test; `differences` (units,), first case minus second.

    Units, documents or whole clusters of them, have their two values swapped at random. Where all
    differences have one size this is McNemar's test. Otherwise p is the share of swaps that lie at least as
    far from 0: of all of them where they are no more than `resamples`, else of as many random ones, counting
    the data as one of them, so never below 1 / (1 + resamples).
    """
    import numpy as np

    moved = differences[differences != 0]
    if len(moved) == 0 or (np.abs(moved) == abs(moved[0])).all():
        return mcnemar(int((moved > 0).sum()), int((moved < 0).sum()))
    limit = abs(moved.sum()) * (1 - 1e-12)  # equal sums may differ in their last bit
    if len(moved) <= math.log2(resamples):
        swaps = np.array(list(itertools.product((1.0, -1.0), repeat=len(moved))))
        return float((np.abs(swaps @ moved) >= limit).mean())
    generator, beyond = np.random.default_rng(seed), 0
    for rows in chunks(resamples, len(moved)):
        signs = 2.0 * generator.integers(0, 2, (rows.stop - rows.start, len(moved))) - 1
        beyond += int((np.abs(signs @ moved) >= limit).sum())
    return (1 + beyond) / (1 + resamples)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p: rejecting where it is at most alpha makes one or more false rejections with probability
    at most alpha, however the tests depend on each other (Holm 1979)."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(ps, key=lambda name: (ps[name], name))):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[name]))
        adjusted[name] = largest
    return adjusted


def chunks(resamples: int, units: int) -> list[slice]:
    """Slices of the resamples that keep an array (slice, units) below about 32 MB."""
    step = max(1, _CHUNK_VALUES // max(1, units))
    return [slice(start, min(start + step, resamples)) for start in range(0, resamples, step)]
