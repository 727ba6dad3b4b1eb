"""``runners/cli.py`` and ``python -m scorecard`` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bench_files
import pytest

from runners import cli
from scorecard import __main__
from scorecard.machine import ROOT
from scorecard.run import Run, from_arguments

Call = Callable[..., tuple[int, str, str]]
PROGRAMS = {"runners/cli.py": cli.main, "scorecard": __main__.main}


def started(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of runners/cli.py, started from another folder as a user may."""
    command = [sys.executable, str(ROOT / "runners" / "cli.py"), *arguments, *bench_files.options(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """The same of a program's ``main`` in this process."""

    def called(*arguments: str, program: str = "runners/cli.py") -> tuple[int, str, str]:
        code = PROGRAMS[program]([*arguments, *bench_files.options(tmp_path)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return called


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
def test_a_mistake_is_one_line_and_exit_code_4(
    tmp_path: Path, call: Call, arguments: list[str], message: str
) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}, "w2": {"bits": 2}})
    code, out, err = call(*arguments)
    assert code == 4
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_program_starts_from_anywhere(tmp_path: Path) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    code, out, err = started(tmp_path, "--executor", "fakee")
    assert (code, out, err) == (4, "", "runner 'fakee' is unknown; did you mean 'fake'?\n")


def test_a_failed_stage_is_exit_code_1_with_its_log(tmp_path: Path, call: Call) -> None:
    bench_files.write_suite(tmp_path, {"bad": {"fail": "crash"}})
    code, out, err = call("--executor", "fake", "--random-inputs")
    assert code == 1
    assert "compress  failed" in out
    assert "RuntimeError: fake: was told to crash" in err


def test_list_and_report_show_what_the_store_has(tmp_path: Path, call: Call) -> None:
    path = bench_files.write_suite(tmp_path, {"w4": {}, "w2": {"bits": 2}})
    given = {"models_yaml": path, "work_dir": tmp_path / "store", "models_dir": tmp_path / "models"}
    run = Run(from_arguments(given.get))
    run.bench.record(run.case("test.fake@1-w4"), "audit")
    run.close()
    code, out, err = call("list", program="scorecard")
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "compress:ok audit:ok evaluate:- measure:-" in lines["test.fake@1-w4"]
    assert "compress:- audit:- evaluate:- measure:-" in lines["test.fake@1-w2"]
    code, out, err = call("report", "--format=json", "-k", "w4", program="scorecard")
    assert code == 0, err
    rows = {row["config"]: row for row in json.loads(out)["rows"]}
    assert rows["w4"]["size_bytes"] > 0


def test_the_ranking_can_be_chosen(tmp_path: Path, call: Call) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    code, out, err = call("report", "--ranking=raw", program="scorecard")
    assert (code, err) == (0, "")
    assert "Ranked by raw: mean accuracy per GiB" in out


def test_doctor_names_every_backend(tmp_path: Path, call: Call) -> None:
    bench_files.write_suite(tmp_path, {"w4": {}})
    code, out, err = call("doctor", program="scorecard")
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


def test_schema_is_the_published_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "models.schema.json").read_text()
