"""A case that looks for the original while it is scored: through the whole bench it finds nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bench_files
import pytest

from scorecard import isolation

pytestmark = pytest.mark.backend

MODELS = """
models:
  - set: embedded
    name: tiny-llama
    version: 1
    source: path:original
    tasks: [tiny_pairs]
    configs: [spy]
configs:
  spy: {runner: custom, folder: spy}
defaults:
  evaluation: {limit: 4}
"""
BUILD = """
partial=$(dirname "$(dirname "$OUTPUT_MODEL")")
printf "%s\\n" "$MODEL_DIR" "$(dirname "$partial")" > "$OUTPUT_MODEL/places"
"""
USER = """
import json, os
from pathlib import Path

from lm_eval.api.model import LM

ORIGIN = {origin!r}


class UserLM(LM):
    @classmethod
    def create_from_arg_obj(cls, arguments, additional=None):
        model_dir, store = Path(arguments["pretrained"], "places").read_text().split()
        places = [Path(model_dir), Path(store) / "objects", Path(ORIGIN)]
        found = [str(p) for place in places for p in place.rglob("*")]
        if found:
            raise RuntimeError(f"reached {{len(found)}} files, such as {{found[0]}}")
        return cls()

    def loglikelihood(self, requests):
        return [(-float(len(r.args[1])), False) for r in requests]

    def loglikelihood_rolling(self, requests):
        return [-1.0 for _ in requests]

    def generate_until(self, requests):
        return ["" for _ in requests]
"""


def test_neither_original_nor_other_cases_are_reached_while_scoring(tmp_path: Path) -> None:
    if isolation.available() != "namespace":
        pytest.skip("this kernel gives no namespaces to this user")
    origin = tmp_path / "original"
    shutil.copytree(bench_files.ROOT / "embedded" / "tiny-llama", origin)
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "build.sh").write_text(BUILD)
    (tmp_path / "spy" / "user.py").write_text(USER.format(origin=str(origin)))
    (tmp_path / "models.yaml").write_text(MODELS)
    done = bench_files.run_pytest(tmp_path, "-k", "spy and (compress or evaluate)")
    assert done.returncode == 0, done.stdout
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert next(row for row in rows if row["config"] == "spy")["mean_accuracy"] is not None
