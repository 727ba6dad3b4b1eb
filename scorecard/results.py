"""The end of a run: from the store's records to the table and the files that hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from scorecard import machine, score
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
    records = run.lookup(wanted)
    table = score.table(
        [_case_records(run, case, records[case.id]) for case in wanted],
        lossless_bytes=_lossless_bytes(wanted, records),
        ranking=run.options.ranking,
        machine=machine.describe(),
    )
    files = _write(run.options.results_dir, table) if write else ()
    return Summary(table, files, tuple(run.environments(wanted)))


def _with_baselines(run: Run, cases: Iterable[Case]) -> list[Case]:
    found: dict[str, Case] = {}
    for case in cases:
        baseline = run.baseline_of(case)
        found.setdefault(baseline.id, baseline)
        found[case.id] = case
    return list(found.values())


def _case_records(run: Run, case: Case, records: Mapping[Stage, Record]) -> CaseRecords:
    evaluated = records.get("evaluate")
    documents = None
    if evaluated and evaluated.status == "ok":
        documents = run.bench.store.path(evaluated.key) / "documents.parquet"
    return CaseRecords(
        case=case.id,
        model=case.model.id,
        config=case.config.name,
        runner=case.config.runner,
        records={str(stage): r for stage, r in records.items() if r.reason != NOT_RUN},
        documents=documents,
        expected=_expected(case, records),
    )


def _expected(case: Case, records: Mapping[Stage, Record]) -> str | None:
    """The reason of a declared failure that came true."""
    record = records.get(case.expect.fails) if case.expect else None
    if not case.expect or not record or record.status != "failed":
        return None
    return (
        (case.expect.reason or record.reason) if re.search(case.expect.match, record.reason or "") else None
    )


def _lossless_bytes(cases: Iterable[Case], records: Mapping[str, Mapping[Stage, Record]]) -> dict[str, int]:
    """Size of the losslessly compressed original, which the audit of a baseline works out."""
    audits = [(case.model.id, records[case.id]["audit"].result) for case in cases]
    return {model: audit["lossless_bytes"] for model, audit in audits if "lossless_bytes" in audit}


def _write(folder: Path, table: Table) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in FILES.items():
        (folder / name).write_text(FORMATS[kind](table))
    return tuple(folder / name for name in FILES)
