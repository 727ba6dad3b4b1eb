"""From the records of cases to the rows of the score table. Pure: equal records give equal rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard import compare, resample
from scorecard.errors import ComparisonError, SpecError, nearest
from scorecard.rank import competition_ranks, pareto_front
from scorecard.records import CaseRecords, own_row
from scorecard.reference_rows import reference_rows
from scorecard.row import DEFAULT_RANKING, FLOORS, KL_GUARD, SCORES, Row, Table

if TYPE_CHECKING:
    import pandas as pd

    Frames = Mapping[str, pd.DataFrame]


def table(
    cases: Sequence[CaseRecords],
    *,
    lossless_bytes: Mapping[str, int] | None = None,
    ranking: str = DEFAULT_RANKING,
    machine: Mapping[str, Any] | None = None,
) -> Table:
    """Everything a report needs: `rows` and `settings` of the cases, and the machine they ran on."""
    made = rows(cases, lossless_bytes=lossless_bytes, ranking=ranking)
    return Table(tuple(made), settings(cases, ranking), machine or {})


def rows(
    cases: Sequence[CaseRecords],
    *,
    lossless_bytes: Mapping[str, int] | None = None,
    ranking: str = DEFAULT_RANKING,
    read: Callable[[Path], pd.DataFrame] = compare.read_documents,
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


def settings(cases: Sequence[CaseRecords], ranking: str = DEFAULT_RANKING) -> dict[str, Any]:
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
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values), key=lambda value: (value is None, value))


def _model_rows(
    cases: Sequence[CaseRecords],
    lossless: int | None,
    ranking: str,
    read: Callable[[Path], pd.DataFrame],
) -> list[Row]:
    own = [own_row(case) for case in cases]
    baseline = _baseline(own)
    frames, unread = _read_all(cases, read)
    compared = [scored(_against(row, baseline, frames, unread)) for row in own]
    ranked = _with_ranks(_with_front(compared), frames, ranking)
    categories = _baseline_categories(cases, baseline)
    ends = reference_rows(cases[0].model, own, baseline, categories, lossless)
    return sorted(ranked, key=_order) + [scored(row) for row in ends]


def _read_all(
    cases: Sequence[CaseRecords], read: Callable[[Path], pd.DataFrame]
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Each case's frame, or why there is none."""
    frames: dict[str, pd.DataFrame] = {}
    unread: dict[str, str] = {}
    for case in cases:
        try:
            if case.documents is not None:
                frames[case.case] = read(case.documents)
        except ComparisonError as error:
            unread[case.case] = str(error)
    return frames, unread


def _baseline(own: Iterable[Row]) -> Row | None:
    """The evaluated case of runner ``baseline``; with several, the one whose config has that name too."""
    found = [row for row in own if row.runner == "baseline" and row.mean_accuracy is not None]
    return min(found, key=lambda row: (row.config != "baseline", row.case), default=None)


def _against(row: Row, baseline: Row | None, frames: Frames, unread: Mapping[str, str]) -> Row:
    """`row` with what only the comparison with the baseline tells."""
    if baseline is None or row.mean_accuracy is None:
        return row
    if row.case == baseline.case:
        return dataclasses.replace(row, baseline=True, recovery=1.0 if row.mean_accuracy else None)
    try:
        if problem := unread.get(row.case) or unread.get(baseline.case):
            raise ComparisonError(problem)
        if row.case not in frames or baseline.case not in frames:
            raise ComparisonError("no per-document results; run the evaluate stage again")
        if _metrics(row) != _metrics(baseline):
            raise ComparisonError("its accuracy tasks are not the baseline's; give both the same tasks")
        found = compare.paired(frames[row.case], frames[baseline.case], _metrics(row))
    except ComparisonError as error:
        return dataclasses.replace(row, notes=(*row.notes, f"not comparable with the baseline: {error}"))
    delta = found.delta_accuracy
    return dataclasses.replace(
        row,
        recovery=row.mean_accuracy / baseline.mean_accuracy if baseline.mean_accuracy else None,
        delta_accuracy=delta.value if delta else None,
        delta_accuracy_low=delta.low if delta else None,
        delta_accuracy_high=delta.high if delta else None,
        mcnemar_p=found.mcnemar_p,
        flips=found.flips,
    )


def _metrics(row: Row) -> dict[str, str]:
    return {name: task.metric for name, task in row.tasks.items() if task.accuracy}


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


def _with_front(made: Sequence[Row]) -> list[Row]:
    points = {
        row.case: (row.size_bytes, row.mean_accuracy)
        for row in made
        if row.status == "ok" and row.size_bytes is not None and row.mean_accuracy is not None
    }
    front = pareto_front(points)
    return [dataclasses.replace(row, pareto=row.case in front) if row.case in points else row for row in made]


def _with_ranks(made: Sequence[Row], frames: Frames, ranking: str) -> list[Row]:
    compared = any(row.baseline for row in made)
    by_case = {
        row.case: row
        for row in made
        if row.status == "ok" and (row.baseline or row.delta_accuracy is not None or not compared)
    }
    scores = {case: score for case, row in by_case.items() if (score := row.score(ranking)) is not None}

    def tied(best: str, other: str) -> bool:
        return _tied(by_case[best], by_case[other], frames, ranking)

    ranks = competition_ranks(scores, tied)
    return [dataclasses.replace(row, rank=ranks.get(row.case)) for row in made]


def _tied(best: Row, other: Row, frames: Frames, ranking: str) -> bool:
    """Whether the paired 95 % interval of the difference of two scores holds 0. Sizes are exact."""
    if best.case not in frames or other.case not in frames or _metrics(best) != _metrics(other):
        return False
    try:
        pairs = compare.match(frames[best.case], frames[other.case], _metrics(best))
    except ComparisonError:
        return False
    chance = {
        task: (best.tasks[task].chance or 0.0) if ranking == "chance-corrected" else 0.0 for task in pairs
    }
    pairs = {task: values for task, values in pairs.items() if chance[task] < 1}
    weights = {task: 1 / (len(pairs) * (1 - chance[task])) for task in pairs}
    offset = sum(weights[task] * chance[task] for task in pairs)
    sizes = (1.0, 1.0) if ranking == "recovery" else (best.size_gib or 1.0, other.size_gib or 1.0)
    scales = (1 / sizes[0], 1 / sizes[1])
    return not resample.difference(pairs, weights=weights, offset=offset, scales=scales).excludes_zero


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
