"""What a backend leaves alone is stored in the original's dtype, whatever it computes or is scored in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import run_all
from safetensors.torch import load_file, save_file
from tiny_model import make_case, write_calibration, write_model

from runners._hf import store_as_original
from scorecard.spec import to_json
from scorecard.store import sha256_tree

QUANTIZERS: dict[str, dict[str, Any]] = {
    "autoround": {"iters": 1, "samples": 2, "group_size": 64},
    "bnb": {"format": "nf4"},
    "modelopt": {"format": "int4_awq", "group_size": 64, "samples": 2},
}
LLMCOMPRESSOR: dict[str, dict[str, Any]] = {"llmcompressor": {"bits": 4, "group_size": 32}}


@pytest.mark.backend
@pytest.mark.parametrize(
    ("environment", "options", "imports"),
    [
        ("quantizers", QUANTIZERS, ["auto_round", "bitsandbytes"]),
        pytest.param("llmcompressor", LLMCOMPRESSOR, ["llmcompressor"], marks=pytest.mark.slow),
    ],
    ids=["quantizers", "llmcompressor"],
)
def test_bytes_depend_on_the_original_alone(
    environment: str, options: dict[str, dict[str, Any]], imports: Sequence[str], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny")
    text = write_calibration(tmp_path / "calibration.jsonl")
    outputs = {
        (name, dtype): tmp_path / f"{name}-{dtype}" for name in options for dtype in ("auto", "float32")
    }
    jobs = []
    for (name, dtype), output in outputs.items():
        case = make_case(name, options[name], text)
        case = dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype=dtype))
        output.mkdir()
        request = output.with_suffix(".json")
        request.write_text(json.dumps(to_json(case)))
        jobs.append(("compress", request, model, output))
    wrong = dict(zip(outputs, run_all(environment, jobs, imports), strict=True))
    assert {job: line for job, line in wrong.items() if line} == {}
    original = load_file(model / "model.safetensors")
    for name in options:
        auto, other = outputs[name, "auto"], outputs[name, "float32"]
        assert sha256_tree(auto) == sha256_tree(other), name
        stored = {k: t for path in auto.glob("*.safetensors") for k, t in load_file(path).items()}
        kept = {k: t for k, t in stored.items() if k in original and t.shape == original[k].shape}
        assert "model.embed_tokens.weight" in kept, name
        quantized = {torch.int8, torch.uint8}
        assert {k: t.dtype for k, t in kept.items() if t.dtype not in {torch.bfloat16, *quantized}} == {}, (
            name
        )
        assert torch.equal(kept["model.embed_tokens.weight"], original["model.embed_tokens.weight"]), name
        said = json.loads((auto / "config.json").read_text())
        assert said.get("dtype", said.get("torch_dtype")) == "bfloat16", name


def test_a_float32_copy_is_made_as_the_original(tmp_path: Path) -> None:
    for name in ("original", "artifact"):
        (tmp_path / name).mkdir()
    norm, codes = torch.rand(4).bfloat16(), torch.arange(4, dtype=torch.int32)
    save_file({"norm": norm, "b": norm.clone()}, tmp_path / "original" / "model.safetensors")
    content = {"norm": norm.float(), "scales": norm.float(), "layer.qweight": codes, "b": codes.clone()}
    save_file(content, tmp_path / "artifact" / "model.safetensors", {"format": "pt"})
    (tmp_path / "original" / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "artifact" / "config.json").write_text('{"dtype": "float32", "x": 1}')
    store_as_original(tmp_path / "original", tmp_path / "artifact")
    found = load_file(tmp_path / "artifact" / "model.safetensors")
    assert torch.equal(found["norm"], norm)
    assert found["norm"].dtype == torch.bfloat16
    assert found["scales"].dtype == torch.float32
    assert torch.equal(found["layer.qweight"], codes)
    assert torch.equal(found["b"], codes)
    assert found["b"].dtype == torch.int32  # codes under the old name stay codes
    assert json.loads((tmp_path / "artifact" / "config.json").read_text()) == {"dtype": "bfloat16", "x": 1}
