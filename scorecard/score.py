"""From the records of cases to the rows of the score table. Pure: equal records give equal rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard.against import Frames, against, with_interval
from scorecard.comparable import conditions, differences, grouped
from scorecard.errors import ComparisonError, SpecError, nearest
from scorecard.gate import gated
from scorecard.pairs import read_documents
from scorecard.ranking import with_adjusted_p, with_front, with_ranks
from scorecard.records import CaseRecords, own_row
from scorecard.reference_rows import reference_rows
from scorecard.row import DEFAULT_RANKING, FLOORS, KL_GUARD, SCORES, Row, Table

if TYPE_CHECKING:
    import pandas as pd


def table(
    cases: Sequence[CaseRecords],
    *,
    lossless_bytes: Mapping[str, int] | None = None,
    ranking: str = DEFAULT_RANKING,
    machine: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
) -> Table:
    """Everything a report needs: `rows` and `settings` of the cases, and the machine they ran on with its
    noise floor by model."""
    made = rows(cases, lossless_bytes=lossless_bytes, ranking=ranking)
    return Table(tuple(made), settings(cases, ranking, noise), machine or {})


def rows(
    cases: Sequence[CaseRecords],
    *,
    lossless_bytes: Mapping[str, int] | None = None,
    ranking: str = DEFAULT_RANKING,
    read: Callable[[Path], pd.DataFrame] = read_documents,
) -> list[Row]:
    """The rows of all cases, best first within each model, each model followed by its two reference rows.

    `lossless_bytes` is the size of each model's ``lossless`` row (scorecard.lossless), `ranking` a key of
    SCORES; another one raises SpecError. A case whose documents cannot be compared with the baseline's
    keeps its own numbers, has no recovery and no rank, and says why in ``notes``.
    """
    if ranking not in SCORES:
        raise SpecError(f"ranking: no score '{ranking}'; {nearest(ranking, SCORES)}")
    made: list[Row] = []
    for model in dict.fromkeys(case.model for case in cases):
        group = [case for case in cases if case.model == model]
        made += _model_rows(group, (lossless_bytes or {}).get(model), ranking, read)
    return made


def settings(
    cases: Sequence[CaseRecords], ranking: str = DEFAULT_RANKING, noise: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the rows have in common; lists hold each value that occurs, so one entry means: all alike."""
    results = [r.result for case in cases if (r := case.records.get("evaluate")) and r.status == "ok"]
    tasks = {name: task for result in results for name, task in sorted(result["tasks"].items())}
    chosen = [result.get("settings") or {} for result in results]
    return {
        "ranking": ranking,
        "kl_guard": KL_GUARD,
        "tasks": sorted(tasks),
        "num_fewshot": _distinct(task.get("num_fewshot") for task in tasks.values()),
        "limit": _distinct(setting.get("limit") for setting in chosen),
        "dtype": _distinct(setting.get("dtype") for setting in chosen),
        "lm_eval_version": _distinct(result.get("lm_eval_version") for result in results),
        "documents": sum(task["n"] for task in tasks.values()) if tasks else None,
        "noise_floor": dict(noise or {}),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values), key=lambda value: (value is None, value))


def _model_rows(
    cases: Sequence[CaseRecords],
    lossless: int | None,
    ranking: str,
    read: Callable[[Path], pd.DataFrame],
) -> list[Row]:
    """Group by group: what was scored under other conditions than the baseline comes last."""
    own = {row.case: row for row in _with_size_ratios([own_row(case) for case in cases])}
    baseline = _baseline(own.values())
    frames = _read_all(cases, read)
    known = {case.case: conditions(case) for case in cases}
    asked = {case.case: case.gate for case in cases}
    made: list[Row] = []
    for number, names in enumerate(grouped(known, [baseline.case] if baseline else ()), start=1):
        differs = differences(known[names[0]], known[made[0].case]) if made else ()
        rows = [
            dataclasses.replace(own[name], group=number if known[name] else None, differs=differs)
            for name in names
        ]
        made += [gated(row, asked[row.case]) for row in _group_rows(rows, frames, ranking)]
        if number == 1:
            categories = _baseline_categories(cases, baseline)
            ends = reference_rows(cases[0].model, list(own.values()), baseline, categories, lossless)
            made += [scored(row) for row in ends]
    return made


def _group_rows(own: Sequence[Row], frames: Frames, ranking: str) -> list[Row]:
    baseline = _baseline(own)
    compared = [with_interval(scored(against(row, baseline, frames)), frames) for row in own]
    return sorted(with_adjusted_p(with_ranks(with_front(compared), frames, ranking)), key=_order)


def _with_size_ratios(own: Sequence[Row]) -> list[Row]:
    """A size is compared with the baseline's even where nothing was scored."""
    weighed = (row for row in own if row.runner == "baseline" and row.size_bytes)
    first = min(weighed, key=lambda row: (row.config != "baseline", row.case), default=None)
    return [
        dataclasses.replace(row, size_ratio=row.size_bytes / first.size_bytes)
        if first and first.size_bytes and row.size_bytes is not None
        else row
        for row in own
    ]


def _read_all(cases: Sequence[CaseRecords], read: Callable[[Path], pd.DataFrame]) -> Frames:
    frames: dict[str, pd.DataFrame] = {}
    unread: dict[str, str] = {}
    for case in cases:
        try:
            if case.documents is not None:
                frames[case.case] = read(case.documents)
        except ComparisonError as error:
            unread[case.case] = str(error)
    return Frames(frames, unread)


def _baseline(own: Iterable[Row]) -> Row | None:
    """The evaluated case of runner ``baseline``; with several, the one whose config has that name too."""
    found = [row for row in own if row.runner == "baseline" and row.mean_accuracy is not None]
    return min(found, key=lambda row: (row.config != "baseline", row.case), default=None)


def scored(row: Row) -> Row:
    """`row` with its scores per size. Without a measured KL the guard is not passed: floors are ``None``."""
    if not row.size_gib or row.mean_accuracy is None:
        return row
    raw = row.mean_accuracy / row.size_gib
    corrected = row.chance_corrected_accuracy
    near = row.baseline or (row.kl is not None and row.kl <= KL_GUARD)
    floors = {
        f"score_floor_{floor}": raw if near and (row.recovery or 0.0) >= floor / 100 else None
        for floor in FLOORS
    }
    return dataclasses.replace(
        row,
        score_raw=raw,
        score_chance_corrected=None if corrected is None else corrected / row.size_gib,
        **floors,  # type: ignore[arg-type]
    )


def _order(row: Row) -> tuple[bool, float, float, bool, str]:
    """Ranked rows by rank, then by accuracy per size; then evaluated ones; failed and skipped ones last."""
    unranked = float("inf") if row.rank is None else row.rank
    return row.status != "ok", unranked, -(row.score_raw or 0.0), row.mean_accuracy is None, row.case


def _baseline_categories(cases: Sequence[CaseRecords], baseline: Row | None) -> Mapping[str, int] | None:
    audited = (case.records.get("audit") for case in cases if baseline and case.case == baseline.case)
    for record in audited:
        if record is not None and record.status == "ok":
            categories: Mapping[str, int] = record.result["ledger"]["by_category"]
            return categories
    return None
