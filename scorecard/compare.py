"""Paired comparison of two cases on the same documents.

Two compressed forms of one model answer most documents alike, so the difference of their scores is known
far better than either score. Everything here works on that difference, document by document. What each
number is and where it comes from is in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorecard import resample
from scorecard.errors import ComparisonError
from scorecard.pairs import Pairs, columns, match
from scorecard.resample import RESAMPLES, SEED, Interval
from scorecard.significance import swap_p

if TYPE_CHECKING:
    import pandas as pd

    from scorecard.resample import Array

HELDOUT = "heldout"


@dataclass(frozen=True)
class TaskComparison:
    """One task, first case minus second.

    ``gained``: documents right in the first only; ``lost``: in the second only; both ``None`` where answers
    are not simply right or wrong. ``p`` is of `swap_p` over ``clusters`` of documents that share a context:
    McNemar's exact p where none do.
    """

    documents: int
    clusters: int
    delta: Interval
    p: float
    gained: tuple[int, ...] | None
    lost: tuple[int, ...] | None


@dataclass(frozen=True)
class Comparison:
    """First case minus second. ``None`` where the frames hold no such values.

    ``gained``, ``lost`` and ``mcnemar_p`` pool the documents of all tasks with right-or-wrong answers.
    ``recovery`` is the first mean accuracy / the second, ``accuracy`` the first alone, ``delta_over_tasks``
    takes the tasks for a sample of all tasks, ``delta_score`` is per GiB. ``delta_kl`` is in nats per token:
    the difference of two KL divergences from the same original.
    """

    documents: int
    accuracy: Interval | None
    delta_accuracy: Interval | None
    delta_over_tasks: Interval | None
    recovery: Interval | None
    delta_score: Interval | None
    gained: int | None
    lost: int | None
    mcnemar_p: float | None
    delta_kl: Interval | None
    kl_p: float | None
    tasks: Mapping[str, TaskComparison]

    @property
    def flips(self) -> int | None:
        """Documents right in one case and wrong in the other."""
        return None if self.gained is None or self.lost is None else self.gained + self.lost


def paired(
    a: pd.DataFrame,
    b: pd.DataFrame,
    metrics: Mapping[str, str],
    *,
    sizes_gib: tuple[float, float] | None = None,
    common: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two frames; `metrics` names the metric that counts for each accuracy task.

    Raises ComparisonError when the frames do not hold the same documents; with `common`, for cases that
    were stopped early, only those that both hold are compared.
    """
    import numpy as np

    pairs = match(columns(a, metrics), columns(b, metrics), common=common)
    tasks = {task: _compare_task(found, resamples, seed) for task, found in pairs.items()}
    draws = draw(pairs, resamples=resamples, seed=seed) if pairs else None
    scales = (1 / sizes_gib[0], 1 / sizes_gib[1]) if sizes_gib else None
    gained, lost = _total(t.gained for t in tasks.values()), _total(t.lost for t in tasks.values())
    delta_kl, kl_p = _compare_kl(a, b, resamples, seed)
    return Comparison(
        documents=sum(t.documents for t in tasks.values()),
        accuracy=draws.first() if draws else None,
        delta_accuracy=draws.difference() if draws else None,
        delta_over_tasks=resample.over_tasks(np.array([t.delta.value for t in tasks.values()])),
        recovery=draws.ratio() if draws else None,
        delta_score=draws.difference(scales=scales) if draws and scales else None,
        gained=gained,
        lost=lost,
        mcnemar_p=_pooled_p(pairs.values(), resamples, seed),
        delta_kl=delta_kl,
        kl_p=kl_p,
        tasks=tasks,
    )


def draw(
    pairs: Mapping[str, Pairs],
    weights: Mapping[str, float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> resample.Draws:
    """`resample.draw` of matched tasks, documents that share a context drawn together."""
    values = {task: found.values for task, found in pairs.items()}
    clusters = {task: found.clusters for task, found in pairs.items()}
    return resample.draw(values, clusters=clusters, weights=weights, resamples=resamples, seed=seed)


def _compare_task(pairs: Pairs, resamples: int, seed: int) -> TaskComparison:
    differences = _differences(pairs)
    gained = lost = None
    if resample.is_binary(pairs.values):
        first, second = pairs.values[:, 0], pairs.values[:, 1]
        gained, lost = tuple(pairs.docs[first > second].tolist()), tuple(pairs.docs[first < second].tolist())
    return TaskComparison(
        documents=len(pairs.docs),
        clusters=len(differences),
        delta=draw({"": pairs}, resamples=resamples, seed=seed).difference(),
        p=swap_p(differences, resamples, seed),
        gained=gained,
        lost=lost,
    )


def _differences(pairs: Pairs) -> Array:
    """First minus second, summed over each cluster."""
    sums = resample.cluster_sums(pairs.values, pairs.clusters)
    differences: Array = sums[:, 0] - sums[:, 1]
    return differences


def _pooled_p(pairs: Iterable[Pairs], resamples: int, seed: int) -> float | None:
    import numpy as np

    binary = [_differences(found) for found in pairs if resample.is_binary(found.values)]
    return swap_p(np.concatenate(binary), resamples, seed) if binary else None


def _compare_kl(
    a: pd.DataFrame, b: pd.DataFrame, resamples: int, seed: int
) -> tuple[Interval | None, float | None]:
    """Difference in KL per token and its p; documents weigh as many tokens as they have."""
    if not (_has_kl(a) and _has_kl(b)):
        return None, None
    tokens, kl = (_heldout(a, b, metric) for metric in ("tokens", "kl"))
    if not (tokens[:, 0] == tokens[:, 1]).all():
        raise ComparisonError(f"{HELDOUT}: token counts differ; compare cases with one tokenizer")
    return resample.weighted_difference(kl, tokens[:, 0], resamples=resamples, seed=seed)


def _heldout(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> Array:
    chosen = {HELDOUT: metric}
    return match(columns(a, chosen), columns(b, chosen))[HELDOUT].values


def _total(found: Iterable[tuple[int, ...] | None]) -> int | None:
    known = [len(documents) for documents in found if documents is not None]
    return sum(known) if known else None


def _has_kl(frame: pd.DataFrame) -> bool:
    """Whether KL was measured and is finite; a ruined model's is not."""
    import numpy as np

    values = frame[(frame["task"] == HELDOUT) & (frame["metric"] == "kl")]["value"]
    return not values.empty and bool(np.isfinite(values).all())
