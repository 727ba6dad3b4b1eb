"""Thresholds: three outcomes from intervals, and how much more it would take."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import usual
from test_report import table_of

from scorecard import score
from scorecard.errors import SpecError
from scorecard.gate import gated, judge, together, told
from scorecard.report import csv_report, json_report, terminal
from scorecard.row import Row
from scorecard.spec import GateSpec
from scorecard.speed import speedup
from scorecard.verdict import exit_code, stages

ROW = Row(
    "m-c", "m", "c", "rtn", "ok",
    size_gib=2.0, size_ratio=0.25, documents=1000, heldout_documents=64, timing_rounds=10,
    recovery=0.98, recovery_low=0.96, recovery_high=1.0,
    delta_accuracy=-0.01, delta_accuracy_low=-0.02, delta_accuracy_high=0.0,
    kl=0.1, kl_stderr=0.01, decode_speedup=1.5, decode_speedup_low=1.4, decode_speedup_high=1.6,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "passes", "fails", "undecided"),
    [
        ("recovery", 0.95, 1.01, 0.97),
        ("delta_accuracy", -0.03, 0.01, -0.015),
        ("kl", 0.13, 0.07, 0.11),
        ("decode_speedup", 1.3, 1.7, 1.55),
    ],
)
def test_an_interval_on_one_side_decides(name: str, passes: float, fails: float, undecided: float) -> None:
    for limit, outcome in ((passes, "pass"), (fails, "fail"), (undecided, "inconclusive")):
        check = judge(ROW, GateSpec(**{name: limit}))[name]
        assert (check.outcome, check.limit, check.value) == (outcome, limit, getattr(ROW, name))
        assert (check.needs is not None) == (outcome == "inconclusive")


def test_sizes_are_exact() -> None:
    checks = judge(ROW, GateSpec(size_gib=2.0, size_ratio=0.2))
    assert (checks["size_gib"].outcome, checks["size_ratio"].outcome) == ("pass", "fail")
    assert told("size_ratio", checks["size_ratio"]) == "size_ratio fail: 0.25, at most 0.2"


def test_what_was_not_measured_is_inconclusive() -> None:
    for row in (dataclasses.replace(ROW, kl=None), dataclasses.replace(ROW, kl_stderr=None)):
        check = judge(row, GateSpec(kl=0.2))["kl"]
        assert (check.outcome, check.needs) == ("inconclusive", None)
    assert told("kl", judge(dataclasses.replace(ROW, kl=None), GateSpec(kl=0.2))["kl"]) == (
        "kl inconclusive: not measured, at most 0.2"
    )


def test_all_of_them_together() -> None:
    assert together(["pass", "fail", "inconclusive"]) == "fail"
    assert together(["pass", "inconclusive"]) == "inconclusive"
    assert together(["pass", "pass"]) == "pass"
    assert gated(ROW, None) is ROW
    failed = dataclasses.replace(ROW, status="failed")
    assert gated(failed, GateSpec(kl=0.2)) is failed
    assert gated(ROW, GateSpec(kl=0.2, recovery=0.97)).gate == "inconclusive"


def test_so_many_more_documents_do_decide() -> None:
    """Δ of -0.03 against a floor of -0.04: with the documents asked for, four of five decide."""
    check = judge(
        dataclasses.replace(ROW, delta_accuracy=-0.03, delta_accuracy_low=-0.05, delta_accuracy_high=-0.01),
        GateSpec(delta_accuracy=-0.04),
    )["delta_accuracy"]
    assert check.needs is not None
    documents = 1000 + check.needs
    spread = 0.02 / 1.96 * 1000**0.5  # of one document
    estimates = np.random.default_rng(1).normal(-0.03, spread / documents**0.5, 20_000)
    decided = estimates - 1.96 * spread / documents**0.5 >= -0.04
    assert decided.mean() == pytest.approx(0.8, abs=0.02)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(-1, 1))
def test_outcomes_follow_the_interval(value: float, below: float, above: float, limit: float) -> None:
    row = dataclasses.replace(
        ROW, delta_accuracy=value, delta_accuracy_low=value - below, delta_accuracy_high=value + above
    )
    check = judge(row, GateSpec(delta_accuracy=limit))["delta_accuracy"]
    assert (check.outcome == "pass") == (value - below >= limit)
    assert (check.outcome == "fail") == (value + above <= limit and value - below < limit)
    assert check.needs is None or check.needs >= 1


def test_rows_carry_their_gate() -> None:
    cases = usual()
    gate = GateSpec(recovery=0.9, size_ratio=0.3, kl=0.2)
    cases.all = [c if c.runner == "baseline" else dataclasses.replace(c, gate=gate) for c in cases.all]
    rows = {row.config: row for row in score.rows(cases.all, read=cases.read)}
    assert rows["gptq-w4"].gate == "pass"
    assert rows["rtn-w8"].gate_checks["size_ratio"].outcome == rows["rtn-w8"].gate == "fail"
    assert rows["rtn-w2"].gate_checks["kl"].outcome == "fail"
    assert (rows["baseline"].gate, rows["awq-w4"].gate) == (None, None)


def test_every_report_shows_the_gate() -> None:
    cases = usual()
    gate = GateSpec(recovery=0.9925, size_ratio=0.3)
    cases.all = [dataclasses.replace(c, gate=gate) if c.config == "gptq-w4" else c for c in cases.all]
    table = table_of(cases)
    assert json_report.read(json_report.render(table)) == table
    jsonschema.validate(json.loads(json_report.render(table)), json_report.json_schema())
    (row,) = [line for line in terminal.render(table, 120).splitlines() if " gptq-w4 " in line]
    assert " ? " in row
    check = next(row for row in table.rows if row.config == "gptq-w4").gate_checks["recovery"]
    assert check.needs
    assert f"needs about {check.needs:,} more documents" in " ".join(terminal.render(table, 300).split())
    assert csv_report.frame(table)["gate_checks.recovery.outcome"].to_list().count("inconclusive") == 1


def test_stages_of_a_gate() -> None:
    assert stages(GateSpec(kl=1, size_ratio=1, recovery=1)) == ["evaluate", "audit"]
    assert stages(GateSpec(prefill_speedup=1)) == ["measure"]


def test_the_exit_code() -> None:
    assert (exit_code("pass"), exit_code("fail"), exit_code("6")) == (None, None, 6)
    for text in ("0", "256", "-1", "yes", ""):
        with pytest.raises(SpecError, match="write pass, fail or an exit code"):
            exit_code(text)


def test_more_rounds_tell_a_speedup_better() -> None:
    widths = []
    for rounds in (8, 200):
        generator = np.random.default_rng(rounds)
        slow = np.repeat(1 + generator.exponential(0.1, rounds), 4)
        ours, theirs = (base * slow * (1 + generator.exponential(0.1, 4 * rounds)) for base in (1.0, 1.5))
        found = speedup(list(theirs), list(ours), rounds)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[0] > 2.5 * widths[1]


def test_speedup_interval() -> None:
    """Rounds of four samples, each round slowed down as a whole for both models: the ratio stays known."""
    generator = np.random.default_rng(3)
    slow = np.repeat(generator.uniform(1, 2, 12), 4)
    ours, theirs = (slow * base * generator.normal(1, 0.01, 48) for base in (1.0, 1.5))
    found = speedup(list(theirs), list(ours), 12)
    assert found is not None
    assert found.value == pytest.approx(np.percentile(theirs, 10) / np.percentile(ours, 10))
    assert 1.4 < found.low < 1.5 < found.high < 1.6
    assert speedup([1.0], [1.0], 1) is None
    assert speedup([1.0] * 3, [1.0] * 12, 12) is None
