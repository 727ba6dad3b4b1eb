"""A model of a few kilobytes and a models.yaml of fake cases, for tests of everything around a backend."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scorecard.machine import ROOT

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
}
TENSOR = "model.layers.0.mlp.up_proj.weight"


def write_model(folder: Path) -> Path:
    """A model folder with one linear layer of bf16 ones."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL))
    data = struct.pack("<H", 0x3F80) * 256 * 256
    entry = {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, len(data)]}
    header = json.dumps({TENSOR: entry}).encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


def write_suite(folder: Path, configs: Mapping[str, Mapping[str, Any]], **model: Any) -> Path:
    """A models.yaml with these configs of the fake runner for the model above."""
    write_model(folder / "original")
    entry = {"set": "test", "name": "fake", "version": 1, "source": "path:original", "tasks": ["tiny_pairs"]}
    suite = {
        "models": [{**entry, "configs": ["baseline", *configs], **model}],
        "configs": {
            "baseline": {"runner": "baseline"},
            **{n: {"runner": "fake", **c} for n, c in configs.items()},
        },
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def options(folder: Path) -> list[str]:
    """Every place of a run inside ``folder``, as command line options."""
    return [
        f"--models-yaml={folder / 'models.yaml'}",
        f"--work-dir={folder / 'store'}",
        f"--models-dir={folder / 'models'}",
        f"--results-dir={folder / 'results'}",
        "--offline",
    ]


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bench in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options(folder), *arguments]
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST", "SCORECARD_", "COV_"))}
    return subprocess.run(
        command, cwd=ROOT, env={**environment, "COLUMNS": "120"}, capture_output=True, text=True, check=False
    )
