"""Paired resampling: bootstrap intervals and randomization tests on values of the same documents.

Arrays are (documents, 2), one column per case. Every draw comes from a fixed seed, so a table made twice
from the same records is the same table. Index arrays are drawn in chunks: memory stays below about 100 MB
however many documents there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

RESAMPLES = 4000
SEED = 20259
CONFIDENCE = 0.95
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(
    pairs: Mapping[str, Array],
    *,
    weights: Mapping[str, float] | None = None,
    offset: float = 0.0,
    scales: tuple[float, float] = (1.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Interval of ``scale * max(0, sum of weight * task mean - offset)`` of the first case minus the second.

    `pairs` is task -> (documents, 2). Default weights make it the difference of mean accuracies; with
    `scales` of 1 / size it is that of two scores (sizes are exact). Percentile bootstrap over documents,
    paired and stratified by task (Efron & Tibshirani 1993, chapter 13), widened where needed to hold the
    estimate itself.
    """
    import numpy as np

    weights = weights or dict.fromkeys(pairs, 1 / len(pairs))
    generator = np.random.default_rng(seed)
    observed, drawn = np.zeros(2), np.zeros((resamples, 2))
    for task in sorted(pairs):
        observed += weights[task] * pairs[task].mean(axis=0)
        drawn += weights[task] * resampled_means(pairs[task], resamples, generator)
    a, b = np.maximum(observed - offset, 0) * np.asarray(scales)
    samples = np.maximum(drawn - offset, 0) * np.asarray(scales)
    return _interval(float(a - b), samples[:, 0] - samples[:, 1])


def weighted_difference(
    pairs: Array, weights: Array, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Interval, float]:
    """Difference of two weighted means over the same documents, and its two-sided p.

    The interval is the bootstrap of the ratio ``sum(weight * difference) / sum(weight)``. For p each
    document's two values are swapped at random (Fisher's randomization test): the share of swaps that lie
    at least as far from 0, counting the data as one of them, so never below 1 / (1 + resamples).
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    parts = np.stack([(pairs[:, 0] - pairs[:, 1]) * weights, weights], axis=1)
    total = parts.sum(axis=0)
    drawn = _chunked_means(parts, resamples, generator)
    interval = _interval(float(total[0] / total[1]), drawn[:, 0] / drawn[:, 1])
    return interval, _sign_flip_p(parts[:, 0], resamples, generator)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that a discordant document is as likely gained as lost (McNemar 1947, binomial)."""
    from scipy.special import bdtr  # binomial distribution; scipy.stats would take a second to import

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def is_binary(values: Array) -> bool:
    """Whether all values are right-or-wrong answers, 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def resampled_means(values: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Means of bootstrap draws of pairs: (resamples, 2).

    Right-or-wrong pairs fall into four cells, so one multinomial draw is a whole resample. One document is
    added to each of the two discordant cells before drawing (Bonett & Price 2012): without it, two cases
    that never differ would get an interval of zero width, however few documents there are.
    """
    import numpy as np

    if not is_binary(values):
        return _chunked_means(values, resamples, generator)
    cells = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    counts = np.bincount((2 * values[:, 0] + values[:, 1]).astype(int), minlength=4) + np.array([0, 1, 1, 0])
    draws = generator.multinomial(len(values), counts / counts.sum(), size=resamples)
    means: Array = draws @ cells / len(values)
    return means


def _chunked_means(values: Array, resamples: int, generator: np.random.Generator) -> Array:
    import numpy as np

    means = np.empty((resamples, values.shape[1]))
    for rows in _chunks(resamples, len(values)):
        draws = generator.integers(0, len(values), (rows.stop - rows.start, len(values)))
        means[rows] = values[draws].mean(axis=1)
    return means


def _sign_flip_p(differences: Array, resamples: int, generator: np.random.Generator) -> float:
    import numpy as np

    limit = abs(differences.sum()) * (1 - 1e-12)  # equal sums may differ in their last bit
    beyond = 0
    for rows in _chunks(resamples, len(differences)):
        signs = 2.0 * generator.integers(0, 2, (rows.stop - rows.start, len(differences))) - 1
        beyond += int((np.abs(signs @ differences) >= limit).sum())
    return (1 + beyond) / (1 + resamples)


def _chunks(resamples: int, documents: int) -> list[slice]:
    step = max(1, _CHUNK_VALUES // max(1, documents))
    return [slice(start, min(start + step, resamples)) for start in range(0, resamples, step)]


def _interval(value: float, samples: Array) -> Interval:
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Interval(value, min(float(low), value), max(float(high), value))
