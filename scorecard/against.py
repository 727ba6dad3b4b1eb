"""A row beside its baseline: what only the comparison of the two tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorecard import compare
from scorecard.errors import ComparisonError
from scorecard.pairs import columns, match
from scorecard.resample import Interval
from scorecard.row import Row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Frames:
    """Each case's per-document results, or why it has none."""

    read: Mapping[str, pd.DataFrame]
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, row: Row) -> pd.DataFrame:
        """Raises ComparisonError where there is none."""
        if row.case not in self.read:
            reason = self.unread.get(row.case, "no per-document results; run the evaluate stage again")
            raise ComparisonError(reason)
        return self.read[row.case]


def metrics(row: Row) -> dict[str, str]:
    """The metric that counts for each accuracy task."""
    return {name: task.metric for name, task in row.tasks.items() if task.accuracy}


def with_interval(row: Row, frames: Frames) -> Row:
    """`row` with the interval of its own score per size; as it is where that cannot be had."""
    if row.mean_accuracy is None or not row.size_gib:
        return row
    try:
        own = columns(frames.of(row), metrics(row))
    except ComparisonError:
        return row
    score = compare.draw(match(own, own)).first(1 / row.size_gib) if own else None
    return dataclasses.replace(row, **_ends("score_raw", score))


def against(row: Row, baseline: Row | None, frames: Frames) -> Row:
    """`row` with recovery, Δ accuracy, flips and p; with a note where the two cannot be compared."""
    if baseline is None or row.mean_accuracy is None:
        return row
    if row.case == baseline.case:
        return dataclasses.replace(row, baseline=True, recovery=1.0 if row.mean_accuracy else None)
    try:
        found = _compared(row, baseline, frames)
    except ComparisonError as error:
        return dataclasses.replace(row, notes=(*row.notes, f"not comparable with the baseline: {error}"))
    delta = found.delta_accuracy
    return dataclasses.replace(
        row,
        recovery=found.recovery.value if found.recovery else _ratio(row, baseline),
        **_ends("recovery", found.recovery),
        delta_accuracy=delta.value if delta else None,
        **_ends("delta_accuracy", delta),
        mcnemar_p=found.mcnemar_p,
        flips=found.flips,
    )


def _compared(row: Row, baseline: Row, frames: Frames) -> compare.Comparison:
    own, other = frames.of(row), frames.of(baseline)
    if metrics(row) != metrics(baseline):
        raise ComparisonError("its accuracy tasks are not the baseline's; give both the same tasks")
    common = row.stopped_early or baseline.stopped_early
    return compare.paired(own, other, metrics(row), common=common)


def _ratio(row: Row, baseline: Row) -> float | None:
    if row.mean_accuracy is None or not baseline.mean_accuracy:
        return None
    return row.mean_accuracy / baseline.mean_accuracy


def _ends(key: str, interval: Interval | None) -> dict[str, Any]:
    return {
        f"{key}_low": interval.low if interval else None,
        f"{key}_high": interval.high if interval else None,
    }
