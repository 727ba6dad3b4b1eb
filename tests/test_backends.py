"""Real compression on a small random model: what a fresh process loads is what the library computed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_logits import logits
from in_environment import compress, load_logits
from tiny_evaluation import write_tasks
from tiny_model import make_case, write_calibration, write_model

from scorecard.store import sha256_tree

pytestmark = pytest.mark.backend
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


@pytest.fixture(scope="module")
def original(model: Path) -> torch.Tensor:
    return logits(plain(model))


def plain(folder: Path, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings).eval()


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


def with_weights(model: Path, replaced: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the original with some weights put in place."""
    original = plain(model)
    missing, unexpected = original.load_state_dict(replaced, strict=False)
    assert not unexpected
    assert len(missing) == len(original.state_dict()) - len(replaced)
    return logits(original)


# -- round-to-nearest: against rounding written anew -----------------------------------------------


@pytest.mark.parametrize("bits", [3, 8])
def test_rtn(tmp_path, model, original, bits):
    def rounded(weight: torch.Tensor) -> torch.Tensor:
        pieces = []
        for row in weight.double():
            for group in row.split(32):
                low, high = min(group.min().item(), 0.0), max(group.max().item(), 0.0)
                scale = float(torch.tensor((high - low) / (2**bits - 1)).half())
                zero = min(max(round(-low / scale), 0), 2**bits - 1)
                codes = (torch.round(group / scale) + zero).clamp(0, 2**bits - 1)
                pieces.append((codes - zero) * scale)
        return torch.cat(pieces).reshape(weight.shape).to(weight.dtype)

    weights = plain(model).state_dict()
    body = {name: rounded(w) for name, w in weights.items() if name.endswith("_proj.weight")}
    case = make_case("rtn", {"bits": bits, "group_size": 32, "symmetric": False})
    found = load_logits(case, compress(case, model, tmp_path / "out"))
    expected = with_weights(model, body)
    assert divergence(expected, found) < 1e-3 * divergence(original, found) + 1e-6


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("rtn", {"bits": 3, "group_size": 32}),
        ("bnb", {}),
        ("gptq", {"group_size": 32, "samples": 4}),
    ],
)
def test_the_same_bytes_every_time(tmp_path, model, text, runner, options):
    """In another process: hash seeds differ there, and with them the order of anything unordered."""
    case = make_case(runner, options, text)
    once, again = (
        sha256_tree(compress(case, model, tmp_path / name, fresh=True)) for name in ("once", "again")
    )
    assert once == again


# -- the user folder as it is shipped --------------------------------------------------------------


def test_custom(tmp_path, model, original):
    case = make_case("custom")
    output = compress(case, model, tmp_path / "out")
    found = load_logits(case, output)
    rounding = make_case("rtn", {"group_size": 64})
    rounded = load_logits(rounding, compress(rounding, model, tmp_path / "rtn" / "out"))
    assert 0 < divergence(original, found) < divergence(original, rounded)
    size = sum(path.stat().st_size for path in output.iterdir())
    assert size < 0.45 * sum(path.stat().st_size for path in model.iterdir())


def test_custom_from_lm_eval_models(tmp_path, model, original):
    """user.py, copied elsewhere, needs nothing of its folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "build.sh").write_text("true\n")
    shutil.copy(ROOT / "user" / "user.py", folder)
    output = compress(make_case("custom"), model, tmp_path / "out")
    assert torch.equal(
        load_logits(make_case("custom", {"folder": str(folder)}), output),
        load_logits(make_case("custom"), output),
    )


def test_build_and_run_by_hand(tmp_path, model):
    tasks = write_tasks(tmp_path / "tasks")
    environment = {
        **os.environ,
        "MODEL_DIR": str(model),
        "OUTPUT_MODEL": str(tmp_path / "out"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    for command in (
        ["build.sh", "--compress"],
        [
            "run.sh",
            "--tasks",
            "t_choice,t_pairs",
            "--include-path",
            str(tasks),
            "--json",
            str(tmp_path / "r.json"),
        ],
    ):
        done = subprocess.run(
            ["bash", str(ROOT / "user" / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "r.json").read_text())
    accuracies = [task["acc"] for task in result["tasks"].values()]
    assert result["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert result["size_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert result["score"] == pytest.approx(result["accuracy"] / (result["size_bytes"] / 2**30))
    assert f"{result['accuracy']:.4f} ± {result['accuracy_stderr']:.4f}" in done.stdout
