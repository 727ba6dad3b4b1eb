"""AutoAWQ: artifacts reload as they were, here and with transformers 5; both see the same original."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_logits import logits
from in_environment import compress, load_logits, run_python
from tiny_model import make_case, write_calibration, write_model

from runners import base
from runners._old_transformers import old_config, old_tokenizer_config
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SourceError, SpecError
from scorecard.spec import Case, to_json

ORIGINAL = """
import json, sys
from pathlib import Path

import torch
from fresh_logits import logits

from runners._hf import load_causal_lm, load_tokenizer
from scorecard.spec import Case, from_json

case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
torch.save(logits(load_causal_lm(Path(sys.argv[2]), case)), sys.argv[3])
print(load_tokenizer(Path(sys.argv[2]), case)("the cat")["input_ids"])
"""

COMPRESS_AND_KEEP = """
import json, sys
from pathlib import Path

import torch
from awq.models.base import BaseAWQForCausalLM
from fresh_logits import logits

from runners import autoawq
from scorecard.spec import Case, from_json

case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
save = BaseAWQForCausalLM.save_quantized
def saved(model, folder):
    save(model, folder)
    with autoawq._torch_kernels():
        torch.save(logits(model.model), sys.argv[4])
BaseAWQForCausalLM.save_quantized = saved
autoawq.Runner(case, Path(sys.argv[2]), Path(sys.argv[3])).compress()
"""

TRANSFORMERS_5 = """
import sys

import torch
from fresh_logits import logits
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16, device_map="cpu")
torch.save(logits(model.eval()), sys.argv[2])
"""


def a_case(options: dict[str, Any] | None = None, calibration: Path | None = None) -> Case:
    case = make_case("autoawq", options, calibration)
    return dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float16"))


def divergence(original: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(original || other) in nats."""
    p, q = (torch.log_softmax(x.float(), -1) for x in (original, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": -1}, "group_size: -1 is no size"),
        ({"symmetric": True}, "symmetric: not possible with format gemm; write symmetric: false"),
        ({"format": "marlin"}, "symmetric: not possible with format marlin; write symmetric: true"),
        ({"samples": 0}, "samples: 0 is too few"),
        ({"bits": 3}, "bits: 3 is not possible"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        base.get("autoawq")(a_case(options), None, Path())


def test_a_format_for_gpus_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    base.get("autoawq")(a_case(), None, Path()).check()
    with pytest.raises(RunnerUnavailable, match=r"format gemv of autoawq needs a GPU; .*format: gemm"):
        base.get("autoawq")(a_case({"format": "gemv"}), None, Path()).check()


def test_a_config_is_translated_for_transformers_4() -> None:
    rope = {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    assert old_config({"model_type": "phi", "dtype": "bfloat16", "rope_parameters": rope}) == {
        "model_type": "phi",
        "torch_dtype": "bfloat16",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
    }
    scaled = {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}
    assert old_config({"rope_parameters": scaled}) == {
        "rope_theta": 5.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 7.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
    }
    assert old_config({"rope_parameters": layers}) == {"rope_theta": 7.0, "rope_local_base_freq": 3.0}
    assert old_config({"text_config": {"model_type": "x", "dtype": "float16"}})["text_config"] == {
        "model_type": "x",
        "torch_dtype": "float16",
    }
    with pytest.raises(SourceError, match="has no words for rope_parameters"):
        old_config({"rope_parameters": {"some_attention": {"rope_theta": 1.0}}})
    already = {"rope_theta": 500.0, "torch_dtype": "float16"}
    assert old_config(already) == already
    assert old_tokenizer_config({"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}) == {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }


@pytest.mark.backend
def test_transformers_4_sees_the_same_original(tmp_path: Path) -> None:
    """Version 4 would take its own rope_theta and float32 without a word."""
    from runners._hf import load_causal_lm, load_tokenizer

    model, case = write_model(tmp_path / "model"), make_case("baseline")
    config = json.loads((model / "config.json").read_text())
    plain = logits(load_causal_lm(model, case))
    config["rope_parameters"] |= {"rope_theta": 50.0}
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "case.json").write_text(json.dumps(to_json(case)))
    printed = run_python("autoawq", ORIGINAL, tmp_path / "case.json", model, tmp_path / "old.pt")
    new, old = logits(load_causal_lm(model, case)), torch.load(tmp_path / "old.pt")
    assert not torch.equal(new, plain)  # or the rope does not matter to this model
    assert torch.equal(new, old), (new - old).abs().max()
    assert json.loads(printed.splitlines()[-1]) == load_tokenizer(model, case)("the cat")["input_ids"]


@pytest.mark.backend
def test_a_reloaded_model_is_the_one_that_was_saved(tmp_path: Path) -> None:
    from runners._hf import load_causal_lm

    case = a_case({"group_size": 64}, write_calibration(tmp_path / "text.jsonl"))
    model, output, before = write_model(tmp_path / "model"), tmp_path / "output", tmp_path / "before.pt"
    (tmp_path / "case.json").write_text(json.dumps(to_json(case)))
    output.mkdir()
    run_python("autoawq", COMPRESS_AND_KEEP, tmp_path / "case.json", model, output, before)
    reloaded, saved = load_logits(case, output), torch.load(before)
    assert torch.equal(reloaded, saved), (reloaded - saved).abs().max()
    assert 1e-5 < divergence(logits(load_causal_lm(model, case)), reloaded) < 0.3
    config = json.loads((output / "config.json").read_text())
    assert (config["rope_theta"], config["use_cache"]) == (10000.0, True)
    assert "rope_parameters" not in config


@pytest.mark.backend
@pytest.mark.slow
def test_transformers_5_loads_the_artifact_and_it_is_made_again_the_same(tmp_path: Path) -> None:
    case = a_case({"group_size": 64}, write_calibration(tmp_path / "text.jsonl"))
    model = write_model(tmp_path / "model", tied=True)
    first, second = (compress(case, model, tmp_path / name, fresh=True) for name in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    run_python("gptqmodel", TRANSFORMERS_5, first, tmp_path / "new.pt")
    ours, new = load_logits(case, first), torch.load(tmp_path / "new.pt")
    assert (ours - new).abs().max() < 0.02 * ours.abs().max()
    assert divergence(ours, new) < 1e-3  # the kernels of gptqmodel round otherwise
