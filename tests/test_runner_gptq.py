"""GPTQ and AWQ of GPTQModel: what loads is what the files say, read here from their formats' descriptions."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_logits import logits
from in_environment import compress, load_logits, run_all, run_python
from safetensors.torch import load_file
from tiny_model import make_case, write_calibration, write_model

from runners import base
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.spec import to_json

pytestmark = pytest.mark.backend
LIBRARY_LOADER = """
import sys, torch
from fresh_logits import logits
from runners._gptqmodel import library
package = library()
model = package.GPTQModel.load(sys.argv[1], device="cpu", backend=package.BACKEND[sys.argv[3]]).model
torch.save(logits(model), sys.argv[2])
"""
OURS_ON = """
import json, sys, torch
from pathlib import Path
from fresh_logits import logits
from runners import base
from scorecard.spec import Case, from_json
case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
lm = base.get(case.config.runner)(case, None, Path(sys.argv[2])).load()
torch.save(logits(lm.model, torch.load(sys.argv[3])), sys.argv[4])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@pytest.fixture(scope="module")
def original(model: Path) -> torch.Tensor:
    return logits(plain(model))


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


def with_weights(model: Path, replaced: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the original with some weights put in place."""
    changed = plain(model)
    missing, unexpected = changed.load_state_dict(replaced, strict=False)
    assert not unexpected
    assert len(missing) == len(changed.state_dict()) - len(replaced)
    return logits(changed)


def by_library(output: Path, backend: str) -> torch.Tensor:
    result = output.with_name("library.pt")
    run_python("gptqmodel", LIBRARY_LOADER, output, result, backend)
    return torch.load(result)


def words(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, columns] -> its numbers of ``bits`` bits, lowest first, [rows, columns, 32 / bits]."""
    return packed.unsqueeze(-1) >> torch.arange(0, 32, bits) & (2**bits - 1)


def unpacked_gptq(stored: dict[str, torch.Tensor], name: str, bits: int) -> torch.Tensor:
    """The weight [out, in] of one module of GPTQ's format (2, 4 or 8 bits)."""
    codes = words(stored[f"{name}.qweight"], bits).transpose(1, 2).flatten(0, 1)  # [in, out]
    zeros = words(stored[f"{name}.qzeros"], bits).flatten(1) + 1  # [groups, out]
    group = stored[f"{name}.g_idx"].long()
    return ((codes - zeros[group]) * stored[f"{name}.scales"].float()[group]).T.contiguous()


def unpacked_awq(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The weight [out, in] of one module of AWQ's GEMM format: 4 bits, columns interleaved in eights."""
    places = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    codes, zeros = (
        words(stored[f"{name}.{part}"], 4)[..., places].flatten(1) for part in ("qweight", "qzeros")
    )
    scales = stored[f"{name}.scales"].float()  # [groups, out]
    size = len(codes) // len(scales)
    return ((codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)).T.contiguous()


def packed_names(stored: dict[str, torch.Tensor]) -> set[str]:
    return {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}


@pytest.mark.parametrize(
    "options",
    [
        {
            "bits": 4,
            "group_size": 32,
            "lm_head": True,
            "dynamic": {".*down_proj": {"bits": 8, "symmetric": False}, "-:.*1.*q_proj": {}},
        },
        pytest.param({"method": "rtn", "bits": 8, "group_size": -1}, marks=pytest.mark.slow),
        pytest.param({"bits": 2, "group_size": 32, "desc_act": True, "mse": 2.4}, marks=pytest.mark.slow),
        pytest.param({"group_size": 32, "symmetric": False, "gptaq_alpha": 0.25}, marks=pytest.mark.slow),
        pytest.param({"group_size": 32, "foem_beta": 0.2, "static_groups": True}, marks=pytest.mark.slow),
    ],
    ids=["dynamic", "rtn", "desc_act", "gptaq", "foem"],
)
def test_gptq_against_its_format(tmp_path, model, text, original, options):
    case = make_case("gptq", options, text)
    output = compress(case, model, tmp_path / "out")
    stored = load_file(output / "model.safetensors")
    names = packed_names(stored)
    assert ("lm_head" in names) is options.get("lm_head", False)
    assert ("model.layers.1.self_attn.q_proj" in names) is ("dynamic" not in options)
    bits = {
        name: 8 if "dynamic" in options and "down_proj" in name else options.get("bits", 4) for name in names
    }
    weights = {f"{name}.weight": unpacked_gptq(stored, name, bits[name]) for name in names}
    found = load_logits(case, output)
    loss = divergence(original, found)
    assert 0 < loss < (0.3 if options.get("bits", 4) > 2 else 1.5)
    # the kernel multiplies in another precision
    assert divergence(with_weights(model, weights), found) < 0.01 * loss + 5e-4
    assert torch.equal(found, by_library(output, "GPTQ_TORCH"))
    assert {path.name for path in output.iterdir()} == {path.name for path in model.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 5, "group_size": 64},
        {"bits": 7, "group_size": -1, "lm_head": True},
        {"bits": 3, "group_size": 32, "format": "gptq_v2"},
        {"bits": 2, "group_size": 32, "symmetric": False, "format": "gptq_v2"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_other_layouts_against_the_library(tmp_path, model, text, original, options):
    case = make_case("gptq", options, text)
    output = compress(case, model, tmp_path / "out")
    found = load_logits(case, output)
    assert torch.equal(found, by_library(output, "GPTQ_TORCH"))
    assert 0 < divergence(original, found) < {2: 1.5, 3: 0.6, 5: 0.06, 7: 0.02}[options["bits"]]


def test_gptq_dequantized_is_the_same_model(tmp_path, model, text):
    options = {"bits": 3, "group_size": 64}
    output = compress(make_case("gptq", options, text), model, tmp_path / "out")
    packed, unpacked = (
        load_logits(make_case("gptq", {**options, "dequantize": dequantize}), output)
        for dequantize in (False, True)
    )
    assert divergence(packed, unpacked) < 1e-4


def test_in_float32_the_weights_are_those_of_the_files(tmp_path, model, text):
    """``evaluation.dtype`` holds for packed and for plain layers, and rounds nothing off."""
    jobs: list[tuple[str | Path, ...]] = []
    for runner in ("gptq", "awq"):
        output = tmp_path / runner
        output.mkdir()
        for dequantize in (False, True):
            options = {"bits": 4, "group_size": 64, "samples": 8, "dequantize": dequantize}
            case = make_case(runner, options, text)
            case = dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float32"))
            request = tmp_path / f"{runner}-{dequantize}.json"
            request.write_text(json.dumps(to_json(case)))
            if not dequantize:
                jobs.append(("compress", request, model, output))
            jobs.append(("logits", request, output, request.with_suffix(".pt")))
    assert set(run_all("gptqmodel", jobs)) == {""}
    for runner, unpack in (("gptq", functools.partial(unpacked_gptq, bits=4)), ("awq", unpacked_awq)):
        stored = load_file(tmp_path / runner / "model.safetensors")
        weights = {f"{name}.weight": unpack(stored, name) for name in packed_names(stored)}
        weights |= {name: tensor for name, tensor in stored.items() if name.endswith(".weight")}
        changed = plain(model).float()
        changed.load_state_dict(weights, strict=False)
        expected = logits(changed)
        for dequantize in (False, True):
            found = torch.load(tmp_path / f"{runner}-{dequantize}.pt")
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), (runner, dequantize)


def test_gptq_beats_rounding_on_text_like_the_calibration(tmp_path, model, text):
    from runners._calibration import token_lists
    from runners._hf import load_tokenizer

    case = make_case("gptq", {}, text)
    spec = dataclasses.replace(case.calibration, seed=99)
    ids = torch.tensor(token_lists(spec, load_tokenizer(model, case), 4))
    torch.save(ids, tmp_path / "ids.pt")
    expected, losses = logits(plain(model), ids), {}
    for method in ("gptq", "rtn"):
        case = make_case("gptq", {"method": method, "bits": 3, "group_size": 64}, text)
        output = compress(case, model, tmp_path / method)
        request, result = tmp_path / f"{method}.case.json", tmp_path / f"{method}.pt"
        run_python("gptqmodel", OURS_ON, request, output, tmp_path / "ids.pt", result)
        losses[method] = divergence(expected, torch.load(result))
    assert losses["gptq"] < 0.9 * losses["rtn"]


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 32, "samples": 8},
        pytest.param(
            {"group_size": 32, "samples": 8, "symmetric": True, "skip_modules": [".*q_proj"]},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["zero_point", "symmetric"],
)
def test_awq_against_its_format(tmp_path, model, text, original, options):
    output = compress(make_case("awq", options, text), model, tmp_path / "out")
    stored = load_file(output / "model.safetensors")
    names = packed_names(stored)
    assert len(names) == (12 if "skip_modules" in options else 14)
    weights = {f"{name}.weight": unpacked_awq(stored, name) for name in names}
    weights |= {name: tensor for name, tensor in stored.items() if name.endswith(".weight")}  # scaled norms
    found = load_logits(make_case("awq", options), output)
    loss = divergence(original, found)
    assert 0 < loss < 0.2
    assert divergence(with_weights(model, weights), found) < 0.01 * loss + 5e-4
    assert torch.equal(found, by_library(output, "AWQ_TORCH"))
    unpacked = load_logits(make_case("awq", {**options, "dequantize": True}), output)
    assert divergence(found, unpacked) < 1e-4


# -- what is refused before any work ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"desc_act": True, "act_group_aware": True}, "act_group_aware: does not go with desc_act"),
        ({"method": "rtn", "mse": 2.0}, "mse: rtn has no such thing"),
        ({"damp_percent": 1.5}, "damp_percent: 1.5 is out of range"),
        ({"samples": 0}, "samples: 0 is less than 1"),
        ({"bits": 6, "format": "gptq_v2"}, "write format: gptq_p"),
        ({"dynamic": {"(": {"bits": 8}}}, "is no regular expression"),
        ({"dynamic": {".*q_proj": {"bitz": 8}}}, "unknown 'bitz'.*bits"),
        ({"dynamic": {"-:.*q_proj": {"bits": 8}}}, "write options, or '-:'"),
    ],
)
def test_gptq_options_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        base.get("gptq")(make_case("gptq", options), None, Path("nowhere"))


def test_a_pattern_must_match_a_layer_and_its_groups_must_divide(model):
    from runners._hf import shapes

    for options, message in (
        ({"dynamic": {".*q_prj": {"bits": 8}}}, "no layer matches '.*q_prj'"),
        ({"dynamic": {".*down_proj": {"group_size": 96}}}, "96 does not divide the 256"),
    ):
        case = make_case("gptq", options)
        with pytest.raises(SpecError, match=message):
            base.get("gptq")(case, model, model).check_shapes(shapes(model, case))


def test_rtn_needs_no_calibration_text():
    for method, needs in (("rtn", False), ("gptq", True)):
        case = make_case("gptq", {"method": method})
        assert base.get("gptq")(case, None, Path("nowhere")).calibrates is needs


@pytest.mark.parametrize(
    ("runner", "options"), [("awq", {"format": "gemv"}), ("gptq", {"rotation": "hadamard"})]
)
def test_what_needs_a_gpu_is_refused_without(monkeypatch, runner, options):
    monkeypatch.setattr("scorecard.machine.gpus", lambda: ())
    made = base.get(runner)(make_case(runner, options), None, Path("nowhere"))
    with pytest.raises(RunnerUnavailable, match=r"needs a GPU.*; write"):
        made.check()


def test_auto_gptq_says_who_does_the_work(tmp_path, model, caplog):
    runner = base.get("auto-gptq")(make_case("auto-gptq"), model, tmp_path / "out")
    with caplog.at_level("WARNING"), pytest.raises(SpecError, match="calibration"):  # it is given none
        runner.compress()
    assert "GPTQModel, its successor" in caplog.text
