"""Paired comparison of two cases on the same documents.

Two compressed forms of one model answer most documents alike, so the difference of their scores is known
far better than either score. Everything here works on that difference, document by document.

A *frame* is a case's ``documents.parquet``: columns ``task``, ``doc``, ``metric``, ``value``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard import resample
from scorecard.errors import ComparisonError
from scorecard.resample import RESAMPLES, SEED, Interval

if TYPE_CHECKING:
    import pandas as pd

    from scorecard.resample import Array

HELDOUT = "heldout"


@dataclass(frozen=True)
class TaskComparison:
    """One task, first case minus second. ``gained``: documents right in the first only; ``lost``: in the
    second only; both ``None`` where answers are not simply right or wrong."""

    documents: int
    delta: Interval
    gained: int | None
    lost: int | None
    mcnemar_p: float | None


@dataclass(frozen=True)
class Comparison:
    """First case minus second. ``None`` where the frames hold no such values.

    ``gained``, ``lost`` and ``mcnemar_p`` pool the documents of all tasks with right-or-wrong answers.
    ``delta_kl`` is in nats per token: the difference of two KL divergences from the same original.
    """

    documents: int
    delta_accuracy: Interval | None
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


def read_documents(path: Path) -> pd.DataFrame:
    """The frame in `path`; raises ComparisonError when it is missing or lacks a column."""
    import pandas as pd

    if not path.is_file():
        raise ComparisonError(f"{path}: no per-document results; run the evaluate stage again")
    frame = pd.read_parquet(path)
    missing = {"task", "doc", "metric", "value"} - set(frame.columns)
    if missing:
        raise ComparisonError(f"{path}: no column {', '.join(sorted(missing))}; run the evaluate stage again")
    return frame


def paired(
    a: pd.DataFrame,
    b: pd.DataFrame,
    metrics: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two frames; `metrics` names the metric that counts for each accuracy task.

    Raises ComparisonError when the frames do not hold the same documents.
    """
    pairs = match(a, b, metrics)
    tasks = {task: _compare_task(values, resamples, seed) for task, values in pairs.items()}
    gained, lost = _total(t.gained for t in tasks.values()), _total(t.lost for t in tasks.values())
    delta_kl, kl_p = _compare_kl(a, b, resamples, seed)
    return Comparison(
        documents=sum(t.documents for t in tasks.values()),
        delta_accuracy=resample.difference(pairs, resamples=resamples, seed=seed) if pairs else None,
        gained=gained,
        lost=lost,
        mcnemar_p=None if gained is None or lost is None else resample.mcnemar(gained, lost),
        delta_kl=delta_kl,
        kl_p=kl_p,
        tasks=tasks,
    )


def match(a: pd.DataFrame, b: pd.DataFrame, metrics: Mapping[str, str]) -> dict[str, Array]:
    """Values of the same documents side by side: task -> array (documents, 2), ordered by document.

    Raises ComparisonError naming the task and the first documents that only one frame holds.
    """
    return {task: _match_task(a, b, task, metric) for task, metric in sorted(metrics.items())}


def _compare_task(values: Array, resamples: int, seed: int) -> TaskComparison:
    delta = resample.difference({"": values}, resamples=resamples, seed=seed)
    if not resample.is_binary(values):
        return TaskComparison(len(values), delta, None, None, None)
    gained, lost = int((values[:, 0] > values[:, 1]).sum()), int((values[:, 0] < values[:, 1]).sum())
    return TaskComparison(len(values), delta, gained, lost, resample.mcnemar(gained, lost))


def _compare_kl(
    a: pd.DataFrame, b: pd.DataFrame, resamples: int, seed: int
) -> tuple[Interval | None, float | None]:
    """Difference in KL per token and its p; documents weigh as many tokens as they have."""
    if not (_has_kl(a) and _has_kl(b)):
        return None, None
    tokens = _match_task(a, b, HELDOUT, "tokens")
    if not (tokens[:, 0] == tokens[:, 1]).all():
        raise ComparisonError(f"{HELDOUT}: token counts differ; compare cases with one tokenizer")
    kl = _match_task(a, b, HELDOUT, "kl")
    return resample.weighted_difference(kl, tokens[:, 0], resamples=resamples, seed=seed)


def _total(counts: Any) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _has_kl(frame: pd.DataFrame) -> bool:
    """Whether KL was measured and is finite; a ruined model's is not."""
    import numpy as np

    values = frame[(frame["task"] == HELDOUT) & (frame["metric"] == "kl")]["value"]
    return not values.empty and bool(np.isfinite(values).all())


def _match_task(a: pd.DataFrame, b: pd.DataFrame, task: str, metric: str) -> Array:
    import numpy as np

    first, second = _column(a, task, metric), _column(b, task, metric)
    if not first.index.equals(second.index):
        raise ComparisonError(f"{task}: {_unmatched(first.index, second.index)}; evaluate both cases alike")
    values: Array = np.stack([first.to_numpy(float), second.to_numpy(float)], axis=1)
    return values


def _column(frame: pd.DataFrame, task: str, metric: str) -> pd.Series[Any]:
    """One metric of one task, indexed and sorted by document."""
    import numpy as np

    chosen = frame[(frame["task"] == task) & (frame["metric"] == metric)]
    column = chosen.set_index("doc")["value"].sort_index()
    if column.empty:
        raise ComparisonError(f"{task}: a case has no documents with '{metric}'; evaluate both cases alike")
    if column.index.has_duplicates:
        twice = column.index[column.index.duplicated()][0]
        raise ComparisonError(f"{task}: document {twice} has '{metric}' twice; evaluate the case again")
    if not np.isfinite(column.to_numpy(float)).all():
        raise ComparisonError(f"{task}: '{metric}' is not finite everywhere; evaluate the case again")
    return column


def _unmatched(first: pd.Index[Any], second: pd.Index[Any]) -> str:
    sides = (("first", first.difference(second)), ("second", second.difference(first)))
    return ", ".join(
        f"{len(docs)} documents only in the {name} case (such as {', '.join(map(str, docs[:3]))})"
        for name, docs in sides
        if len(docs)
    )
