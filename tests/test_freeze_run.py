"""Frozen folders built in fresh environments: the same bytes and, document by document, the same scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_files
import frozen_folder
import pytest

from scorecard import sandbox
from scorecard.errors import ManifestError
from scorecard.machine import ROOT
from scorecard.manifest import read_manifest
from scorecard.submission import submit
from scorecard.verification import verify
from scorecard.verified import VerifyOptions

pytestmark = [pytest.mark.backend, pytest.mark.slow]

CONFIGS = {
    "rtn": "{runner: rtn, bits: 4}",
    "mine": f"{{runner: custom, folder: {ROOT / 'user'}}}",
    "bnb": "{runner: bnb, format: nf4, double_quant: true}",
    "gptq": "{runner: gptq, bits: 4, samples: 8, lm_head: true, dequantize: true}",
    "awq": "{runner: awq, bits: 4, samples: 8, dequantize: true}",
    "hqq": "{runner: hqq, bits: 4}",
    "rdq": "{runner: rdq, bits: 3, samples: 8}",
    "quanto": "{runner: quanto, format: qint4}",
    "torchao": "{runner: torchao, format: intx, bits: 4, group_size: 64}",
    "modelopt": "{runner: modelopt, format: int4_awq, samples: 8}",
    "autoround": "{runner: autoround, bits: 4, iters: 2, samples: 8}",
    "llmcompressor": "{runner: llmcompressor, method: gptq, scheme: W4A16, samples: 8}",
    "autoawq": "{runner: autoawq, bits: 4, samples: 8}",
}
MODELS = """
models:
  - set: embedded
    name: tiny-llama
    version: 1
    source: embedded:tiny-llama
    tasks: [tiny_pairs, tiny_facts, tiny_generate]
    configs: [baseline, {names}]
configs:
  baseline: {{runner: baseline}}
{configs}
defaults:
  evaluation: {{limit: 40, batch_size: 64}}
  calibration: {{data: "embedded:calibration", samples: 16, max_length: 128}}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    configs = "\n".join(f"  {name}: {text}" for name, text in CONFIGS.items())
    (folder / "models.yaml").write_text(MODELS.format(names=", ".join(CONFIGS), configs=configs))
    return folder


def freeze(bench: Path, name: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scorecard", "freeze", name, f"--folder={folder}", *more]
    command += bench_files.options(bench)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_stranger_gets_the_same_bytes_and_scores(bench: Path, tmp_path: Path, name: str) -> None:
    done = bench_files.run_pytest(bench, "-k", f"not latency and (baseline or 1-{name})", "--jobs=1")
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "frozen"
    frozen = freeze(bench, name, folder)
    assert frozen.returncode == 0, frozen.stderr
    made = frozen_folder.rebuild(folder, frozen_folder.environment(folder, tmp_path / "environment"))
    claims = made.manifest.claims
    assert made.different == []
    assert made.measured["size_bytes"] == claims.size_bytes == made.manifest.model_bytes
    assert made.documents == []
    assert made.compared == 120
    assert made.measured["mean_accuracy"] == pytest.approx(claims.mean_accuracy, abs=1e-9)
    assert made.measured["score"] == pytest.approx(claims.score, abs=1e-6)
    assert f"{claims.size_bytes:,} bytes" in made.said
    submit(folder, tmp_path / "a.zip")
    if sandbox.why_not() is None:
        python = tmp_path / "environment" / "bin" / "python"
        report = verify(tmp_path / "a.zip", VerifyOptions(python=python))
        assert report.exit_code == 0, [verdict.line for verdict in report.verdicts]


def test_the_folder_is_replaced_only_as_it_was_written(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    done = bench_files.run_pytest(bench, "-k", "not latency and (baseline or 1-rtn)", "--jobs=1")
    assert done.returncode == 0, done.stdout
    assert freeze(bench, "rtn", folder).returncode == 0
    first = (folder / "manifest.json").read_bytes()
    again = freeze(bench, "--best", folder, "--ranking=raw", "-k", "1-rtn")
    assert again.returncode == 0, again.stderr
    assert (folder / "manifest.json").read_bytes() == first
    (folder / "user.py").write_text("changed\n")
    refused = freeze(bench, "rtn", folder)
    assert refused.returncode == 4
    assert "user.py was changed since it was frozen" in refused.stderr
    assert freeze(bench, "rtn", folder, "--force").returncode == 0
    assert read_manifest(folder).case == "embedded.tiny-llama@1-rtn"


def test_compress_refuses_another_original_and_other_calibration_data(bench: Path, tmp_path: Path) -> None:
    done = bench_files.run_pytest(bench, "-k", "not latency and (baseline or 1-awq)", "--jobs=1")
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "frozen"
    assert freeze(bench, "awq", folder).returncode == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["original"]["config.json"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, str(folder / "compression" / "compress.py"), str(frozen_folder.ORIGINAL)]
    refused = subprocess.run(
        [*command, str(tmp_path / "out")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert refused.returncode == 1
    assert "config.json: is not that of embedded:tiny-llama" in refused.stderr
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ManifestError):
        read_manifest(folder)
