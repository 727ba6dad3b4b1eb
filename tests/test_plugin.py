"""The bench as a user starts it: pytest in a process of its own, on fake cases."""

from __future__ import annotations

import dataclasses
import json
import re
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

pytestmark = pytest.mark.backend
FILES = "compress or size or audit"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "results" / "results.json").read_text())["rows"]
    return {row["config"]: row for row in rows}


def events(folder: Path) -> list[str]:
    lines = (folder / "store" / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


@dataclasses.dataclass(frozen=True)
class Ran:
    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A first run of two cases that pass."""
    folder = tmp_path_factory.mktemp("good")
    bench_files.write_suite(folder, {"w4": {"bits": 4}, "w2": {"bits": 2}})
    junit = f"--junitxml={folder / 'j.xml'}"
    return Ran(folder, bench_files.run_pytest(folder, "-k", f"(w4 or w2) and ({FILES})", junit))


def test_cases_pass_and_the_table_weighs_them(good: Ran) -> None:
    assert good.done.returncode == 0, good.done.stdout
    assert "6 passed" in good.done.stdout
    rows = results(good.folder)
    assert set(rows) >= {"baseline", "w4", "w2"}, "the baseline is weighed too"
    assert rows["w2"]["size_bytes"] < rows["w4"]["size_bytes"] < rows["baseline"]["size_bytes"]
    assert rows["w4"]["mean_accuracy"] is None
    table = [line for line in good.done.stdout.splitlines() if " w4 " in line]
    assert f"{rows['w4']['size_bytes'] / 2**20:.2f}" in table[0]
    properties = ET.parse(good.folder / "j.xml").findall(".//testcase[@name]/properties/property")
    weighed = {p.get("value") for p in properties if p.get("name") == "ledger.size_bytes"}
    assert str(rows["w2"]["size_bytes"]) in weighed


def test_a_second_run_computes_nothing_and_under_n_the_table_is_the_same(good: Ran) -> None:
    before = events(good.folder)
    assert before.count("started") == 6
    again = bench_files.run_pytest(good.folder, "-k", FILES)
    expected = (good.folder / "results" / "results.json").read_text()
    (good.folder / "results" / "results.json").unlink()
    many = bench_files.run_pytest(good.folder, "-k", f"{FILES} or latency", "-n", "2", "-rs")
    assert again.returncode == many.returncode == 0, again.stdout + many.stdout
    after = events(good.folder)[len(before) :]
    assert after.count("started") == 0
    assert after.count("reused") >= 6
    assert (good.folder / "results" / "results.json").read_text() == expected
    assert "timings need the machine to themselves: run without -n" in many.stdout


def test_side_by_side_works_on_what_is_not_there(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {"bits": 4}, "w2": {"bits": 2}})
    done = bench_files.run_pytest(tmp_path, "-k", FILES, "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout
    assert events(tmp_path).count("started") == 6


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run in which one case fails, one as it was declared, one otherwise, and one does not fail."""
    folder = tmp_path_factory.mktemp("failing")
    expect = {name: {"fails": "compress", "match": "told to crash", "reason": "known"} for name in FAILING}
    expect["other"]["match"] = "something else"
    configs = {name: {"fail": fail} for name, (fail, _, _) in FAILING.items()}
    bench_files.write_suite(folder, {"bad": {"fail": "crash"}, "good": {}, **configs}, expect=expect)
    junit = f"--junitxml={folder / 'j.xml'}"
    return Ran(folder, bench_files.run_pytest(folder, "-k", FILES, junit))


# What is told to fail, the outcome of its test, and its status.
FAILING = {
    "declared": ("crash", "xfailed", "expected failure"),
    "other": ("crash", "failed", "failed"),
    "sound": ("", "failed", "ok"),
}


def outcome(ran: Ran, name: str) -> str:
    """Of a case's test_compress, as JUnit has it."""
    cases = {case.get("name"): case for case in ET.parse(ran.folder / "j.xml").findall(".//testcase")}
    found = cases[f"test_compress[test.fake@1-{name}]"]
    if (skipped := found.find("skipped")) is not None:
        return "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"
    return "failed" if found.find("failure") is not None else "passed"


def test_a_failed_case_fails_alone_and_says_why(failing: Ran) -> None:
    assert failing.done.returncode == 1
    assert re.search(r"3 failed, 8 passed, 6 skipped, .*1 xfailed", failing.done.stdout)
    said = "test.fake@1-bad: compress failed: RuntimeError: fake: was told to crash"
    assert said in failing.done.stdout
    assert results(failing.folder)["bad"]["status"] == "failed"
    assert results(failing.folder)["good"]["status"] == "ok"
    assert [outcome(failing, name) for name in ("bad", "good")] == ["failed", "passed"]


@pytest.mark.parametrize("name", FAILING)
def test_a_declared_failure_is_strict(failing: Ran, name: str) -> None:
    _, expected, status = FAILING[name]
    assert outcome(failing, name) == expected
    assert results(failing.folder)[name]["status"] == status


def test_a_declared_failure_is_no_failed_run(failing: Ran) -> None:
    again = bench_files.run_pytest(failing.folder, "-k", "declared and compress")
    assert again.returncode == 0
    assert "1 xfailed" in again.stdout


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


def test_no_build_computes_nothing_and_the_old_name_of_a_runner_works_and_says_so(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}, "old": {"runner": "auto-gptq", "bits": 4}})
    done = bench_files.run_pytest(tmp_path, "--no-build")
    assert done.returncode == 0, done.stdout
    assert "15 skipped" in done.stdout
    assert not (tmp_path / "store" / "events.jsonl").exists()
    assert "runner 'auto-gptq' is no longer maintained; 'gptq', its successor, does the work" in done.stdout


def test_ctrl_c_leaves_no_process_and_nothing_half_published(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"bad": {"fail": "hang"}, "good": {}})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *bench_files.options(tmp_path)]
    process = subprocess.Popen(
        [*command, "-k", FILES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    marker = str(tmp_path / "store" / "partial")
    try:
        while not working_in(marker):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    finally:
        process.kill()
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
