"""outer_bits: embeddings and output layer in few bits, packed after a backend, plain again for its loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_environment import compress, load_logits
from safetensors.torch import load_file, save_file
from tiny_model import make_case, write_model

from runners import _outer, rtn
from runners._rounding import Uniform, dequantize, note, quantize
from scorecard.audit import audit
from scorecard.errors import ArtifactError, SpecError
from scorecard.ledger import weigh

OUTER = ("model.embed_tokens.weight", "lm_head.weight")


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    return dequantize(quantize(weight, Uniform(bits), group), Uniform(bits), note(weight))


def in_two_files(folder: Path) -> None:
    """What a library writes for a large model: shards and their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [{n: t for n, t in tensors.items() if (n in OUTER) is outer} for outer in (True, False)]
    index: dict[str, dict[str, str]] = {"weight_map": {}}
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / _outer.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_packed_comes_back_rounded_and_nothing_else_changes(tmp_path: Path, sharded: bool) -> None:
    model = write_model(tmp_path / "model")
    out = Path(shutil.copytree(model, tmp_path / "out"))
    if sharded:
        in_two_files(out)
    before = {name: t for path in out.glob("*.safetensors") for name, t in load_file(path).items()}
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    _outer.pack(make_case("rtn"), model, out, 4, 32)
    saved = size - sum(path.stat().st_size for path in out.glob("*.safetensors"))
    of_outer = sum(before[name].numel() for name in OUTER)
    assert saved == pytest.approx(of_outer * (16 - 4 - 16 / 32) / 8, abs=600)  # headers differ
    view = _outer.restored(out)
    after = {name: t for path in view.glob("*.safetensors") for name, t in load_file(path).items()}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        expected = rounded(tensor, 4, 32) if name in OUTER else tensor
        assert torch.equal(after[name], expected), name
    assert (view / "config.json").read_bytes() == (model / "config.json").read_bytes()
    if sharded:
        names = json.loads((view / _outer.INDEX).read_text())["weight_map"]
        assert names.keys() == before.keys()
        assert all(name in load_file(view / file) for name, file in names.items())


def test_without_bits_nothing_happens(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    _outer.pack(make_case("rtn"), model, model, None, 32)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert _outer.restored(model) == model


def test_a_group_that_does_not_divide_the_row_is_the_row(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    _outer.pack(make_case("rtn"), model, model, 8, 100)
    assert load_file(model / "model.safetensors")["lm_head.scales"].shape == (320, 1)


def test_packing_twice_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    _outer.pack(make_case("rtn"), model, model, 8, 32)
    with pytest.raises(ArtifactError, match=r"holds no plain .*; write outer_bits: null"):
        _outer.pack(make_case("rtn"), model, model, 8, 32)


@pytest.mark.parametrize("tied", [False, True])
def test_rtn_has_bits_of_its_own_for_the_outer_layers(tmp_path: Path, tied: bool) -> None:
    model, out = write_model(tmp_path / "model", tied=tied), tmp_path / "out"
    case = make_case("rtn", {"bits": 2, "group_size": 32, "outer_bits": 8})
    rtn.Runner(case, model, out).compress()
    original = load_file(model / "model.safetensors")
    lm = rtn.Runner(case, None, out).load()
    for name, weight in lm.model.state_dict().items():
        if name in OUTER:
            source = OUTER[0] if tied else name
            assert torch.equal(weight, rounded(original[source], 8, 32))
        elif "proj" in name:
            assert torch.equal(weight, rounded(original[name], 2, 32))
    claims = {"runner": "rtn", **case.config.options}
    assert not [f for f in audit(out, model, claims)["findings"] if f["level"] == "error"]
    assert weigh(out, model)["by_category"]["embeddings"] < weigh(model)["by_category"]["embeddings"] * 0.55


def test_the_audit_asks_for_packed_outer_layers(tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    rtn.Runner(make_case("rtn", {"group_size": 32}), model, out).compress()
    claims = {"runner": "rtn", "bits": 4, "group_size": 32, "outer_bits": 8}
    found = [f["what"] for f in audit(out, model, claims)["findings"]]
    assert any("original width although 'outer_bits: 8'" in what for what in found)


def test_rtn_takes_one_word_for_the_outer_layers_only(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="outer_bits: packs lm_head and embeddings"):
        rtn.Runner(make_case("rtn", {"outer_bits": 8, "lm_head": True}), None, tmp_path)


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "options"),
    [("bnb", {"format": "nf4"}), ("gptq", {"method": "rtn", "group_size": 32, "dequantize": True})],
)
def test_a_backend_loads_its_body_with_rounded_outer_layers(
    tmp_path: Path, runner: str, options: dict[str, object]
) -> None:
    """The artifact with 8 bits is the one without, but for weights that the rounding moves little."""
    model = write_model(tmp_path / "model")
    logits = {}
    for bits in (None, 8, 2):
        case = make_case(runner, {**options, "outer_bits": bits})
        logits[bits] = load_logits(case, compress(case, model, tmp_path / f"out{bits}"))
    near, far = ((logits[bits] - logits[None]).norm() / logits[None].norm() for bits in (8, 2))
    assert 0 < near < 0.05 < far
