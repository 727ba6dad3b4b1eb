"""torchao: a fresh load of the artifact is what transformers quantizes in memory, and what it loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from in_environment import compress, run_python
from many_cases import divergence, plain_logits, round_trip, size_of
from safetensors.torch import load_file
from tiny_model import make_case, write_model

from runners import base
from runners._shapes import Shapes
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.store import sha256_tree

pytestmark = pytest.mark.backend
DENSE = {
    "int8": ({"format": "int8"}, "q.Int8WeightOnlyConfig()"),
    "int8_layer": ({"group_size": 0}, "q.Int8WeightOnlyConfig(granularity=q.PerTensor())"),
    "int8_group": ({"group_size": 32}, "q.Int8WeightOnlyConfig(granularity=q.PerGroup(32))"),
    "int8_dynamic": ({"activations": "dynamic"}, "q.Int8DynamicActivationInt8WeightConfig()"),
    "int8_asymmetric": (
        {"activations": "asymmetric", "lm_head": True},
        "q.Int8DynamicActivationInt8WeightConfig(act_mapping_type=q.MappingType.ASYMMETRIC)",
    ),
    "float8": ({"format": "float8", "lm_head": True}, "q.Float8WeightOnlyConfig()"),
    "float8_e5m2": (
        {"format": "float8", "float8_dtype": "e5m2", "group_size": 0},
        "q.Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, granularity=q.PerTensor())",
    ),
    "nvfp4": ({"format": "nvfp4"}, "mx.NVFP4WeightOnlyConfig()"),
    "nvfp4_one_scale": (
        {"format": "nvfp4", "tensor_scale": False},
        "mx.NVFP4WeightOnlyConfig(use_dynamic_per_tensor_scale=False)",
    ),
    "intx8": (
        {"format": "intx", "bits": 8, "group_size": -1},
        "q.IntxWeightOnlyConfig(weight_dtype=torch.int8)",
    ),
}
INTX = "q.IntxWeightOnlyConfig(granularity=q.PerGroup({}), weight_dtype=torch.int{}, {})"
PACKED = {
    **{
        f"intx{bits}": ({"format": "intx", "bits": bits, "group_size": 64}, INTX.format(64, bits, ""))
        for bits in (1, 2, 5, 6, 7)
    },
    "intx3_hqq": (
        {"format": "intx", "bits": 3, "algorithm": "hqq", "lm_head": True},
        INTX.format(32, 3, "intx_choose_qparams_algorithm='hqq_scale_only'"),
    ),
    "intx4": (
        {"format": "intx", "bits": 4, "symmetric": False},
        INTX.format(32, 4, "mapping_type=q.MappingType.ASYMMETRIC"),
    ),
    "intx4_no_clipping": (
        {"format": "intx", "bits": 4, "algorithm": "no_clipping", "scale_dtype": "float32"},
        INTX.format(32, 4, "mapping_type=q.MappingType.SYMMETRIC_NO_CLIPPING_ERR, scale_dtype=torch.float32"),
    ),
    "8da4w": (
        {"format": "intx", "bits": 4, "activations": "dynamic"},
        "q.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)",
    ),
}
CASES = {**DENSE, **PACKED}
WITH_TABLE = {"format": "int8", "lm_head": True, "embeddings": True}
NARROW_TABLE = {
    "format": "intx",
    "bits": 4,
    "embeddings": True,
    "embedding_bits": 4,
    "embedding_group_size": 32,
}
OWN = {"with_table": WITH_TABLE, "narrow_table": NARROW_TABLE, "excluded": {"exclude": ["*.0.mlp.*"]}}
# The library's config of each case, given to transformers; and the artifacts, given to transformers.
LIBRARY = """
import json, sys, torch
from pathlib import Path
from fresh_logits import logits
from torchao import quantization as q
from torchao.prototype import mx_formats as mx
from transformers import AutoModelForCausalLM, TorchAoConfig
folder = Path(sys.argv[2])
for name, (options, text) in json.loads(sys.argv[3]).items():
    config = TorchAoConfig(eval(text), modules_to_not_convert=[] if options.get("lm_head") else None)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", quantization_config=config)
    torch.save(logits(model.eval()), folder / f"{name}.memory.pt")
for path in json.loads(sys.argv[4]):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder / path)
        torch.save(logits(model.eval()), folder / f"{path}.library.pt")
    except KeyError:
        (folder / f"{path}.refused").touch()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchao") / "cases"


@pytest.fixture(scope="module")
def found(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Logits by case; ``original``: of the model before; the artifacts are in ``folder``."""
    options = {**{name: options for name, (options, _) in CASES.items()}, **OWN}
    logits = round_trip("torchao", options, model, folder)
    run_python("quantizers", LIBRARY, model, folder, json.dumps(CASES), json.dumps(list(options)), cwd=folder)
    return {**logits, "original": plain_logits(model)}


@pytest.mark.parametrize("name", CASES)
def test_what_loads_is_what_the_library_computed(name, found, folder):
    assert torch.equal(found[name], torch.load(folder / f"{name}.memory.pt"))


@pytest.mark.parametrize("name", [*DENSE, "with_table", "excluded"])
def test_transformers_loads_the_same(name, found, folder):
    assert torch.equal(found[name], torch.load(folder / f"{name}.library.pt"))


@pytest.mark.parametrize("name", [*PACKED, "narrow_table"])
def test_transformers_refuses_what_it_cannot_unpack(name, found, folder):
    assert (folder / f"{name}.refused").is_file()


def test_fewer_bits_lose_more_and_take_less(model, found, folder):
    losses = {name: divergence(found["original"], found[name]) for name in (*CASES, *OWN)}
    order = ["int8", "intx7", "intx6", "intx5", "intx4", "intx3_hqq", "intx2", "intx1"]
    assert [losses[name] for name in order] == sorted(losses[name] for name in order)
    assert 0 < losses["int8"] < 0.002
    assert losses["intx1"] < 3
    assert losses["int8_dynamic"] != losses["int8_asymmetric"]
    assert 0 < losses["excluded"] < losses["int8"] < losses["with_table"] < 0.005
    narrow = [size_of(folder / f"intx{bits}") for bits in (1, 2, 5, 6, 7, 8)]
    assert narrow == sorted(narrow)
    assert size_of(folder / "narrow_table") < 0.42 * size_of(model)


def test_what_is_stored(found, folder):
    for name, options in {**{name: options for name, (options, _) in CASES.items()}, **OWN}.items():
        stored = load_file(folder / name / "model.safetensors")
        assert ("lm_head.weight" in stored) is not options.get("lm_head", False)
        assert ("model.embed_tokens.weight" in stored) is not options.get("embeddings", False)
        assert {path.suffix for path in (folder / name).iterdir()} == {".json", ".safetensors"}
    codes = load_file(folder / "intx5" / "model.safetensors")["model.layers.0.mlp.down_proj._weight_packed"]
    assert codes.shape == (128, 256 * 5 // 8)


def test_the_same_bytes_in_another_process(tmp_path, model, found, folder):
    again = compress(make_case("torchao", NARROW_TABLE), model, tmp_path / "again", fresh=True)
    assert sha256_tree(again) == sha256_tree(folder / "narrow_table")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "intx"}, "bits: intx needs a width"),
        ({"bits": 4}, "bits: int8 has no such thing; write format: intx"),
        ({"format": "nvfp4", "group_size": 32}, "group_size: nvfp4 has no such thing"),
        ({"format": "mxfp4"}, "activations: mxfp4 rounds them as well"),
        ({"format": "int4", "activations": "dynamic"}, "activations: int4 rounds none"),
        ({"format": "int4", "group_size": 48}, "group_size: int4 cannot do 48"),
        ({"format": "int4", "algorithm": "no_clipping"}, "algorithm: int4 has no"),
        ({"format": "intx", "bits": 4, "group_size": 0}, "group_size: intx has no scale for the whole"),
        ({"format": "intx", "bits": 1, "algorithm": "no_clipping"}, "no positive level"),
        ({"format": "intx", "bits": 4, "algorithm": "hqq", "symmetric": False}, "knows no zero points"),
        ({"format": "float8", "activations": "asymmetric"}, "float8 has no 'asymmetric'"),
        ({"activations": "dynamic", "group_size": 32}, "a row or the layer; write -1 or 0"),
        ({"format": "float8", "float8_dtype": "e5m2", "activations": "dynamic"}, "e4m3fn only"),
        ({"group_size": -2}, "group_size: -2 is no number"),
        ({"embedding_bits": 4}, "embedding_bits: without effect"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        base.get("torchao").parse(options, "configs.config")


@pytest.mark.parametrize(
    "chosen", [("int4", "none"), ("float8", "dynamic"), ("nvfp4", "dynamic"), ("mxfp8", "dynamic")]
)
def test_formats_for_gpus_are_refused_elsewhere(chosen, tmp_path, monkeypatch):
    case = make_case("torchao", {"format": chosen[0], "activations": chosen[1]})
    monkeypatch.setattr(machine, "device", lambda: "cpu")
    with pytest.raises(RunnerUnavailable, match="needs an NVIDIA GPU of compute capability"):
        base.get("torchao")(case, tmp_path, tmp_path).check()
    monkeypatch.setattr(machine, "device", lambda: "cuda")
    base.get("torchao")(case, tmp_path, tmp_path).check()


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (
            (64, 80),
            {"format": "intx", "bits": 4},
            "group_size: 32 does not divide the 80 input features of up",
        ),
        ((64, 72), {"format": "nvfp4"}, "up is 64 x 72 .* which torchao's nvfp4 cannot store"),
        ((64, 48), {"format": "mxfp8", "activations": "dynamic"}, "torchao's mxfp8 cannot store"),
        ((24, 64), {"format": "float8", "activations": "dynamic"}, "torchao's float8 cannot store"),
        ((64, 80), {"embeddings": True, "embedding_group_size": 64}, "64 does not divide the 80 features"),
    ],
)
def test_layers_that_cannot_be(size, options, message, tmp_path):
    runner = base.get("torchao")(make_case("torchao", options), tmp_path, tmp_path)
    runner.check_shapes(Shapes({"up": (64, 64)}, {}, False))
    with pytest.raises(SpecError, match=message):
        runner.check_shapes(Shapes({"up": size}, {"lm_head": size}, False))


def test_embeddings_tied_to_the_head_stay(tmp_path):
    runner = base.get("torchao")(make_case("torchao", {"embeddings": True}), tmp_path, tmp_path)
    with pytest.raises(SpecError, match="embeddings: tied to the lm_head"):
        runner.check_shapes(Shapes({}, {}, True))
