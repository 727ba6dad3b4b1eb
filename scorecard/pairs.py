"""Per-document results of two cases, side by side.

A *frame* is a case's ``documents.parquet``: columns ``task``, ``doc``, ``metric``, ``value`` and
``cluster``: the first document of the task that shares this one's context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scorecard.errors import ComparisonError

if TYPE_CHECKING:
    import pandas as pd

    from scorecard.resample import Array, Ids

_COLUMNS = ("task", "doc", "metric", "value", "cluster")


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of one task of one case: ``values``, ``docs`` and ``clusters``, all (documents,), ordered
    by document."""

    values: Array
    docs: Ids
    clusters: Ids


@dataclass(frozen=True, eq=False)
class Pairs:
    """One metric of one task of two cases: ``values`` (documents, 2), ``docs`` and ``clusters``
    (documents,)."""

    values: Array
    docs: Ids
    clusters: Ids


def read_documents(path: Path) -> pd.DataFrame:
    """The frame in `path`; raises ComparisonError when it is missing or lacks a column."""
    import pandas as pd

    if not path.is_file():
        raise ComparisonError(f"{path}: no per-document results; run the evaluate stage again")
    frame = pd.read_parquet(path)
    missing = set(_COLUMNS) - set(frame.columns)
    if missing:
        raise ComparisonError(f"{path}: no column {', '.join(sorted(missing))}; run the evaluate stage again")
    return frame


def columns(frame: pd.DataFrame, metrics: Mapping[str, str]) -> dict[str, Column]:
    """The metric of each task, by task. Raises ComparisonError where the frame has no usable values."""
    return {task: _column(frame, task, metric) for task, metric in sorted(metrics.items())}


def match(a: Mapping[str, Column], b: Mapping[str, Column], *, common: bool = False) -> dict[str, Pairs]:
    """Values of the same documents side by side, by task.

    With `common`, for tasks that were stopped early, only the documents that both have; else
    ComparisonError names the task and the first documents that only one of them has.
    """
    if a.keys() != b.keys():
        raise ComparisonError(f"tasks {sorted(a)} and {sorted(b)}; evaluate both cases on the same tasks")
    return {task: _side_by_side(task, a[task], b[task], common) for task in a}


def _side_by_side(task: str, a: Column, b: Column, common: bool) -> Pairs:
    import numpy as np

    whole_is_a = len(a.docs) >= len(b.docs)
    if common:
        a, b = _only(a, b.docs), _only(b, a.docs)
    if len(a.docs) == 0 or not np.array_equal(a.docs, b.docs):
        raise ComparisonError(f"{task}: {_unmatched(a.docs, b.docs)}; evaluate both cases alike")
    # Of a part of the documents fewer are seen to share a context.
    return Pairs(np.column_stack([a.values, b.values]), a.docs, a.clusters if whole_is_a else b.clusters)


def _only(column: Column, docs: Ids) -> Column:
    import numpy as np

    kept = np.isin(column.docs, docs)
    return Column(column.values[kept], column.docs[kept], column.clusters[kept])


def _column(frame: pd.DataFrame, task: str, metric: str) -> Column:
    import numpy as np

    rows = frame[(frame["task"] == task) & (frame["metric"] == metric)].sort_values("doc")
    values, docs = rows["value"].to_numpy(float), rows["doc"].to_numpy(np.int64)
    if len(docs) == 0:
        raise ComparisonError(f"{task}: a case has no documents with '{metric}'; evaluate both cases alike")
    if (docs[1:] == docs[:-1]).any():
        twice = docs[1:][docs[1:] == docs[:-1]][0]
        raise ComparisonError(f"{task}: document {twice} has '{metric}' twice; evaluate the case again")
    if not np.isfinite(values).all():
        raise ComparisonError(f"{task}: '{metric}' is not finite everywhere; evaluate the case again")
    return Column(values, docs, rows["cluster"].to_numpy(np.int64))


def _unmatched(first: Ids, second: Ids) -> str:
    import numpy as np

    sides = (("first", np.setdiff1d(first, second)), ("second", np.setdiff1d(second, first)))
    only = [
        f"{len(docs)} documents only in the {name} case (such as {', '.join(map(str, docs[:3]))})"
        for name, docs in sides
        if len(docs)
    ]
    return ", ".join(only) or "the cases have no document in common"
