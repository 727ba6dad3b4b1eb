"""AutoRound: a fresh load of each format is what the library's documented loader makes of the artifact."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import compress, run_all, run_python
from many_cases import divergence, plain_logits
from tiny_model import make_case, write_calibration, write_model

from runners import base
from scorecard.errors import SpecError
from scorecard.spec import to_json
from scorecard.store import sha256_tree

pytestmark = pytest.mark.backend
QUICK = {"iters": 2, "samples": 4, "group_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "two": {**QUICK, "bits": 2},
    "three": {**QUICK, "bits": 3},
    "four": QUICK,
    "eight": {**QUICK, "bits": 8},
    "head": {**QUICK, "lm_head": True},
    "gptq": {**QUICK, "format": "auto_gptq"},
    "awq": {**QUICK, "format": "auto_awq", "symmetric": False},
    "packed": {**QUICK, "format": "llm_compressor"},
    "mxfp4": {"iters": 2, "samples": 4, "scheme": "MXFP4"},
}
# As transformers' documentation of auto-round and of compressed-tensors has it. For GPTQ's format the same,
# told to use auto-round; AWQ's format is read by the library that it is made for, elsewhere.
LIBRARY = """
import sys, torch
from fresh_logits import logits
from transformers import AutoModelForCausalLM, AutoRoundConfig
for folder in sys.argv[1:]:
    settings = {"quantization_config": AutoRoundConfig()} if folder.endswith("gptq") else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **settings).eval()
    torch.save(logits(model), f"{folder}.library.pt")
"""
GPTQMODEL = """
import sys, torch
from fresh_logits import logits
from gptqmodel import BACKEND, GPTQModel
for folder in sys.argv[1:]:
    torch.save(logits(GPTQModel.load(folder, device="cpu", backend=BACKEND.AUTO).model), f"{folder}.other.pt")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


@pytest.fixture(scope="module")
def folder(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of each case, and the logits of its ``load()`` in another process, NAME.pt."""
    made = tmp_path_factory.mktemp("autoround")
    requests = {name: made / f"{name}.json" for name in CASES}
    for name, options in CASES.items():
        requests[name].write_text(json.dumps(to_json(make_case("autoround", options, text))))
        (made / name).mkdir()
    for jobs in (
        [("compress", requests[name], model, made / name) for name in CASES],
        [("logits", requests[name], made / name, made / f"{name}.pt") for name in CASES],
    ):
        wrong = dict(zip(CASES, run_all("quantizers", jobs, ["auto_round"]), strict=True))
        assert {name: line for name, line in wrong.items() if line} == {}
    return made


@pytest.mark.slow
def test_what_loads_is_what_the_documented_loader_makes(folder: Path) -> None:
    names = [name for name in CASES if name != "awq"]
    run_python("quantizers", LIBRARY, *(folder / name for name in names))
    for name in names:
        assert torch.equal(logits(folder, name), torch.load(folder / f"{name}.library.pt")), name


@pytest.mark.slow
def test_other_libraries_read_their_formats_alike(folder: Path) -> None:
    run_python("gptqmodel", GPTQMODEL, folder / "gptq", folder / "awq")
    for name in ("gptq", "awq"):
        ours, other = logits(folder, name), torch.load(folder / f"{name}.other.pt")
        assert (ours - other).abs().max() < 0.02 * ours.abs().max(), name


def logits(folder: Path, name: str) -> torch.Tensor:
    found: torch.Tensor = torch.load(folder / f"{name}.pt")
    return found


@pytest.mark.slow
def test_fewer_bits_lose_more(folder: Path, model: Path) -> None:
    original = plain_logits(model)
    lost = {name: divergence(original, logits(folder, name)) for name in CASES}
    assert 0 < lost["eight"] < lost["four"] < lost["three"] < lost["two"] < 3
    for name in ("head", "gptq", "awq", "packed", "mxfp4"):
        assert lost["eight"] < lost[name] < lost["two"], name


@pytest.mark.slow
def test_artifacts_hold_packed_weights_and_nothing_else(folder: Path, model: Path) -> None:
    for name in CASES:
        assert {p.suffix for p in (folder / name).iterdir()} <= {".json", ".safetensors"}, name
    size = (folder / "four" / "model.safetensors").stat().st_size
    assert size < 0.6 * (model / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_the_same_bytes_in_another_process(folder: Path, model: Path, text: Path, tmp_path: Path) -> None:
    again = compress(make_case("autoround", CASES["three"], text), model, tmp_path / "again", fresh=True)
    assert sha256_tree(again) == sha256_tree(folder / "three")


def test_dequantized_is_the_same_model(model: Path, text: Path, tmp_path: Path) -> None:
    jobs: list[tuple[str | Path, ...]] = []
    for kind in ("three", "gptq"):
        output = tmp_path / kind
        output.mkdir()
        for dequantize in (False, True):
            options = {**CASES[kind], "iters": 0, "lm_head": True, "dequantize": dequantize}
            case = make_case("autoround", options, text)
            case = dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float32"))
            request = tmp_path / f"{kind}-{dequantize}.json"
            request.write_text(json.dumps(to_json(case)))
            if not dequantize:
                jobs.append(("compress", request, model, output))
            jobs.append(("logits", request, output, request.with_suffix(".pt")))
    assert set(run_all("quantizers", jobs, ["auto_round"])) == {""}
    for kind in ("three", "gptq"):
        packed, plain = (torch.load(tmp_path / f"{kind}-{name}.pt") for name in (False, True))
        assert (packed - plain).abs().max() < 1e-5 * packed.abs().max(), kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "auto_awq", "bits": 3}, "bits: auto_awq does not have 3; write one of 4"),
        ({"scheme": "MXFP4", "bits": 8}, "bits: MXFP4 has its own"),
        ({"scheme": "NVFP4", "format": "auto_gptq"}, "format: auto_gptq has no NVFP4"),
        ({"bits": 8, "symmetric": False}, "symmetric: 8 bits are symmetric"),
        ({"dequantize": True, "format": "llm_compressor"}, "dequantize: only for scheme int"),
        ({"iters": -1}, "iters: -1 is less than 0"),
        ({"layer_config": {"a": {"bit": 3}}}, "layer_config: 'a' has an unknown 'bit'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        base.get("autoround")(make_case("autoround", options), None, Path("nowhere"))
