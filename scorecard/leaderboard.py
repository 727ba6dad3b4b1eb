"""Many submissions, each verified on its own, in one table with shared ranks.

Only what was measured here counts. A submission is ranked if no claim of it is false; one that is refused
stands in the table with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard import compare
from scorecard.errors import ComparisonError, ScorecardError, SubmissionError
from scorecard.pairs import match
from scorecard.plain import plain
from scorecard.rank import competition_ranks
from scorecard.ranking import ALPHA, RESAMPLES
from scorecard.significance import holm
from scorecard.spec import to_json
from scorecard.verification import verify
from scorecard.verified import Report, VerifyOptions
from scorecard.verify_setup import isolated

SCHEMA, SUFFIX = 1, ".zip"
MEASURED = ("size_bytes", "code_bytes", "mean_accuracy", "mean_accuracy_stderr", "score")


@dataclass(frozen=True)
class Entry:
    """One zip: ``report``, or why it was ``refused``. ``group`` counts from 1: only entries of one group were
    measured alike. ``rank`` is ``None`` for one that is not ranked; ``shared`` ranks are those of several."""

    file: str
    report: Report | None = None
    refused: str | None = None
    group: int | None = None
    rank: int | None = None
    shared: bool = False

    @property
    def state(self) -> str:
        """``verified``, ``undecided`` (a claim could not be decided), ``false`` or ``refused``."""
        if self.report is None:
            return "refused"
        return {0: "verified", 1: "false"}.get(self.report.exit_code, "undecided")

    @property
    def score(self) -> float | None:
        """Accuracy per GiB as measured here; ``None`` where it does not count."""
        counts = self.state in ("verified", "undecided")
        return self.report.measured.get("score") if self.report and counts else None

    @property
    def lines(self) -> list[str]:
        """What is to be known beside the numbers: the reason, or the verdicts that do not hold."""
        if self.report is None:
            return [self.refused or ""]
        return [verdict.line for verdict in self.report.verdicts if verdict.holds is not True]


def leaderboard(folder: Path, options: VerifyOptions) -> list[Entry]:
    """Verify every zip of a folder; the table's entries in its order.

    Raises SubmissionError where there is no zip, SpecError where nothing isolates without ``unsafe``.
    """
    archives = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    if not archives:
        raise SubmissionError(f"{folder}: holds no {SUFFIX} file; name a folder with submissions")
    isolated(options)
    entries = []
    for place, archive in enumerate(archives, 1):
        options.say(f"verifying {plain(archive.name, 80)} ({place} of {len(archives)})")
        entries.append(_entry(archive, options))
    return ranked(entries)


def _entry(archive: Path, options: VerifyOptions) -> Entry:
    name = plain(archive.name, 120)
    try:
        return Entry(name, verify(archive, options))
    except ScorecardError as error:
        return Entry(name, refused=plain(error))


# -- ranks -------------------------------------------------------------------------------------------


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Entries with group and rank, in the order of the table: by group, ranked ones first, best first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.report is not None:
            groups.setdefault(_alike(entry.report), []).append(entry)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    made = [
        dataclasses.replace(entry, group=number)
        for number, group in enumerate(ordered, 1)
        for entry in _with_ranks(group)
    ]
    return [*made, *sorted((e for e in entries if e.report is None), key=lambda e: e.file)]


def _alike(report: Report) -> str:
    """Equal for submissions of one original that were scored under the same settings."""
    return json.dumps([report.model, report.original_sha256, dict(report.settings)], sort_keys=True)


def _with_ranks(group: Sequence[Entry]) -> list[Entry]:
    """Two entries share a rank unless their scores differ by more than chance explains (Holm's method)."""
    by_name = {str(place): entry for place, entry in enumerate(group)}
    scores = {name: score for name, entry in by_name.items() if (score := entry.score) is not None}
    ps = {(a, b): _p(by_name[a], by_name[b]) for a, b in itertools.combinations(scores, 2)}
    adjusted = holm({f"{a} {b}": p for (a, b), p in ps.items()})
    apart = {frozenset(pair) for pair in ps if adjusted[" ".join(pair)] <= ALPHA}
    ranks = competition_ranks(scores, lambda a, b: frozenset((a, b)) not in apart)
    made = [
        dataclasses.replace(
            entry, rank=ranks.get(name), shared=list(ranks.values()).count(ranks.get(name, 0)) > 1
        )
        for name, entry in by_name.items()
    ]
    return sorted(made, key=_order)


def _order(entry: Entry) -> tuple[float, float, str]:
    return (entry.rank or float("inf"), -(entry.score or 0.0), entry.file)


def _p(a: Entry, b: Entry) -> float:
    """p that two scores are equal, from the same documents; sizes are exact."""
    assert a.report
    assert b.report
    first, second = a.report, b.report
    try:
        pairs = match(first.documents, second.documents)
    except ComparisonError:
        return 0.0
    sizes = (first.measured["size_bytes"] or 1, second.measured["size_bytes"] or 1)
    return compare.draw(pairs, resamples=RESAMPLES).p(offset=0.0, scales=(1 / sizes[0], 1 / sizes[1]))


# -- what is written ---------------------------------------------------------------------------------


def as_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The table as plain data; docs/verifying.md describes its keys."""
    return {"schema": SCHEMA, "ranking": "raw", "entries": [_told(entry) for entry in entries]}


def _told(entry: Entry) -> dict[str, Any]:
    report = entry.report
    measured: Mapping[str, Any] = report.measured if report else {}
    return {
        "rank": entry.rank,
        "shared": entry.shared,
        "group": entry.group,
        "file": entry.file,
        "state": entry.state,
        "refused": entry.refused,
        "exit_code": report.exit_code if report else None,
        "sha256": report.sha256 if report else None,
        "case": report.case if report else None,
        "model": report.model if report else None,
        **{name: measured.get(name) for name in MEASURED},
        "tasks": dict(measured.get("tasks") or {}),
        "verdicts": to_json(report.verdicts) if report else [],
        "notes": list(report.notes) if report else [],
        "settings": dict(report.settings) if report else {},
    }


Cell = Callable[[Entry], str]
MARKS = {"verified": "✓", "undecided": "?", "false": "✗", "refused": "✗"}
MISSING = "–"


def columns() -> dict[str, Cell]:
    """The columns of both tables: heading and what each entry shows."""
    return {
        "#": lambda e: MISSING if e.rank is None else f"{e.rank}{'=' if e.shared else ''}",
        "submission": lambda e: e.file,
        "claims": lambda e: f"{MARKS[e.state]} {e.state}",
        "accuracy %": _accuracy,
        "bytes": lambda e: _number(e, "size_bytes", "{:,}"),
        "code": lambda e: _number(e, "code_bytes", "{:,}"),
        "score /GiB": lambda e: _number(e, "score", "{:,.1f}"),
        "case": lambda e: e.report.case if e.report else MISSING,
    }


def _number(entry: Entry, name: str, form: str) -> str:
    value = entry.report.measured.get(name) if entry.report else None
    return MISSING if value is None else form.format(value)


def _accuracy(entry: Entry) -> str:
    measured = entry.report.measured if entry.report else {}
    value, error = measured.get("mean_accuracy"), measured.get("mean_accuracy_stderr")
    if value is None:
        return MISSING
    return f"{100 * value:.2f} ± {'?' if error is None else format(100 * error, '.2f')}"


def text(entries: Sequence[Entry]) -> str:
    """The table for a terminal, and below it why entries are not ranked."""
    shown = [[heading, *(cell(entry) for entry in entries)] for heading, cell in columns().items()]
    shown = [[_cut(value) for value in column] for column in shown]
    widths = [max(map(len, column)) for column in shown]
    rows = [
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*shown, strict=True)
    ]
    below = [f"{entry.file}: {line}" for entry in entries for line in entry.lines]
    return "\n".join([*rows, *(["", *below] if below else [])])


def _cut(value: str, most: int = 40) -> str:
    return value if len(value) <= most else f"{value[: most - 1]}…"
