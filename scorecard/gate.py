"""Whether a row reaches what models.yaml asks of it: pass, fail, or not decided by so few documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from scorecard.power import more_units
from scorecard.row import GateCheck, Outcome, Row
from scorecard.spec import GateSpec

Z = 1.959964  # of a 95 % interval
_AT_MOST = ("kl", "size_gib", "size_ratio")


@dataclasses.dataclass(frozen=True)
class _Measured:
    value: float | None
    low: float | None
    high: float | None
    units: int | None = None


def gated(row: Row, spec: GateSpec | None) -> Row:
    """`row` with the outcome of each threshold of `spec`, and of all of them together."""
    if spec is None or row.status != "ok":
        return row
    checks = judge(row, spec)
    return dataclasses.replace(row, gate_checks=checks, gate=together(c.outcome for c in checks.values()))


def judge(row: Row, spec: GateSpec) -> dict[str, GateCheck]:
    """A check for each threshold that is set.

    A 95 % interval that lies wholly on one side decides, so that a wrong pass or fail has a probability of
    at most 2.5 %. What was not measured is inconclusive.
    """
    limits = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {
        name: _check(_measured(row, name), limit, at_most=name in _AT_MOST)
        for name, limit in limits.items()
        if limit is not None
    }


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """One failed check fails; else one that is not decided leaves all undecided."""
    found = set(outcomes)
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def told(name: str, check: GateCheck) -> str:
    """``kl fail: 0.31 [0.28, 0.34], at most 0.2``."""
    bound = "at most" if name in _AT_MOST else "at least"
    if check.value is None:
        return f"{name} {check.outcome}: not measured, {bound} {check.limit:g}"
    ends = "" if check.low == check.high else f" [{_short(check.low)}, {_short(check.high)}]"
    unit = "rounds" if name.endswith("speedup") else "documents"
    more = f"; needs about {check.needs:,} more {unit}" if check.needs else ""
    return f"{name} {check.outcome}: {check.value:.4g}{ends}, {bound} {check.limit:g}{more}"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _measured(row: Row, name: str) -> _Measured:
    value: float | None = getattr(row, name)
    if name in ("size_gib", "size_ratio"):
        return _Measured(value, value, value)
    if name == "kl":
        error = row.kl_stderr
        if value is None or error is None:
            return _Measured(value, None, None)
        return _Measured(value, max(0.0, value - Z * error), value + Z * error, row.heldout_documents)
    units = row.timing_rounds if name.endswith("speedup") else row.documents
    return _Measured(value, getattr(row, f"{name}_low"), getattr(row, f"{name}_high"), units)


def _check(found: _Measured, limit: float, *, at_most: bool) -> GateCheck:
    if found.value is None or found.low is None or found.high is None:
        return GateCheck("inconclusive", limit, found.value, found.low, found.high, None)
    below, above = found.high <= limit, found.low >= limit
    good, bad = (below, above) if at_most else (above, below)
    outcome: Outcome = "pass" if good else "fail" if bad else "inconclusive"
    needs = None
    if outcome == "inconclusive" and found.units:
        half = (found.value - found.low) if found.value > limit else (found.high - found.value)
        needs = more_units(found.units, half, abs(found.value - limit))
    return GateCheck(outcome, limit, found.value, found.low, found.high, needs)
