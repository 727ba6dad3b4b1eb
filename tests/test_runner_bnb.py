"""bitsandbytes: a fresh load of the artifact is the model that the library quantized in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import compress, load_logits, run_python
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_model import make_case, write_model

from runners import base
from scorecard.errors import SpecError

pytestmark = pytest.mark.backend
IN_MEMORY = """
import json, sys, torch
from fresh_logits import logits
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
settings = json.loads(sys.argv[3])
config = BitsAndBytesConfig(**settings)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", quantization_config=config)
torch.save(logits(model.eval()), sys.argv[2])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def in_memory(model: Path, result: Path, settings: dict[str, Any]) -> torch.Tensor:
    import json

    run_python("quantizers", IN_MEMORY, model, result, json.dumps(settings))
    return torch.load(result)


FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"format": "nf4"}, {**FOUR, "bnb_4bit_quant_type": "nf4"}),
        (
            {"format": "fp4", "double_quant": True, "lm_head": True, "quant_storage": "bfloat16"},
            {
                **FOUR,
                "bnb_4bit_quant_type": "fp4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_quant_storage": "bfloat16",
                "llm_int8_skip_modules": [],
            },
        ),
        (
            {"format": "int8", "skip_modules": ["down_proj"], "threshold": 4.0},
            {
                "load_in_8bit": True,
                "llm_int8_threshold": 4.0,
                "llm_int8_skip_modules": ["lm_head", "down_proj"],
            },
        ),
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_what_loads_is_what_the_library_computed(tmp_path, model, options, settings):
    output = compress(make_case("bnb", options), model, tmp_path / "out")
    found = load_logits(make_case("bnb", options), output)
    assert torch.equal(found, in_memory(model, tmp_path / "expected.pt", settings))
    stored = load_file(output / "model.safetensors")
    head = stored["lm_head.weight"].numel() < 320 * 128
    assert head is options.get("lm_head", False)
    down = stored["model.layers.0.mlp.down_proj.weight"]
    assert (down.dtype == torch.bfloat16 and down.dim() == 2 and down.shape[1] == 256) is (
        "skip_modules" in options
    )


def test_a_block_of_another_size_is_stored_and_loaded(tmp_path, model):
    outputs = {size: tmp_path / str(size) / "out" for size in (64, 128)}
    found = {}
    for size, output in outputs.items():
        case = make_case("bnb", {"block_size": size})
        found[size] = load_logits(case, compress(case, model, output))
    name = "model.layers.0.mlp.down_proj.weight"
    for size, output in outputs.items():
        with safe_open(output / "model.safetensors", framework="pt") as file:
            assert file.get_tensor(f"{name}.absmax").numel() == 128 * 256 // size
    plain = load_logits(make_case("baseline"), model)
    losses = {size: divergence(plain, logits) for size, logits in found.items()}
    assert 0 < losses[64] < losses[128] < 10 * losses[64]


def test_evaluation_dtype_is_what_the_kernels_multiply_in(tmp_path, model):
    found = {}
    for dtype in ("bfloat16", "float32"):
        case = make_case("bnb", {"compute_dtype": dtype})
        output = compress(case, model, tmp_path / dtype / "out")
        evaluation = dataclasses.replace(case.evaluation, dtype="float32")
        found[dtype] = load_logits(dataclasses.replace(case, evaluation=evaluation), output)
    assert torch.equal(found["bfloat16"], found["float32"])


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


def test_a_layer_to_skip_must_exist(model):
    from runners._hf import shapes

    case = make_case("bnb", {"skip_modules": ["down_prj"]})
    with pytest.raises(SpecError, match="no layer is called 'down_prj'"):
        base.get("bnb")(case, model, model).check_shapes(shapes(model, case))
