"""The gate of a pytest run: its tests, its exit code, JUnit and results.json."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import bench_files
import pytest

pytestmark = pytest.mark.backend
GATES = "gate or audit"


def test_a_size_that_is_too_large_fails(tmp_path: Path) -> None:
    bench_files.write_suite(
        tmp_path,
        {"w4": {"bits": 4, "gate": {"size_ratio": 0.9}}, "w2": {"bits": 2}},
        gate={"size_ratio": 0.01},
    )
    done = bench_files.run_pytest(tmp_path, "-k", GATES, f"--junitxml={tmp_path / 'j.xml'}")
    assert done.returncode == 1, done.stdout
    assert "test.fake@1-w2: gate fail" in done.stdout
    assert "at most 0.01" in done.stdout
    assert "test_gate[test.fake@1-baseline]" not in done.stdout
    rows = {r["config"]: r for r in json.loads((tmp_path / "results" / "results.json").read_text())["rows"]}
    assert {name: rows[name]["gate"] for name in ("baseline", "w4", "w2")} == {
        "baseline": None, "w4": "pass", "w2": "fail",
    }  # fmt: skip
    assert rows["w2"]["gate_checks"]["size_ratio"]["limit"] == 0.01
    cases = {case.get("name"): case for case in ET.parse(tmp_path / "j.xml").findall(".//testcase")}
    properties = cases["test_gate[test.fake@1-w4]"].findall("properties/property")
    assert ("gate", "pass") in [(p.get("name"), p.get("value")) for p in properties]
    assert cases["test_gate[test.fake@1-w2]"].find("failure") is not None


@pytest.mark.parametrize(("option", "code", "outcome"), [("77", 77, "1 skipped"), ("fail", 1, "1 failed")])
def test_what_is_not_decided_has_an_exit_code_of_its_own(
    tmp_path: Path, option: str, code: int, outcome: str
) -> None:
    """Side by side nothing is timed, so that a threshold for speed is left undecided."""
    bench_files.write_suite(tmp_path, {"w4": {"gate": {"prefill_speedup": 1.0, "size_ratio": 0.9}}})
    done = bench_files.run_pytest(tmp_path, "-n1", "-k", GATES, f"--gate-inconclusive={option}")
    assert done.returncode == code, done.stdout
    assert outcome in done.stdout
    assert "prefill_speedup inconclusive: not measured, at least 1" in done.stdout


def test_without_a_gate_there_is_no_test_of_it(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    done = bench_files.run_pytest(tmp_path, "--collect-only", "-q")
    assert "test_gate" not in done.stdout
    assert "test_latency" in done.stdout


def test_another_word_for_what_is_not_decided_is_refused(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    done = bench_files.run_pytest(tmp_path, "--collect-only", "-q", "--gate-inconclusive=maybe")
    assert done.returncode == 4
    assert "--gate-inconclusive: 'maybe' is not possible; write pass, fail or an exit code" in done.stderr
