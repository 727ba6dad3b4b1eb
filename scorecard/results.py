"""The end of a run: from the store's records to the table and the files that hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from scorecard import aa, machine, score
from scorecard.comparable import asked_alike
from scorecard.perform import NOT_RUN
from scorecard.records import CaseRecords
from scorecard.report import csv_report, json_report, markdown, terminal
from scorecard.row import Table
from scorecard.run import Run
from scorecard.spec import Case, Record, Stage

FORMATS: Mapping[str, Callable[[Table], str]] = {
    "text": terminal.render,
    "markdown": markdown.render,
    "csv": csv_report.render,
    "json": json_report.render,
}
FILES = {"results.json": "json", "results.csv": "csv", "results.md": "markdown"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table of a run, and the files it was written to."""

    table: Table
    files: tuple[Path, ...] = ()
    environments: tuple[str, ...] = ()

    def render(self, kind: str) -> str:
        return FORMATS[kind](self.table)

    def text(self, width: int = 120) -> str:
        lines = [terminal.render(self.table, width)]
        if self.environments:
            lines += ["", *self.environments]
        if self.files:
            lines += ["", f"written: {', '.join(map(str, self.files))}"]
        return "\n".join(lines)


def summarise(run: Run, cases: Sequence[Case], *, write: bool = True) -> Summary:
    """Rows of these cases, and of their models' baselines, from what the store has; nothing is computed."""
    wanted = _with_baselines(run, cases)
    records = run.lookup_named(wanted)
    table = score.table(
        [_case_records(run, name, case, records[name]) for name, case in wanted.items()],
        lossless_bytes=_lossless_bytes(wanted, records),
        ranking=run.options.ranking,
        machine=machine.describe(),
        noise=aa.of_models(run, {case.model.id: run.baseline_of(case) for case in cases}),
    )
    files = _write(run.options.results_dir, table) if write else ()
    return Summary(table, files, tuple(run.environments(wanted.values())))


def case_records(run: Run, case: Case) -> CaseRecords:
    """What the store has of one case; nothing is computed."""
    return _case_records(run, case.id, case, run.lookup([case])[case.id])


def _with_baselines(run: Run, cases: Iterable[Case]) -> dict[str, Case]:
    """By name, the cases and the baselines they are compared with: one more, its id with ``#2`` and so on,
    for those that are to be scored under conditions of their own."""
    found = {case.id: case for case in cases}
    for case in list(found.values()):
        baseline = run.baseline_of(case)
        same = [other for other in found.values() if other.id == baseline.id]
        if not any(asked_alike(other.evaluation, baseline.evaluation) for other in same):
            found[f"{baseline.id}#{len(same) + 1}" if same else baseline.id] = baseline
    return found


def _case_records(run: Run, name: str, case: Case, records: Mapping[Stage, Record]) -> CaseRecords:
    evaluated = records.get("evaluate")
    documents = None
    if evaluated and evaluated.status == "ok":
        documents = run.bench.store.path(evaluated.key) / "documents.parquet"
    return CaseRecords(
        case=name,
        model=case.model.id,
        config=case.config.name,
        runner=case.config.runner,
        records={str(stage): r for stage, r in records.items() if r.reason != NOT_RUN},
        documents=documents,
        expected=_expected(case, records),
        gate=case.gate,
    )


def _expected(case: Case, records: Mapping[Stage, Record]) -> str | None:
    """The reason of a declared failure that came true."""
    record = records.get(case.expect.fails) if case.expect else None
    if not case.expect or not record or record.status != "failed":
        return None
    return (
        (case.expect.reason or record.reason) if re.search(case.expect.match, record.reason or "") else None
    )


def _lossless_bytes(
    cases: Mapping[str, Case], records: Mapping[str, Mapping[Stage, Record]]
) -> dict[str, int]:
    """Size of the losslessly compressed original, which the audit of a baseline works out."""
    audits = [(case.model.id, records[name]["audit"].result) for name, case in cases.items()]
    return {model: audit["lossless_bytes"] for model, audit in audits if "lossless_bytes" in audit}


def _write(folder: Path, table: Table) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in FILES.items():
        (folder / name).write_text(FORMATS[kind](table))
    return tuple(folder / name for name in FILES)
