"""HQQ: a fresh load of the artifact is the model that the library quantizes, saves and loads by itself."""

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
from scorecard.errors import SpecError
from scorecard.store import sha256_tree

pytestmark = pytest.mark.backend
CASES = {
    "one": {"bits": 1, "group_size": 32},
    "ternary": {"bits": 1.58, "group_size": 64},
    "two": {"bits": 2, "group_size": 16, "optimize": "proximal_slow"},
    "three": {"bits": 3, "group_size": 64},
    "four": {"bits": 4, "group_size": 64, "lm_head": True},
    "columns": {"bits": 4, "group_size": 64, "axis": 0},
    "five": {"bits": 5, "group_size": 128, "optimize": "none"},
    "eight": {"bits": 8, "group_size": 64, "compute_dtype": "float16"},
}
SOLVED = {
    "bits": 3,
    "group_size": 64,
    "lp_norm": 1.0,
    "iters": 5,
    "round_zero": True,
    "exclude": ["*down_proj"],
}
# What the library's documentation does, but for the rotary frequencies: it casts them to the compute dtype.
LIBRARY = """
import json, sys, torch
from pathlib import Path
from fresh_logits import logits
from hqq.core import optimize
from hqq.core.quantize import BaseQuantizeConfig, Quantizer
from hqq.models.base import get_linear_tags_from_model
from hqq.models.hf.base import AutoHQQHFModel
from transformers import AutoModelForCausalLM
folder = Path(sys.argv[2])
def mended(model):
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model
for name, options in json.loads(sys.argv[3]).items():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
    if options.get("lm_head"):
        model.linear_tags = get_linear_tags_from_model(model, ignore=[])
    config = BaseQuantizeConfig(options["bits"], options["group_size"], axis=options.get("axis", 1))
    config["weight_quant_params"]["optimize"] = options.get("optimize") != "none"
    slow = options.get("optimize") == "proximal_slow"
    Quantizer.optimize_weights = (
        optimize.optimize_weights_proximal_slow if slow else optimize.optimize_weights_proximal
    )
    dtype = getattr(torch, options.get("compute_dtype", "bfloat16"))
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=dtype, device="cpu")
    torch.save(logits(mended(model)), folder / f"{name}.memory.pt")
    AutoHQQHFModel.save_quantized(model, str(folder / f"{name}.library"))
    loaded = AutoHQQHFModel.from_quantized(str(folder / f"{name}.library"), compute_dtype=dtype, device="cpu")
    torch.save(logits(mended(loaded)), folder / f"{name}.library.pt")
try:  # as if it were plain weights, which would run, with random ones
    AutoModelForCausalLM.from_pretrained(folder / name)
    print("loaded")
except (KeyError, NotImplementedError):
    print("refused")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hqq") / "cases"


@pytest.fixture(scope="module")
def found(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Logits by case; ``original``: of the model before; the artifacts are in ``folder``."""
    found = round_trip("hqq", {**CASES, "solved": SOLVED}, model, folder)
    return {**found, "original": plain_logits(model)}


@pytest.fixture(scope="module")
def printed(model: Path, folder: Path, found: dict[str, torch.Tensor]) -> str:
    return run_python("quantizers", LIBRARY, model, folder, json.dumps(CASES), cwd=folder)


@pytest.mark.parametrize("name", CASES)
def test_what_loads_is_what_the_library_computed_and_loads(name, found, folder, printed):
    assert torch.equal(found[name], torch.load(folder / f"{name}.memory.pt"))
    assert torch.equal(found[name], torch.load(folder / f"{name}.library.pt"))


def test_transformers_refuses_the_artifact(printed):
    assert printed.split()[-1] == "refused"


def test_fewer_bits_lose_more_and_take_less(model, found, folder):
    order = ("eight", "five", "four", "three", "two", "one")
    losses = [divergence(found["original"], found[name]) for name in order]
    assert 0 < losses[0] < 0.005
    assert losses == sorted(losses)
    assert losses[-1] < 3
    sizes = [size_of(folder / name) for name in ("eight", "three", "ternary", "one")]
    assert sizes == sorted(sizes, reverse=True)
    assert size_of(folder / "four") < 0.45 * size_of(model)


def test_what_is_stored(found, folder):
    for name, options in CASES.items():
        stored = load_file(folder / name / "model.safetensors")
        assert ("lm_head.W_q" in stored) is options.get("lm_head", False)
        assert "model.layers.0.mlp.down_proj.W_q" in stored
        assert {path.suffix for path in (folder / name).iterdir()} == {".json", ".safetensors"}
    stored = load_file(folder / "solved" / "model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16
    codes = "model.layers.0.mlp.up_proj.W_q"
    assert not torch.equal(stored[codes], load_file(folder / "three" / "model.safetensors")[codes])


def test_the_same_bytes_in_another_process(tmp_path, model, found, folder):
    again = compress(make_case("hqq", CASES["three"]), model, tmp_path / "again", fresh=True)
    assert sha256_tree(again) == sha256_tree(folder / "three")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 7}, "7 is not possible"),
        ({"group_size": 12}, "group_size: HQQ cannot do 12"),
        ({"lp_norm": 1.5}, "lp_norm: 1.5"),
        ({"iters": 1}, "iters: 1"),
        ({"optimize": "none", "iters": 10}, "optimize: none uses no lp_norm"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        base.get("hqq").parse(options, "configs.config")


def test_layers_that_cannot_be_stored(tmp_path):
    def check(size, tied=False, **options):
        case = make_case("hqq", options)
        base.get("hqq")(case, tmp_path, tmp_path).check_shapes(
            Shapes({"layer": size}, {"lm_head": size}, tied)
        )

    check((3, 64), group_size=96, bits=4)  # groups may go over the end of a row
    with pytest.raises(SpecError, match="64 does not divide layer"):
        check((3, 96))
    with pytest.raises(SpecError, match="3 rows of codes, and 8 of them share a byte"):
        check((3, 64), bits=1)
    with pytest.raises(SpecError, match="lm_head: tied"):
        check((64, 64), tied=True, lm_head=True)
