"""AutoGPTQ: it refuses a CPU; what it makes reloads as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import load_logits, run_python
from tiny_model import make_case, write_calibration, write_model

from runners import base
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.spec import to_json

# The library insists on a GPU to compress; on a CPU the same code runs once these three are out of the way.
COMPRESS_ON_CPU = """
import json, sys
from pathlib import Path

import torch
from fresh_logits import logits
import auto_gptq.modeling._base as library

from runners import base
from scorecard.spec import Case, from_json

torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda *_: None
library.CUDA_0 = library.CPU
case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
runner = base.get("autogptq")(case, Path(sys.argv[2]), Path(sys.argv[3]))
save = type(runner)._save
def saved(self, model):
    save(self, model)
    torch.cuda.is_available = lambda: False
    torch.save(logits(model.model), sys.argv[4])
type(runner)._save = saved
runner.compress()
"""


def a_case(options: dict[str, Any], calibration: Path | None = None) -> Any:
    case = make_case("autogptq", options, calibration)
    return dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float32"))


def test_a_cpu_is_refused_with_what_to_write_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(RunnerUnavailable, match=r"needs a GPU to compress; .*runner: gptq"):
        base.get("autogptq")(a_case({}), None, Path()).check()
    monkeypatch.setattr(machine, "gpus", lambda: ({"name": "some GPU"},))
    base.get("autogptq")(a_case({}), None, Path()).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, r"group_size: 0 is no size"),
        ({"damp_percent": 1.0}, r"damp_percent: 1.0 is no share"),
        ({"static_groups": True}, r"static_groups: without desc_act"),
        ({"samples": 0}, r"samples: 0 is too few"),
        ({"bits": 5}, r"bits: 5 is not possible"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        base.get("autogptq")(a_case(options), None, Path())


@pytest.mark.backend
@pytest.mark.parametrize("options", [{"group_size": 64}, {"bits": 8, "group_size": -1, "symmetric": False}])
def test_a_reloaded_model_is_the_one_that_was_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    case = a_case(options, write_calibration(tmp_path / "text.jsonl"))
    model, output, before = write_model(tmp_path / "model"), tmp_path / "output", tmp_path / "before.pt"
    (tmp_path / "case.json").write_text(json.dumps(to_json(case)))
    output.mkdir()
    run_python("autogptq", COMPRESS_ON_CPU, tmp_path / "case.json", model, output, before)
    reloaded, saved = load_logits(case, output), torch.load(before)
    assert (reloaded - saved).abs().max() < 1e-5  # float32: the fresh layers add up in another order
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["bits"] == case.config.options.get("bits", 4)
    assert config["rope_theta"] == 10000.0
    assert not list(output.glob("*.bin"))
