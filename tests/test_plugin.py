"""The bench as a user starts it: pytest in a process of its own, on fake cases."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import bench_files
import pytest
from test_stages import working_in

from scorecard.machine import ROOT

FILES = "compress or size or audit"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "results" / "results.json").read_text())["rows"]
    return {row["config"]: row for row in rows}


def test_cases_pass_and_the_table_weighs_them(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {"bits": 4}, "w2": {"bits": 2}})
    done = bench_files.run_pytest(
        tmp_path, "-k", f"(w4 or w2) and ({FILES})", f"--junitxml={tmp_path / 'j.xml'}"
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
    rows = results(tmp_path)
    assert set(rows) >= {"baseline", "w4", "w2"}, "the baseline is weighed too"
    assert rows["w2"]["size_bytes"] < rows["w4"]["size_bytes"] < rows["baseline"]["size_bytes"]
    assert rows["w4"]["mean_accuracy"] is None
    table = [line for line in done.stdout.splitlines() if " w4 " in line]
    assert f"{rows['w4']['size_bytes'] / 2**20:.2f}" in table[0]
    properties = ET.parse(tmp_path / "j.xml").findall(".//testcase[@name]/properties/property")
    weighed = {p.get("value") for p in properties if p.get("name") == "ledger.size_bytes"}
    assert str(rows["w2"]["size_bytes"]) in weighed


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    before, after = (bench_files.run_pytest(tmp_path, "-k", FILES) for _ in range(2))
    assert before.returncode == after.returncode == 0
    events = [json.loads(x)["event"] for x in (tmp_path / "store" / "events.jsonl").read_text().splitlines()]
    assert events.count("started") == 4
    assert events.count("reused") >= 4


def test_a_failed_case_fails_alone_and_says_why(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"bad": {"fail": "crash"}, "good": {}})
    done = bench_files.run_pytest(tmp_path, "-k", FILES)
    assert done.returncode == 1
    assert "1 failed, 6 passed, 2 skipped" in done.stdout
    assert "test.fake@1-bad: compress failed: RuntimeError: fake: was told to crash" in done.stdout
    assert results(tmp_path)["bad"]["status"] == "failed"
    assert results(tmp_path)["good"]["status"] == "ok"


@pytest.mark.parametrize(
    ("fail", "match", "outcome", "status"),
    [
        ("crash", "told to crash", "1 xfailed", "expected failure"),
        ("crash", "something else", "1 failed", "failed"),
        ("", "told to crash", "1 failed", "ok"),
    ],
)
def test_a_declared_failure_is_strict(
    tmp_path: Path, fail: str, match: str, outcome: str, status: str
) -> None:
    expect = {"fails": "compress", "match": match, "reason": "known"}
    bench_files.write_suite(tmp_path, {"bad": {"fail": fail}}, expect={"bad": expect})
    done = bench_files.run_pytest(tmp_path, "-k", "bad and compress")
    assert outcome in done.stdout
    assert done.returncode == (1 if "failed" in outcome.split() else 0)
    assert results(tmp_path)["bad"]["status"] == status


def test_under_n_the_table_is_the_same_and_timings_are_refused(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {"bits": 4}, "w2": {"bits": 2}})
    alone = bench_files.run_pytest(tmp_path, "-k", FILES)
    expected = (tmp_path / "results" / "results.json").read_text()
    (tmp_path / "results" / "results.json").unlink()
    many = bench_files.run_pytest(tmp_path, "-k", f"{FILES} or latency", "-n", "2", "-rs")
    assert alone.returncode == many.returncode == 0, many.stdout
    assert (tmp_path / "results" / "results.json").read_text() == expected
    assert "timings need the machine to themselves: run without -n" in many.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "models.yaml: line 1"),
        ("models:\n- {set: a, name: b, version: 1}\n", "models.yaml: models[0]"),
        (None, "models.yaml: configs.w4: unknown option 'bitz' for runner 'fake'; did you mean 'bits'?"),
    ],
)
def test_a_wrong_models_yaml_is_one_line_and_exit_code_4(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = bench_files.write_suite(tmp_path, {"w4": {"bitz": 4}})
    if text is not None:
        path.write_text(text)
    done = bench_files.run_pytest(tmp_path)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 4
    assert len(said) == 1
    assert message in said[0]


def test_the_projects_own_tests_do_not_need_a_models_yaml(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}}).write_text("models: [")
    done = bench_files.run_pytest(tmp_path, "tests/test_graph.py", "-q", "-k", "name")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_old_name_of_a_runner_works_and_says_so(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"old": {"runner": "auto-gptq", "bits": 4}})
    done = bench_files.run_pytest(tmp_path, "--no-build", "-k", "old")
    assert done.returncode == 0, done.stdout
    assert "runner 'auto-gptq' is no longer maintained; 'gptq', its successor, does the work" in done.stdout


def test_no_build_computes_nothing(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    done = bench_files.run_pytest(tmp_path, "--no-build")
    assert "10 skipped" in done.stdout
    assert not (tmp_path / "store" / "events.jsonl").exists()


def test_ctrl_c_leaves_no_process_and_nothing_half_published(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"bad": {"fail": "hang"}, "good": {}})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *bench_files.options(tmp_path)]
    process = subprocess.Popen([*command, "-k", FILES], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    marker = str(tmp_path / "store" / "partial")
    while not working_in(marker):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 2, output
    assert "KeyboardInterrupt" in output
    assert working_in(marker) == []
    assert list((tmp_path / "store" / "partial").iterdir()) == []


def test_a_detached_option_value_is_explained(tmp_path: Path) -> None:
    path = bench_files.write_suite(tmp_path, {"w4": {}})
    command = [sys.executable, "-m", "pytest", "-p", "scorecard.plugin", "--models-yaml", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "write options with '=', as in --models-yaml=VALUE" in done.stdout + done.stderr
