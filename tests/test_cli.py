"""``runners/cli.py`` and ``python -m scorecard`` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_files
import pytest

from scorecard.machine import ROOT


def call(
    folder: Path, *arguments: str, program: tuple[str, ...] = ("runners/cli.py",)
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, started from another folder as a user may."""
    start = [str(ROOT / program[0])] if program[0].endswith(".py") else list(program)
    done = subprocess.run(
        [sys.executable, *start, *arguments, *bench_files.options(folder)],
        cwd=ROOT if program[0] == "-m" else folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "fakee"], "runner 'fakee' is unknown; did you mean 'fake'?"),
        (["--executor", "fake"], "--config: 'fake' has several; write one of w4, w2"),
        (["--executor", "fake", "--config", "w44"], "no config 'w44' of 'fake'; did you mean 'w4'?"),
        (
            ["--executor", "fake", "--model", "test.fake@2"],
            "no model 'test.fake@2'; did you mean 'test.fake@1'?",
        ),
        (["--executor", "fake", "--config", "w4", "--option", "bits"], "'bits' is not KEY=VALUE"),
        (["--executor", "fake", "--config", "w4", "--option", "bist=3"], "did you mean 'bits'?"),
        (["--executor", "fake", "--config", "w4", "--option", "bits=[3"], "is not YAML"),
        (["--executor", "fake", "--config", "w4", "--limit", "0"], "--limit: 0 is not possible"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_4(tmp_path: Path, arguments: list[str], message: str) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}, "w2": {"bits": 2}})
    code, out, err = call(tmp_path, *arguments)
    assert code == 4
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_failed_stage_is_exit_code_1_with_its_log(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"bad": {"fail": "crash"}})
    code, out, err = call(tmp_path, "--executor", "fake")
    assert code == 1
    assert "compress  failed" in out
    assert "RuntimeError: fake: was told to crash" in err


def test_list_and_report_show_what_the_store_has(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}, "w2": {"bits": 2}})
    bench_files.run_pytest(tmp_path, "-k", "w4 and (compress or size)")
    module = ("-m", "scorecard")
    code, out, err = call(tmp_path, program=(*module, "list"))
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "compress:ok audit:ok evaluate:- measure:-" in lines["test.fake@1-w4"]
    assert "compress:- audit:- evaluate:- measure:-" in lines["test.fake@1-w2"]
    code, out, err = call(tmp_path, program=(*module, "report", "--format=json", "-k", "w4"))
    assert code == 0, err
    rows = {row["config"]: row for row in json.loads(out)["rows"]}
    assert rows["w4"]["size_bytes"] > 0


def test_the_ranking_can_be_chosen(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    code, out, err = call(tmp_path, "--ranking=raw", program=("-m", "scorecard", "report"))
    assert (code, err) == (0, "")
    assert "Ranked by raw: mean accuracy per GiB" in out


def test_doctor_names_every_backend(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    code, out, err = call(tmp_path, program=("-m", "scorecard", "doctor"))
    assert code == 0, err
    said = {line.split()[0] for line in out.splitlines() if line}
    assert said >= {
        "machine",
        "gpu",
        "isolation",
        "store",
        "models",
        "baseline",
        "rtn",
        "bnb",
        "gptq",
        "custom",
    }


def test_schema_is_the_published_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scorecard", "schema"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "models.schema.json").read_text()
