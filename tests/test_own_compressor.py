"""docs/write-your-own-compressor.md, followed from an empty folder to rows of the table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bench_files
import pytest

from scorecard.machine import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "own-compressor"
FILES = {"compression/compress.py": "python", "build.sh": "bash", "user.py": "python"}
MODELS = """
models:
  - set: embedded
    name: tiny-llama
    version: 1
    source: embedded:tiny-llama
    tasks: [tiny_pairs]
    configs: [baseline, custom-mine, custom-example]
configs:
  baseline: {runner: baseline}
  custom-mine: {runner: custom, folder: mine}
  custom-example: {runner: custom, folder: example}
defaults:
  evaluation: {limit: 40, dtype: float32}
"""


def test_the_page_shows_the_files_that_are_tested() -> None:
    page = (ROOT / "docs" / "write-your-own-compressor.md").read_text(encoding="utf-8")
    for name, kind in FILES.items():
        assert f"```{kind}\n{(EXAMPLE / name).read_text(encoding='utf-8')}```" in page


@pytest.mark.backend
def test_several_folders_stand_in_one_table_and_can_be_frozen(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(EXAMPLE / name, tmp_path / "mine" / name)
    ignored = shutil.ignore_patterns("output_model", "__pycache__", "results")
    shutil.copytree(ROOT / "user", tmp_path / "example", ignore=ignored)
    (tmp_path / "models.yaml").write_text(MODELS)
    done = bench_files.run_pytest(tmp_path, "-k", "not latency", "--jobs=1")
    assert done.returncode == 0, done.stdout
    rows = {r["config"]: r for r in json.loads((tmp_path / "results" / "results.json").read_text())["rows"]}
    mine, example, baseline = (rows[n] for n in ("custom-mine", "custom-example", "baseline"))
    assert example["size_bytes"] < mine["size_bytes"] < 0.6 * baseline["size_bytes"]
    assert not [n for row in (mine, example) for n in row["notes"] if "dtype" in n]  # both took it
    assert mine["mean_accuracy"] > 0.9
    assert example["mean_accuracy"] > 0.9

    command = [sys.executable, "-m", "scorecard", "freeze", "custom-mine", f"--folder={tmp_path / 'frozen'}"]
    frozen = subprocess.run(
        [*command, *bench_files.options(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert frozen.returncode == 0, frozen.stderr
    for name in FILES:
        assert (tmp_path / "frozen" / name).read_bytes() == (EXAMPLE / name).read_bytes()
