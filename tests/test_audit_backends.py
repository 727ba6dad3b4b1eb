"""The audit on what the libraries really write: good artifacts pass, and seeded faults are caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import run_python
from safetensors.torch import load_file, save_file
from tiny_model import write_calibration, write_model

from scorecard.audit import audit

pytestmark = pytest.mark.backend

QUANTIZERS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
model, output = sys.argv[1], Path(sys.argv[2])
def load(**more):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **more)
def transformers(name, config):
    load(quantization_config=config, device_map="cpu").save_pretrained(output / name)
four = {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}
stored = {"bnb_4bit_quant_storage": torch.bfloat16}
transformers("nf4", BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4", **stored))
transformers("fp4", BitsAndBytesConfig(**four, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True))
transformers("int8", BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[]))
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
transformers("torchao-int8", TorchAoConfig(Int8WeightOnlyConfig()))
transformers("torchao-float8", TorchAoConfig(Float8WeightOnlyConfig()))
groups = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
transformers("torchao-int4", TorchAoConfig(groups))
from hqq.core.quantize import BaseQuantizeConfig
from hqq.models.hf.base import AutoHQQHFModel
for bits, axis in ((4, 1), (3, 1), (2, 0)):
    made, config = load(), BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
    AutoHQQHFModel.quantize_model(made, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    AutoHQQHFModel.save_to_safetensors(made, str(output / f"hqq-{bits}"))
from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint4, qint8
for name, weights in (("quanto-int8", qint8), ("quanto-int4", qint4), ("quanto-float8", qfloat8)):
    made = QuantizedModelForCausalLM.quantize(load(), weights=weights, exclude="lm_head")
    made.save_pretrained(output / name)
import modelopt.torch.quantization as mtq
from safetensors.torch import save_file
four, eight = mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, mtq.INT8_DEFAULT_CFG
for name, config in (("modelopt-int4", four), ("modelopt-int8", eight)):
    made = mtq.quantize(load(), config, lambda model: model(torch.arange(64)[None]))
    mtq.compress(made)
    (output / name).mkdir()
    state = {k: v.data.contiguous().clone() for k, v in made.state_dict().items() if torch.is_tensor(v)}
    save_file(state, output / name / "model.safetensors")
"""
GPTQMODEL = """
import json, os, sys, tempfile
os.environ.update(GPTQMODEL_CPU_WORKERS="2", GPTQMODEL_DISABLE_PACK_EXT="1", TERM="dumb")
from pathlib import Path
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
model, output, texts = sys.argv[1], Path(sys.argv[2]).resolve(), open(sys.argv[3]).read()
tokens = [2 + ord(c) % 200 for c in texts][: 24 * 64]
sequences = [{"input_ids": tokens[i * 64 : (i + 1) * 64], "attention_mask": [1] * 64} for i in range(24)]
def quantize(name, backend=BACKEND.GPTQ_TORCH, **settings):
    os.chdir(tempfile.mkdtemp())
    made = GPTQModel.load(model, QuantizeConfig(offload_to_disk=False, **settings), device="cpu")
    made.quantize(sequences, batch_size=8, backend=backend)
    made.save(str(output / name))
grid = {"method": "gptq", "bits": 4, "group_size": 64, "sym": True}
quantize("gptq", **grid, act_group_aware=True)
quantize("gptq-3", **{**grid, "bits": 3, "sym": False}, desc_act=True)
quantize("awq", BACKEND.AWQ_TORCH, **{**grid, "method": "awq", "format": "gemm", "sym": False})
from gptqmodel.quantization.gptq import GPTQ
GPTQ.add_batch = lambda *arguments, **named: None
quantize("gptq-without-hooks", **grid)
"""
LLMCOMPRESSOR = """
import sys, torch
from pathlib import Path
from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM
model, output, texts = sys.argv[1], Path(sys.argv[2]), open(sys.argv[3]).read()
tokens = [2 + ord(c) % 200 for c in texts][: 24 * 64]
rows = [{"input_ids": tokens[i * 64 : (i + 1) * 64], "attention_mask": [1] * 64} for i in range(24)]
def compress(name, modifier, scheme, stage="main_stage", group="main_modifiers", targets="Linear"):
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    more = {"dataset": Dataset.from_list(rows), "max_seq_length": 64, "num_calibration_samples": 24}
    what = "{ignore: [lm_head], targets: %s, %s}" % (targets, scheme)
    recipe = f"{stage}:\\n  {group}:\\n    {modifier}: {what}\\n"
    oneshot(model=made, recipe=recipe, **({} if modifier == "QuantizationModifier" else more))
    made.save_pretrained(output / name, save_compressed=True)
rounding = "QuantizationModifier"
for name, scheme in (("w4", "W4A16"), ("w4-asym", "W4A16_ASYM"), ("w8a8", "W8A8"), ("fp8", "FP8_DYNAMIC"),
                     ("fp8-block", "FP8_BLOCK"), ("nvfp4", "NVFP4A16"), ("mxfp4", "MXFP4A16")):
    compress(name, rounding, f"scheme: {scheme}")
compress("gptq", "GPTQModifier", "scheme: W4A16")
compress("wanda", "WandaPruningModifier", "sparsity: 0.5", targets="['re:.*proj$']")
compress("nothing", "GPTQModifier", "scheme: W4A16", "quant", "mods")
from llmcompressor.modifiers.gptq import GPTQModifier
GPTQModifier.calibrate_module = lambda *arguments: None
compress("gptq-without-hooks", "GPTQModifier", "scheme: W4A16")
"""
UNPACK = """
import sys, torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
whole = CompressedTensorsConfig(dequantize=True)
made = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=whole, dtype=torch.float16)
made.save_pretrained(sys.argv[2])
"""
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def artifacts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder of the artifacts of an environment, made once."""
    made: dict[str, Path] = {}
    text = write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")
    codes = {"quantizers": QUANTIZERS, "gptqmodel": GPTQMODEL, "llmcompressor": LLMCOMPRESSOR}

    def make(environment: str) -> Path:
        if environment not in made:
            made[environment] = tmp_path_factory.mktemp(environment)
            run_python(environment, codes[environment], model, made[environment], text)
        return made[environment]

    return make


QUANTIZED: list[tuple[str, str, dict[str, Any]]] = [
    ("quantizers", "nf4", {"format": "nf4", "block_size": 64}),
    ("quantizers", "fp4", {"format": "fp4", "block_size": 64}),
    ("quantizers", "int8", {"format": "int8", "lm_head": True}),
    ("quantizers", "torchao-int8", {"format": "int8"}),
    ("quantizers", "torchao-float8", {"format": "float8"}),
    ("quantizers", "torchao-int4", {"bits": 4, "group_size": 32}),
    ("quantizers", "hqq-4", {"bits": 4, "group_size": 64}),
    ("quantizers", "hqq-3", {"bits": 3, "group_size": 64}),
    ("quantizers", "hqq-2", {"bits": 2}),
    ("quantizers", "quanto-int8", {"format": "qint8"}),
    ("quantizers", "quanto-int4", {"format": "qint4"}),
    ("quantizers", "quanto-float8", {"format": "qfloat8"}),
    ("quantizers", "modelopt-int4", {"bits": 4, "group_size": 128}),
    ("quantizers", "modelopt-int8", {"bits": 8}),
    ("gptqmodel", "gptq", {"runner": "gptq", "bits": 4, "group_size": 64, "symmetric": True}),
    ("gptqmodel", "gptq-3", {"runner": "gptq", "bits": 3, "group_size": 64, "symmetric": False}),
    ("gptqmodel", "awq", {"runner": "awq", "bits": 4, "group_size": 64}),
    ("llmcompressor", "w4", {"scheme": "W4A16", "group_size": 128, "symmetric": True}),
    ("llmcompressor", "w4-asym", {"scheme": "W4A16_ASYM", "symmetric": False}),
    ("llmcompressor", "w8a8", {"scheme": "W8A8", "group_size": -1}),
    ("llmcompressor", "fp8", {"scheme": "FP8_DYNAMIC"}),
    ("llmcompressor", "fp8-block", {"scheme": "FP8_BLOCK"}),
    ("llmcompressor", "nvfp4", {"scheme": "NVFP4A16", "group_size": 16}),
    ("llmcompressor", "mxfp4", {"scheme": "MXFP4A16", "group_size": 32}),
    ("llmcompressor", "gptq", {"recipe": "GPTQModifier", "bits": 4}),
]
HELD_WIDER = ("torchao-int4",)  # found, rightly, and no error


@pytest.mark.parametrize(("environment", "name", "claims"), QUANTIZED, ids=lambda value: str(value)[:20])
def test_good_artifacts_have_no_findings(
    artifacts: Make, model: Path, environment: str, name: str, claims: dict[str, Any]
) -> None:
    result = audit(artifacts(environment) / name, model, {"runner": environment, **claims})
    levels = [finding["level"] for finding in result["findings"]]
    assert levels == (["warning"] if name in HELD_WIDER else []), result["findings"]
    body = [layer for layer in result["layers"] if layer["kind"] == "linear"]
    assert len(body) == 14
    most = {2: 0.6, 3: 0.5, 4: 0.35, 8: 0.05}[body[0]["bits"]]
    assert all(0.001 < layer["relative_error"] < most for layer in body)


def errors(artifact: Path, model: Path, claims: dict[str, Any]) -> list[str]:
    found = audit(artifact, model, claims)["findings"]
    return [finding["what"] for finding in found if finding["level"] == "error"]


def test_a_recipe_that_does_nothing(artifacts: Make, model: Path) -> None:
    folder = artifacts("llmcompressor") / "nothing"
    (found,) = errors(
        folder, model, {"runner": "llmcompressor", "recipe": "quant: {mods: {GPTQModifier: {}}}"}
    )
    assert "nothing was compressed: all 14 Linear layers are stored as they were in the original" in found


def test_gptq_whose_hooks_never_fire(artifacts: Make, model: Path) -> None:
    """GPTQModel falls back to rounding, llm-compressor saves scales of uninitialised memory."""
    folder = artifacts("gptqmodel") / "gptq-without-hooks"
    (found,) = errors(folder, model, {"runner": "gptq", "bits": 4})
    assert "and 13 more: its codes are those of plain rounding" in found
    assert "GPTQ changed nothing" in found
    folder = artifacts("llmcompressor") / "gptq-without-hooks"
    assert errors(folder, model, {"runner": "llmcompressor", "recipe": "GPTQModifier"})


def test_zeros_in_a_dense_file(artifacts: Make, model: Path) -> None:
    claims = {"runner": "llmcompressor", "recipe": "WandaPruningModifier"}
    (found,) = audit(artifacts("llmcompressor") / "wanda", model, claims)["findings"]
    assert found["level"] == "warning"
    assert "50% of the weights are zero, in a dense file" in found["what"]


UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, torch.Tensor]


def zeroed(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith(f"{UP}.") and tensors[n].ndim]:
        tensors[name] = torch.zeros_like(tensors[name])


def swapped(tensors: Tensors) -> None:
    other = UP.replace("layers.0", "layers.1")
    for name in [n for n in tensors if n.startswith(f"{UP}.")]:
        twin = name.replace(UP, other)
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


def duplicated(tensors: Tensors) -> None:
    codes = max((t for n, t in tensors.items() if n.startswith(f"{UP}.")), key=lambda tensor: tensor.nbytes)
    tensors["model.copy.weight"] = codes.clone()


@pytest.mark.parametrize(
    ("environment", "name", "runner"),
    [
        ("quantizers", "nf4", "bnb"),
        ("quantizers", "hqq-4", "hqq"),
        ("gptqmodel", "gptq", "gptq"),
        ("gptqmodel", "awq", "awq"),
        ("llmcompressor", "w4", "llmcompressor"),
    ],
)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (zeroed, "all zero; compress this layer again"),
        (swapped, f"{UP} and 1 more: decodes to other weights than the original's"),
        (duplicated, "bytes are stored as"),
    ],
    ids=["zeroed", "swapped", "duplicated"],
)
def test_a_fault_in_a_real_artifact(
    artifacts: Make,
    model: Path,
    tmp_path: Path,
    environment: str,
    name: str,
    runner: str,
    fault: Callable[[Tensors], None],
    said: str,
) -> None:
    shutil.copytree(artifacts(environment) / name, tmp_path / "artifact")
    tensors = load_file(tmp_path / "artifact/model.safetensors")
    fault(tensors)
    save_file(tensors, tmp_path / "artifact/model.safetensors")
    assert said in " ".join(errors(tmp_path / "artifact", model, {"runner": runner, "bits": 4}))


def test_an_lm_head_left_out_although_asked(artifacts: Make, model: Path) -> None:
    (found,) = errors(artifacts("gptqmodel") / "gptq", model, {"runner": "gptq", "bits": 4, "lm_head": True})
    assert found == "lm_head: stored at its original width although 'lm_head: true'"


def test_float16_stored_as_int4(artifacts: Make, model: Path, tmp_path: Path) -> None:
    """What llm-compressor rounded, unpacked again by transformers and saved as it is in memory."""
    run_python("llmcompressor", UNPACK, artifacts("llmcompressor") / "w4", tmp_path / "artifact")
    (found,) = errors(tmp_path / "artifact", model, {"runner": "llmcompressor", "bits": 4})
    assert "and 13 more: only 16 values in a group, but stored in F16" in found


def test_a_tied_weight_untied(tmp_path: Path) -> None:
    original = write_model(tmp_path / "tied", tied=True)
    shutil.copytree(original, tmp_path / "artifact")
    tensors = load_file(tmp_path / "artifact/model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.01
    save_file(tensors, tmp_path / "artifact/model.safetensors")
    (found,) = errors(tmp_path / "artifact", original, {"runner": "baseline"})
    assert "the tie is broken" in found
