"""Real compression on a small random model: what a fresh process loads is what the library computed."""

from __future__ import annotations

import dataclasses
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
from safetensors.torch import load_file
from tiny_evaluation import write_tasks
from tiny_model import make_case, write_calibration, write_model

from runners import base
from scorecard.spec import Case, to_json
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


def compress(case: Case, model: Path, output: Path) -> Path:
    """Compress a copy of the model that is gone afterwards."""
    copy = output.with_name("original")
    shutil.copytree(model, copy)
    output.mkdir()
    base.get(case.config.runner)(case, copy, output).compress()
    shutil.rmtree(copy)
    return output


def load_fresh(case: Case, output: Path) -> torch.Tensor:
    """Logits of the artifact, loaded by its runner in a process of its own from another folder."""
    request, result = output.with_name("case.json"), output.with_name("logits.pt")
    request.write_text(json.dumps(to_json(case)))
    command = [
        sys.executable,
        str(ROOT / "tests" / "fresh_logits.py"),
        str(request),
        str(output),
        str(result),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=output.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result)


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
    found = load_fresh(case, compress(case, model, tmp_path / "out"))
    expected = with_weights(model, body)
    assert divergence(expected, found) < 1e-3 * divergence(original, found) + 1e-6


@pytest.mark.parametrize(("runner", "options"), [("rtn", {"bits": 3, "group_size": 32}), ("bnb", {})])
def test_the_same_bytes_every_time(tmp_path, model, runner, options):
    """In another process: hash seeds differ there, and with them the order of anything unordered."""
    case = make_case(runner, options)
    once = sha256_tree(compress(case, model, tmp_path / "once"))
    (tmp_path / "case.json").write_text(json.dumps(to_json(case)))
    script = (
        "import json, sys; from pathlib import Path; from runners import base; from scorecard.spec import *\n"
        "case = from_json(Case, json.loads(Path(sys.argv[1], 'case.json').read_text()))\n"
        "output = Path(sys.argv[1], 'again'); output.mkdir()\n"
        "base.get(case.config.runner)(case, Path(sys.argv[2]), output).compress()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(model)], cwd=ROOT, check=True)
    assert sha256_tree(tmp_path / "again") == once


# -- bitsandbytes: against the model that the library quantizes while loading, never saved ---------


@pytest.mark.parametrize(
    "options",
    [
        {"format": "nf4"},
        {"format": "nf4", "double_quant": True, "lm_head": True},
        {"format": "fp4"},
        {"format": "int8", "lm_head": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_bnb(tmp_path, model, original, options):
    from transformers import BitsAndBytesConfig

    skip = [] if options.get("lm_head") else None
    if options["format"] == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options["format"],
            bnb_4bit_use_double_quant=options.get("double_quant", False),
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skip,
        )
    expected = logits(plain(model, quantization_config=config))
    case = make_case("bnb", options)
    output = compress(case, model, tmp_path / "out")
    found = load_fresh(case, output)
    assert torch.equal(found, expected)
    assert divergence(original, found) > 0
    head = load_file(output / "model.safetensors")["lm_head.weight"]
    assert (head.dtype in (torch.uint8, torch.int8)) is bool(options.get("lm_head"))


# -- GPTQ and AWQ --------------------------------------------------------------------------------


def unpacked_gptq(stored: dict[str, torch.Tensor], name: str, bits: int) -> torch.Tensor:
    """The weight [out, in] of one module of GPTQ's format, from its 32-bit words (2, 4 or 8 bits)."""
    shifts = torch.arange(0, 32, bits)
    mask = 2**bits - 1
    codes = (stored[f"{name}.qweight"].unsqueeze(1) >> shifts[None, :, None] & mask).flatten(
        0, 1
    )  # [in, out]
    zeros = (stored[f"{name}.qzeros"].unsqueeze(2) >> shifts & mask).flatten(1) + 1  # [groups, out]
    group = stored[f"{name}.g_idx"].long()
    scales = stored[f"{name}.scales"].float()
    return ((codes - zeros[group]) * scales[group]).T.contiguous()


@pytest.mark.parametrize(
    "options", [{"bits": 4, "group_size": 32, "lm_head": True}, {"bits": 8, "group_size": -1}]
)
def test_gptq_against_its_format(tmp_path, model, text, original, options):
    case = make_case("gptq", options, text)
    output = compress(case, model, tmp_path / "out")
    stored = load_file(output / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    assert ("lm_head" in names) is options.get("lm_head", False)
    expected = with_weights(model, {f"{n}.weight": unpacked_gptq(stored, n, options["bits"]) for n in names})
    found = load_fresh(case, output)
    loss = divergence(original, found)
    assert 0 < loss < 0.3
    assert divergence(expected, found) < 0.01 * loss + 5e-4  # the kernel multiplies in another precision
    assert {path.name for path in output.iterdir()} == {path.name for path in model.iterdir()}


def test_gptq_dequantized_is_the_same_model(tmp_path, model, text):
    options = {"bits": 3, "group_size": 64}
    output = compress(make_case("gptq", options, text), model, tmp_path / "out")
    both = [make_case("gptq", {**options, "dequantize": dequantize}) for dequantize in (False, True)]
    packed, unpacked = (logits(base.get("gptq")(case, None, output).load().model) for case in both)
    assert divergence(packed, unpacked) < 1e-4


def test_gptq_beats_rounding_on_text_like_the_calibration(tmp_path, model, text):
    from runners._calibration import token_lists
    from runners._hf import load_tokenizer

    case = make_case("gptq", {"bits": 3, "group_size": 64}, text)
    spec = dataclasses.replace(case.calibration, seed=99)
    ids = torch.tensor(token_lists(spec, load_tokenizer(model, case), 4))
    original = logits(plain(model), ids)
    losses = {}
    for runner in ("gptq", "rtn"):
        case = make_case(runner, {"bits": 3, "group_size": 64}, text)
        (tmp_path / runner).mkdir()
        output = compress(case, model, tmp_path / runner / "out")
        losses[runner] = divergence(original, logits(base.get(runner)(case, None, output).load().model, ids))
    assert losses["gptq"] < 0.9 * losses["rtn"]


def test_awq_against_the_library_own_loader(tmp_path, model, text, original):
    from runners._gptqmodel import library

    case = make_case("awq", {"group_size": 32, "samples": 8}, text)
    output = compress(case, model, tmp_path / "out")
    found = load_fresh(case, output)
    expected = logits(library().GPTQModel.load(str(output), device="cpu").model)  # with the kernel it chooses
    loss = divergence(original, found)
    assert 0 < loss < 0.2
    assert divergence(expected, found) < 0.05 * loss


# -- the user folder as it is shipped --------------------------------------------------------------


def test_custom(tmp_path, model, original):
    case = make_case("custom")
    output = compress(case, model, tmp_path / "out")
    found = load_fresh(case, output)
    rounding = make_case("rtn", {"group_size": 64})
    (tmp_path / "rtn").mkdir()
    rounded = load_fresh(rounding, compress(rounding, model, tmp_path / "rtn" / "out"))
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
        load_fresh(make_case("custom", {"folder": str(folder)}), output),
        load_fresh(make_case("custom"), output),
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
