"""optimum-quanto: a fresh load of the artifact is the model in memory, and what the library itself loads."""

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
    "two": {"format": "qint2"},
    "two_hqq": {"format": "qint2", "optimizer": "hqq"},
    "four": {"format": "qint4", "lm_head": True},
    "four_hqq": {"format": "qint4", "optimizer": "hqq"},
    "eight": {"format": "qint8", "exclude": ["*.1.mlp.down_proj"]},
    "float8": {"format": "qfloat8", "lm_head": True},
    "float8_fnuz": {"format": "qfloat8_e4m3fnuz"},
    "float8_e5m2": {"format": "qfloat8_e5m2"},
}
# As the library's documentation has it. Its int8 kernel needs aligned memory, which its own loader does not
# always give; and its narrow formats cannot run in torch.inference_mode.
LIBRARY = """
import json, sys, torch
from pathlib import Path
from fresh_logits import tokens
from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qtypes
from optimum.quanto.tensor import HqqOptimizer
from transformers import AutoModelForCausalLM
def logits(model):
    with torch.no_grad():
        return model(tokens()).logits.float()
folder = Path(sys.argv[2])
for name, options in json.loads(sys.argv[3]).items():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
    QuantizedModelForCausalLM.quantize(
        model,
        weights=qfloat8 if options["format"] == "qfloat8" else qtypes[options["format"]],
        optimizer=HqqOptimizer() if "optimizer" in options else None,
        exclude=options.get("exclude", []) + ([] if options.get("lm_head") else ["lm_head"]),
    )
    torch.save(logits(model), folder / f"{name}.memory.pt")
    loaded = QuantizedModelForCausalLM.from_pretrained(str(folder / name))._wrapped
    for module in loaded.modules():
        if options["format"] == "qint8" and hasattr(module, "weight_qtype"):
            module.weight._data = module.weight._data.clone()
    torch.save(logits(loaded), folder / f"{name}.library.pt")
    try:
        AutoModelForCausalLM.from_pretrained(folder / name)
        print("loaded")
    except ValueError:
        print("refused")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quanto") / "cases"


@pytest.fixture(scope="module")
def found(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Logits by case; ``original``: of the model before; the artifacts are in ``folder``."""
    return {**round_trip("quanto", CASES, model, folder), "original": plain_logits(model)}


@pytest.fixture(scope="module")
def printed(model: Path, folder: Path, found: dict[str, torch.Tensor]) -> str:
    return run_python("quantizers", LIBRARY, model, folder, json.dumps(CASES), cwd=folder)


@pytest.mark.parametrize("name", CASES)
def test_what_loads_is_what_the_library_computed_and_loads(name, found, folder, printed):
    assert torch.equal(found[name], torch.load(folder / f"{name}.memory.pt"))
    assert torch.equal(found[name], torch.load(folder / f"{name}.library.pt"))


def test_transformers_refuses_the_artifacts(printed):
    """Loading them as if they were plain weights would run, with random ones."""
    assert [line for line in printed.split() if line in ("loaded", "refused")] == ["refused"] * len(CASES)


def test_fewer_bits_lose_more_and_take_less(model, found, folder):
    losses = {name: divergence(found["original"], found[name]) for name in CASES}
    assert 0 < losses["eight"] < losses["float8"] < losses["float8_e5m2"] < losses["four"] < losses["two"] < 3
    assert losses["two_hqq"] != losses["two"]
    sizes = [size_of(folder / name) for name in ("eight", "four_hqq", "two")]
    assert sizes == sorted(sizes, reverse=True)
    assert size_of(folder / "two") < 0.4 * size_of(model)


def test_what_is_stored(found, folder):
    for name, options in CASES.items():
        stored = load_file(folder / name / "model.safetensors")
        head = any(key.startswith("lm_head.weight._data") for key in stored)
        assert head is options.get("lm_head", False)
        assert ("model.layers.1.mlp.down_proj.weight" in stored) is ("exclude" in options)
        assert {path.suffix for path in (folder / name).iterdir()} == {".json", ".safetensors"}


def test_the_same_bytes_in_another_process(tmp_path, model, found, folder):
    again = compress(make_case("quanto", CASES["two_hqq"]), model, tmp_path / "again", fresh=True)
    assert sha256_tree(again) == sha256_tree(folder / "two_hqq")


def test_options_that_cannot_be():
    with pytest.raises(SpecError, match="optimizer: qint8 has no zero point"):
        base.get("quanto").parse({"format": "qint8", "optimizer": "hqq"}, "configs.config")


def test_layers_that_cannot_be(tmp_path):
    def check(tied=False, **options):
        case, size = make_case("quanto", options), (64, 64)
        shapes = Shapes({"up": size}, {"lm_head": size}, tied)
        base.get("quanto")(case, tmp_path, tmp_path).check_shapes(shapes)

    check(exclude=["u*"])
    with pytest.raises(SpecError, match="no layer is called 'down'; write a name such as up"):
        check(exclude=["down"])
    with pytest.raises(SpecError, match="lm_head: tied"):
        check(tied=True, lm_head=True)
