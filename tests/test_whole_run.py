"""Whole cases on the embedded model with real backends: every stage, the table, and a rerun."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import bench_files
import pytest
from test_report import documented, keys_of

pytestmark = pytest.mark.backend

MODELS = """
models:
  - set: embedded
    name: tiny-llama
    version: 1
    source: embedded:tiny-llama
    tasks: [tiny_pairs, tiny_text]
    configs: [baseline, rtn-w4-g128, rtn-w2-g128]
configs:
  baseline: {runner: baseline}
  rtn-w4-g128: {runner: rtn, bits: 4, group_size: 128}
  rtn-w2-g128: {runner: rtn, bits: 2, group_size: 128}
defaults:
  evaluation: {dtype: float32, limit: 100, heldout: "embedded:heldout", heldout_documents: 16}
  measure: {threads: 1, repeats: 2, prompt_tokens: 16, decode_tokens: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whole")
    (made / "models.yaml").write_text(MODELS)
    done = bench_files.run_pytest(made)
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout
    return made


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {r["config"]: r for r in json.loads((folder / "results" / "results.json").read_text())["rows"]}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in (folder / "store" / "objects").glob("*/*/record.json")]


def test_fewer_bits_are_smaller_and_further_from_the_original(folder: Path) -> None:
    found = rows(folder)
    order = [found[name] for name in ("baseline", "rtn-w4-g128", "rtn-w2-g128")]
    for better, worse in itertools.pairwise(order):
        assert worse["size_bytes"] < better["size_bytes"]
        assert worse["kl"] > better["kl"]
        assert worse["perplexity"] > better["perplexity"]
    assert found["baseline"]["kl"] == 0
    assert found["rtn-w4-g128"]["rank"] == 1
    assert found["rtn-w2-g128"]["score_floor_95"] is None


def test_every_number_of_a_row_is_measured(folder: Path) -> None:
    row = rows(folder)["rtn-w4-g128"]
    unmeasured = {"peak_cuda_memory_bytes", "compress_peak_cuda_memory_bytes", "gate", "reason"}
    assert {name for name, value in row.items() if value is None} <= unmeasured
    assert row["delta_accuracy_low"] <= row["delta_accuracy"] <= row["delta_accuracy_high"]


def test_scored_and_timed_stages_were_isolated(folder: Path) -> None:
    isolated = {r["stage"]: r["result"]["isolation"] for r in records(folder) if "isolation" in r["result"]}
    assert set(isolated) == {"evaluate", "measure"}
    assert set(isolated.values()) <= {"namespace", "audit-hook"}


def test_every_key_of_every_record_is_documented(folder: Path) -> None:
    for record in records(folder):
        if record["stage"] != "prepare":
            known = documented(record["stage"])
            # An empty list or a null stands for all that could be in it.
            parts = [re.split(r"\[\]|\.", key) for key in known]
            parents = {".".join(part[:n]) for part in parts for n in range(1, len(part))}
            assert keys_of(record["result"]) <= known | parents, record["stage"]
            assert keys_of(filled(record["result"])) <= known, record["stage"]


def filled(value: Any) -> Any:
    """``value`` without nulls and empty lists: what is left must be documented by its own name."""
    if isinstance(value, dict):
        return {k: filled(v) for k, v in value.items() if v is not None and v != [] and v != {}}
    return [filled(v) for v in value] if isinstance(value, list) else value


def test_a_rerun_computes_nothing_and_prints_the_same_table(folder: Path) -> None:
    events = folder / "store" / "events.jsonl"
    before, started = rows(folder), events.read_text().count('"started"')
    done = bench_files.run_pytest(folder)
    assert done.returncode == 0
    assert events.read_text().count('"started"') == started
    assert rows(folder) == before


def test_side_by_side_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    done = bench_files.run_pytest(tmp_path, "-n", "2", "-k", "not latency")
    assert done.returncode == 0, done.stdout
    for config, row in rows(tmp_path).items():
        for name in ("size_bytes", "mean_accuracy", "kl", "perplexity", "delta_accuracy"):
            assert row[name] == rows(folder)[config][name], (config, name)
