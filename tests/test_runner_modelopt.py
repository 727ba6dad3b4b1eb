"""Model-Optimizer: a fresh load of the artifact is the packed model in memory, and what mto.restore makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_environment import compress, load_logits, run_python
from safetensors.torch import load_file
from tiny_model import make_case, write_calibration, write_model

from runners import base
from scorecard.errors import RunnerUnavailable, SpecError

pytestmark = pytest.mark.backend
# argv: MODEL CALIBRATION FOLDER PRESET; memory.pt: the packed model's logits, library.pt: after mto.restore
IN_MEMORY = """
import sys, torch
from pathlib import Path
from fresh_logits import logits
from tiny_model import make_case
from transformers import AutoModelForCausalLM
from modelopt.torch import opt, quantization
from runners._calibration import token_lists
from runners._hf import load_tokenizer
source, text, folder, preset = map(Path, sys.argv[1:])
case = make_case("modelopt", {}, text)
batches = torch.tensor(token_lists(case.calibration, load_tokenizer(source, case))).split(8)
model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
preset = getattr(quantization, preset.name)
quantization.quantize(model, preset, lambda m: [m(b, use_cache=False) for b in batches])
quantization.compress(model)
opt.save(model, folder / "modelopt.pth")
torch.save(logits(model), folder / "memory.pt")
plain = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
again = opt.restore(plain, folder / "modelopt.pth")
torch.save(logits(again), folder / "library.pt")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


@pytest.mark.parametrize(
    ("form", "preset", "limit"),
    [
        ("int4_awq", "INT4_AWQ_CFG", 0.3),
        pytest.param("int4", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 0.3, marks=pytest.mark.slow),
        pytest.param("int8", "INT8_WEIGHT_ONLY_CFG", 0.005, marks=pytest.mark.slow),
        pytest.param("int8_w8a8", "INT8_DEFAULT_CFG", 0.02, marks=pytest.mark.slow),
        ("int8_smoothquant", "INT8_SMOOTHQUANT_CFG", 0.4),
        pytest.param("fp8", "FP8_DEFAULT_CFG", 0.05, marks=pytest.mark.slow),
        pytest.param("fp8_per_token", "FP8_PER_CHANNEL_PER_TOKEN_CFG", 0.05, marks=pytest.mark.slow),
    ],
)
def test_what_loads_is_what_the_library_computed(tmp_path, model, text, form, preset, limit):
    case = make_case("modelopt", {"format": form}, text)
    output = compress(case, model, tmp_path / "out")
    found = load_logits(case, output)
    run_python("quantizers", IN_MEMORY, model, text, tmp_path, preset)
    assert torch.equal(found, torch.load(tmp_path / "memory.pt"))
    assert torch.equal(found, torch.load(tmp_path / "library.pt"))
    assert 0 < divergence(load_logits(make_case("baseline"), model), found) < limit
    stored = load_file(output / "model.safetensors")
    down = stored["model.layers.0.mlp.down_proj.weight"]
    assert down.nbytes == 128 * 256 * (4 if "int4" in form else 8) // 8
    assert not list(output.glob("*.pt*"))


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4", "mxfp8"])
def test_what_needs_a_gpu_is_refused_without(monkeypatch, form):
    monkeypatch.setattr("scorecard.machine.gpus", lambda: ())
    with pytest.raises(RunnerUnavailable, match="needs a GPU; write format: fp8"):
        base.get("modelopt")(make_case("modelopt", {"format": form}), None, Path("nowhere")).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int8", "group_size": 64}, "group_size: int8 has its own"),
        ({"group_size": 33}, "no even number"),
        ({"samples": 0}, "samples: 0 is less than 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        base.get("modelopt")(make_case("modelopt", options), None, Path("nowhere"))
