"""Models made again from quantized parts: tied heads, GPT-2's Conv1D, another dtype, torn artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from in_environment import run_python
from safetensors.torch import load_file, save_file
from tiny_model import make_case, write_model

from runners import _exclude, _rebuild
from runners._shapes import Shapes
from scorecard.errors import ArtifactError, SpecError

pytestmark = pytest.mark.backend
# GPT-2 has a tied head and Conv1D layers, whose weights lie the other way round.
GPT2 = """
import dataclasses, sys, torch
from pathlib import Path
from fresh_logits import logits
from many_cases import divergence, plain_logits
from runners import base
from runners._hf import shapes
from safetensors.torch import load_file
from tiny_model import make_case
from transformers import GPT2Config, GPT2LMHeadModel
folder = Path(sys.argv[1])
config = GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=1, n_head=2, initializer_range=0.1)
torch.manual_seed(0)
GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
original = plain_logits(folder)
for name, options in (
    ("hqq", {"bits": 8}), ("quanto", {"format": "qint8"}), ("torchao", {"format": "intx", "bits": 7})
):
    case, output = make_case(name, options), folder.with_name(name)
    output.mkdir()
    runner = base.get(name)(case, folder, output)
    runner.check_shapes(shapes(folder, case))
    runner.compress()
    stored = load_file(output / "model.safetensors")
    assert not any("c_attn.weight" == key[-13:] for key in stored), name
    assert sum("wte" in key or "lm_head" in key for key in stored) == 1, name
    model = base.get(name)(case, None, output).load().model
    assert model.lm_head.weight is model.transformer.wte.weight, name
    loss = divergence(original, logits(model))
    assert 0 < loss < 0.01, (name, loss)
    single = dataclasses.replace(case.evaluation, dtype="float32")
    wide = base.get(name)(dataclasses.replace(case, evaluation=single), None, output).load().model
    assert wide.transformer.wte.weight.dtype == torch.float32, name
    assert 0 < divergence(logits(model), logits(wide)) < 0.01, name
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def test_gpt2(tmp_path, model):
    (tmp_path / "gpt2").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path / "gpt2")
    run_python("quantizers", GPT2, tmp_path / "gpt2", cwd=tmp_path)


def test_what_is_read_is_aligned(tmp_path):
    """The tensors within this file are not."""
    tensors = {"a": torch.arange(3, dtype=torch.int8), "b": torch.arange(64, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = _rebuild.read(tmp_path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())


def test_codes_keep_their_dtype_when_read(tmp_path):
    codes = torch.ones(8).to(torch.float8_e4m3fn)
    tensors = {
        "codes": codes,
        "scale": torch.ones(8, dtype=torch.bfloat16),
        "zero": torch.ones(8).to(torch.int8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = _rebuild.read(tmp_path, torch.float32)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "codes": torch.float8_e4m3fn,
        "scale": torch.float32,
        "zero": torch.int8,
    }


def test_a_tensor_too_few_or_too_many(model):
    case = make_case("hqq")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    less = {key: tensor for key, tensor in weights.items() if key != name}
    with pytest.raises(ArtifactError, match=rf"{name} of the weights .* compress again"):
        _rebuild.fill(_rebuild.skeleton(model, case), less, model)
    with pytest.raises(ArtifactError, match=r"model\.other of the weights"):
        _rebuild.fill(_rebuild.skeleton(model, case), {**weights, "model.other": weights[name]}, model)
    _rebuild.fill(_rebuild.skeleton(model, case), weights, model)


def test_layers_to_exclude():
    shapes = Shapes({"a.up": (2, 2), "a.down": (2, 2)}, {"lm_head": (2, 2)}, False)
    case = make_case("hqq")
    assert set(_exclude.chosen(case, shapes, lm_head=True, exclude=["*.up"])) == {"a.down", "lm_head"}
    assert set(_exclude.chosen(case, shapes, lm_head=False, exclude=None)) == {"a.up", "a.down"}
    with pytest.raises(SpecError, match=r"exclude: no layer is called 'up'; write a name such as a\.up"):
        _exclude.chosen(case, shapes, lm_head=False, exclude=["up"])
