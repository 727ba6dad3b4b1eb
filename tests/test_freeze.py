"""What a frozen folder is made of, for every backend; tests/test_freeze_run.py builds and runs some."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_files
import pytest
from tiny_model import make_case, write_model

from runners import base
from scorecard import freeze_code, freeze_data, freeze_pins, locks
from scorecard.__main__ import main
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.freeze_code import Calibration
from scorecard.machine import ROOT
from scorecard.manifest import Claims, Manifest, TaskClaim
from scorecard.spec import CalibrationSpec, EvalSpec

COVERED = sorted(set(base.names()) - {"custom", *freeze_code.NOT_COVERED})
CALIBRATION = Calibration("", "0" * 64, 16, 1024, "1" * 64)
OPTIONS: dict[str, dict[str, Any]] = {
    "llmcompressor": {"method": "gptq", "scheme": "W4A16", "group_size": 64},
    "gptq": {"bits": 3, "dynamic": {".*down_proj": {"bits": 8}}},
    "awq": {"skip_modules": [".*o_proj"]},
    "torchao": {"format": "intx", "bits": 3},
    "rdq": {"bits": 3},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


def programs(name: str, model: Path, **changes: Any) -> dict[str, str]:
    case = make_case(name, {**OPTIONS.get(name, {}), **changes})
    case = dataclasses.replace(case, calibration=CalibrationSpec("some.jsonl", samples=16, max_length=64))
    runner = freeze_code.runner_of(case, model)
    old = runner.environment in ("autoawq", "autogptq")
    return freeze_code.programs(case, runner, CALIBRATION, old_transformers=old)


@pytest.mark.parametrize("name", COVERED)
def test_the_code_of_every_backend_stands_alone(name: str, model: Path, tmp_path: Path) -> None:
    for path, text in programs(name, model).items():
        (tmp_path / Path(path).name).write_text(text)
        assert not re.search(r"^\s*(from|import) (scorecard|runners)\b", text, re.MULTILINE)
        assert "def compress(self)" in text if path.endswith("compress.py") else "def load(self)" in text
    # F: undefined names, unused imports, names defined twice.
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(tmp_path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_options_are_written_in(model: Path) -> None:
    text = programs("gptq", model)["compression/compress.py"]
    assert "    bits: int = 3\n" in text
    assert "field(default_factory=lambda: {'.*down_proj': {'bits': 8}})" in text
    assert f"sha256='{CALIBRATION.sha256}'" in text


def test_a_recipe_is_frozen_as_its_steps(model: Path) -> None:
    text = programs("llmcompressor", model)["compression/compress.py"]
    assert "('GPTQModifier', {" in text
    assert "'group_size': 64" in text
    assert "scheme: str | None = None" in text


def test_what_is_not_covered_says_so(model: Path) -> None:
    with pytest.raises(SpecError, match="the runner 'fake' cannot be frozen: it compresses nothing"):
        programs("fake", model)
    with pytest.raises(SpecError, match=r"configs\.config\.data_collator: cannot be frozen"):
        programs("llmcompressor", model, data_collator=f"{__file__}:programs")


def test_the_evaluation_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "evaluate.py").write_text(freeze_code.evaluation())
    command = [sys.executable, "-I", str(tmp_path / "evaluate.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Score $OUTPUT_MODEL" in done.stdout


# -- data and pins -----------------------------------------------------------------------------------


def test_local_tasks_come_with_what_they_name() -> None:
    spec = EvalSpec(("tiny_facts",), task_paths=("embedded:tasks",))
    found = freeze_data.tasks(spec, ["tiny_facts"])
    assert set(found) == {"tiny_facts.yaml", "tiny_facts.jsonl", "tiny_facts_fewshot.jsonl", "data.py"}
    assert found["data.py"] == (ROOT / "embedded" / "tasks" / "data.py").read_bytes()


def test_data_that_lies_elsewhere_is_brought_and_named_anew(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "common.yaml").write_text("output_type: multiple_choice\n")
    task = tmp_path / "mine.yaml"
    task.write_text(f"task: mine\ninclude: common.yaml\ndata_files: {tmp_path}/data/mine.jsonl\n")
    found = freeze_data.tasks(EvalSpec((str(task),)), ["mine"])
    assert set(found) == {"mine.yaml", "mine.jsonl", "common.yaml"}
    assert b"data_files: tasks/mine.jsonl" in found["mine.yaml"]


def test_pins_are_exact_hashed_and_of_the_case_alone() -> None:
    text = freeze_pins.requirements(freeze_code.runner_of(make_case("rtn"), None))
    lock = locks.parse("requirements", text, "requirements.txt")
    assert {"torch", "transformers", "lm-eval", "safetensors"} <= set(lock.pins)
    assert not {"pytest", "ruff", "boto3", "bitsandbytes", "gptqmodel"} & set(lock.pins)
    assert "torch==" in lock.plain
    assert lock.hashed.count("\n") > 0.9 * len(lock.pins)
    assert "scorecard" not in text


def test_a_user_s_own_requirements_count(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "a"\ndependencies = ["filelock>=3", "torch"]\n'
    )
    assert {"filelock>=3", "torch", "scipy>=1.15"} <= set(freeze_pins.named_by(tmp_path))


# -- the manifest ------------------------------------------------------------------------------------


def test_every_key_of_the_manifest_is_described() -> None:
    page = (ROOT / "docs" / "freezing.md").read_text(encoding="utf-8").partition("## manifest.json")[2]
    for kind in (Manifest, Claims, TaskClaim):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, f"{kind.__name__}.{field.name}"


def test_a_frozen_folder_with_packages_of_its_own_is_not_built_here(tmp_path: Path) -> None:
    for name in ("build.sh", "user.py"):
        (tmp_path / name).write_text("")
    runner = base.get("custom")(make_case("custom", {"folder": str(tmp_path)}), None, tmp_path)
    for environment in ("core", "gptqmodel"):
        config = {"name": "gptq-w4", "environment": environment}
        (tmp_path / "manifest.json").write_text(json.dumps({"config": config}))
        if environment == "core":
            runner.check()
    with pytest.raises(RunnerUnavailable, match="holds the frozen case 'gptq-w4', which needs packages of"):
        runner.check()


# -- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "freeze: says no case; write the id of one, or --best"),
        (["nothing"], "freeze: there is no case 'nothing'; "),
        (["a-4"], "compress is not run yet; run 'pytest -k a-4' first"),
        (["--best"], "freeze: no case has a floor-95 score"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_4(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_files.write_suite(tmp_path, {"a-4": {"bits": 4}})
    target = tmp_path / "frozen"
    options = [*bench_files.options(tmp_path), f"--folder={target}"]
    assert main(["freeze", *arguments, *options]) == 4
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not target.exists()
