"""Paired bootstrap: intervals of whatever two mean accuracies make, from values of the same documents.

Arrays are (documents, 2), one column per case. Documents that share a context are drawn together, as one
*cluster*. Every draw comes from a fixed seed, so a table made twice from the same records is the same
table. Draws are made in chunks: memory stays below about 100 MB however many documents there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorecard.significance import chunks, swap_p

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Ids = npt.NDArray[np.int64]

RESAMPLES = 4000
SEED = 20259
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Draws:
    """Weighted means of both cases: ``observed`` (2,), ``samples`` (resamples, 2) of them under resampling,
    and the degrees of freedom that the spread of their difference is known with."""

    observed: Array
    samples: Array
    degrees: float

    def difference(self, *, offset: float = 0.0, scales: tuple[float, float] = (1.0, 1.0)) -> Interval:
        """``scale * max(0, mean - offset)`` of the first case minus that of the second.

        With `scales` of 1 / size it is the difference of two scores (sizes are exact).
        """
        value, samples = self._difference(offset, scales)
        return stretched(value, samples, self.degrees)

    def ratio(self) -> Interval | None:
        """First mean / second; ``None`` where the second is 0, or could well be."""
        if not (self.observed[1] > 0 and (self.samples[:, 1] > 0).all()):
            return None
        value = float(self.observed[0] / self.observed[1])
        return stretched(value, self.samples[:, 0] / self.samples[:, 1], self.degrees)

    def first(self, scale: float = 1.0) -> Interval:
        """``scale`` times the first mean, by itself: not paired. Values lie between 0 and 1."""
        found = stretched(float(self.observed[0]), self.samples[:, 0], self.degrees)
        low, high = max(0.0, found.low), min(1.0, found.high)
        return Interval(scale * found.value, scale * low, scale * high)

    def p(self, *, offset: float = 0.0, scales: tuple[float, float] = (1.0, 1.0)) -> float:
        """Two-sided p that the difference is 0: Student's t with the bootstrap's standard error. Unlike a
        share of resamples it has no smallest value, which a correction for many tests needs."""
        from scipy.special import stdtr

        value, samples = self._difference(offset, scales)
        error = float(samples.std()) * math.sqrt((self.degrees + 1) / self.degrees)
        if error == 0:
            return 1.0 if value == 0 else 0.0
        return min(1.0, 2 * float(stdtr(self.degrees, -abs(value) / error)))

    def _difference(self, offset: float, scales: tuple[float, float]) -> tuple[float, Array]:
        import numpy as np

        a, b = np.maximum(self.observed - offset, 0) * np.asarray(scales)
        samples = np.maximum(self.samples - offset, 0) * np.asarray(scales)
        return float(a - b), samples[:, 0] - samples[:, 1]


def draw(
    pairs: Mapping[str, Array],
    *,
    clusters: Mapping[str, Ids] | None = None,
    weights: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Draws:
    """Bootstrap the weighted sum of task means, paired and stratified by task.

    `pairs` is task -> (documents, 2); `clusters` task -> (documents,), equal numbers for documents that
    share a context. Default weights make it the mean accuracy. Source: Efron & Tibshirani 1993, chapters 8
    and 13; whole clusters are drawn as in Cameron, Gelbach & Miller 2008. The degrees of freedom are
    Satterthwaite's (1946), each task's variance having one fewer than its effective number of clusters.
    """
    import numpy as np

    weights = weights or dict.fromkeys(pairs, 1 / len(pairs))
    generator = np.random.default_rng(seed)
    observed, drawn = np.zeros(2), np.zeros((resamples, 2))
    total, squares = 0.0, 0.0
    for task in sorted(pairs):
        units = cluster_sums(pairs[task], clusters.get(task) if clusters else None)
        added = 1 / len(pairs) if is_binary(pairs[task]) else 0.0
        means = weights[task] * _resampled_means(units, added, resamples, generator)
        observed += weights[task] * pairs[task].mean(axis=0)
        drawn += means
        variance = float((means[:, 0] - means[:, 1]).var())
        total, squares = total + variance, squares + variance**2 / max(1.0, _effective(units) - 1)
    return Draws(observed, drawn, total**2 / squares if squares else math.inf)


def weighted_difference(
    pairs: Array, weights: Array, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Interval, float]:
    """Difference of two weighted means over the same documents, and its two-sided p (`swap_p`).

    The interval is the bootstrap of the ratio ``sum(weight * difference) / sum(weight)``.
    """
    import numpy as np

    differences = (pairs[:, 0] - pairs[:, 1]) * weights
    units = np.stack([differences, np.zeros(len(weights)), weights], axis=1)
    drawn = _resampled_means(units, 0.0, resamples, np.random.default_rng(seed))
    value = float(differences.sum() / weights.sum())
    interval = stretched(value, drawn[:, 0], max(1.0, _effective(units) - 1))
    return interval, swap_p(differences, resamples, seed)


def over_tasks(deltas: Array) -> Interval | None:
    """Mean of the tasks' differences (tasks,) with Student's t interval: tasks as a sample of all tasks.

    Wider than the interval for these very tasks, and the one that speaks of others. ``None`` for one task.
    """
    from scipy.special import stdtrit

    if len(deltas) < 2:
        return None
    value, error = float(deltas.mean()), float(deltas.std(ddof=1)) / math.sqrt(len(deltas))
    reach = float(stdtrit(len(deltas) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - reach, value + reach)


def is_binary(values: Array) -> bool:
    """Whether all values are right-or-wrong answers, 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def cluster_sums(values: Array, clusters: Ids | None = None) -> Array:
    """(clusters, 3): both columns summed over each cluster, and its number of documents."""
    import numpy as np

    counted = np.column_stack([values, np.ones(len(values))])
    if clusters is None:
        return counted
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.zeros((int(places.max(initial=-1)) + 1, 3))
    np.add.at(sums, places, counted)
    return sums


def _effective(units: Array) -> float:
    """As many clusters of equal size tell as much (Carter, Schnepel & Steigerwald 2017, equal effects)."""
    sizes = units[:, 2]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _resampled_means(units: Array, added: float, resamples: int, generator: np.random.Generator) -> Array:
    """Means per document (resamples, 2) of bootstrap draws of `units`, rows as `cluster_sums` makes them.

    One multinomial draw of how often each row comes up is a whole resample. For right-or-wrong answers,
    `added` units that gain a document and as many that lose one join in: one of each over all tasks (Bonett &
    Price 2012). Without them, two cases that never differ would get an interval of zero width, however few
    documents there are.
    """
    import numpy as np

    rows, counts = _with_flips(units, added) if added else (units, np.ones(len(units)))
    means = np.empty((resamples, 2))
    for part in chunks(resamples, len(rows)):
        draws = generator.multinomial(len(units), counts / counts.sum(), size=part.stop - part.start)
        totals = draws @ rows
        means[part] = totals[:, :2] / totals[:, 2:]
    return means


def _with_flips(units: Array, added: float) -> tuple[Array, Array]:
    """The distinct rows of units of right-or-wrong answers, with the two that are added, and their counts."""
    import numpy as np

    base = units.max() + 1
    codes = (units * (base**2, base, 1)).sum(axis=1)
    _, places, counts = np.unique(codes, return_index=True, return_counts=True)
    size = units[:, 2].mean()
    alike = (size - 1) * units[:, :2].sum() / (2 * units[:, 2].sum())
    flips = [[alike + 1, alike, size], [alike, alike + 1, size]]
    return np.vstack([units[places], flips]), np.append(counts.astype(float), [added, added])


def stretched(value: float, samples: Array, degrees: float) -> Interval:
    """Percentiles, held together with the estimate, and stretched away from it by what few clusters ask for:
    Student's t in place of the normal, and the bootstrap's missing n / (n - 1) (Hesterberg 2015, 5.3)."""
    import numpy as np
    from scipy.special import ndtri, stdtrit

    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(samples, (tail, 1 - tail)))
    stretch = 1.0
    if math.isfinite(degrees):
        stretch = math.sqrt((degrees + 1) / degrees) * float(stdtrit(degrees, tail) / ndtri(tail))
    return Interval(value, value - stretch * max(0.0, value - low), value + stretch * max(0.0, high - value))
