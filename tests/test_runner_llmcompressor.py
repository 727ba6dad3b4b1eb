"""llm-compressor: a fresh load is the model as it was in memory, and what the library's own loader gives.

The library takes seconds to import, so one process compresses every case, and one loads them: through
the runner, and through transformers alone, as the library documents it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from in_environment import run_python
from safetensors import safe_open
from tiny_model import make_case, write_calibration, write_model

from runners import _recipe, base
from scorecard.spec import CalibrationSpec, Case, to_json
from scorecard.store import sha256_tree

pytestmark = pytest.mark.backend
ENVIRONMENT = "llmcompressor"
SMALL = {"group_size": 32}  # the tiny model's widths are 128 and 256
QUICK: dict[str, dict[str, Any]] = {
    "rtn-w4": {"bits": 4, **SMALL},
    "gptq-w3": {"method": "gptq", "bits": 3, **SMALL, "dampening_frac": 0.1, "actorder": "weight"},
    "gptq-head-embeddings": {
        "method": "gptq", "bits": 4, **SMALL, "lm_head": True, "lm_head_bits": 8, "embeddings": True,
        "embeddings_bits": 8,
    },
    "awq-asymmetric": {"method": "awq", "scheme": "W4A16_ASYM", **SMALL, "n_grid": 4},
    "smoothquant-w8a8": {"method": "smoothquant+gptq", "scheme": "W8A8", "smoothing_strength": 0.8},
    "fp8": {"scheme": "FP8_DYNAMIC", "lm_head": True},
    "nvfp4": {"scheme": "NVFP4A16"},
    "mxfp4": {"scheme": "MXFP4A16"},
    "sparsegpt-2of4": {"method": "sparsegpt", "mask_structure": "2:4"},
    "recipe": {
        "recipe": "quant_stage:\n  quant_modifiers:\n"
        "    GPTQModifier: {scheme: W8A16, targets: Linear, ignore: [lm_head]}"
    },
}  # fmt: skip
SLOW: dict[str, dict[str, Any]] = {
    "w2": {"bits": 2, **SMALL, "symmetric": False},
    "w8-rows": {"bits": 8, "group_size": -1, "lm_head": True, "embeddings": True},
    "w4a8": {"scheme": "W4A8", **SMALL},
    "fp8-static": {"scheme": "FP8"},
    "fp8-block": {"scheme": "FP8_BLOCK"},
    "nvfp4-activations": {"scheme": "NVFP4"},
    "mxfp4-activations": {"scheme": "MXFP4"},
    "mxfp8": {"scheme": "MXFP8"},
    "mxfp8a16": {"scheme": "MXFP8A16"},
    "w4afp8": {"scheme": "W4AFP8"},
    "wanda": {"method": "wanda", "sparsity": 0.4},
    "sparsegpt+gptq": {"method": "sparsegpt+gptq", "mask_structure": "2:4", "bits": 4, **SMALL},
    "smoothquant+rtn": {"method": "smoothquant+rtn", "scheme": "W8A8"},
    "gptq-head": {"method": "gptq", "bits": 4, **SMALL, "lm_head": True, "batch_size": 4},
    "awq-embeddings": {"method": "awq", "bits": 4, **SMALL, "embeddings": True},
    "sequential": {"method": "gptq", "bits": 4, **SMALL, "pipeline": "sequential"},
    "basic": {"method": "gptq", "bits": 4, **SMALL, "pipeline": "basic"},
    "dense": {"method": "gptq", "bits": 3, **SMALL, "save_compressed": False},
    "observer": {"bits": 3, **SMALL, "observer": "mse"},
    "list": {"recipe": [{"SmoothQuantModifier": {}}, {"QuantizationModifier": {"scheme": "W8A8"}}]},
    "spinquant": {"recipe": {"s_stage": {"q_modifiers": {
        "SpinQuantModifier": {"rotations": ["R1", "R2"], "transform_type": "hadamard"},
        "QuantizationModifier": {"scheme": "W4A16", "ignore": ["lm_head"]},
    }}}},
}  # fmt: skip

COMPRESS = """
import json, sys
from pathlib import Path
import torch
from fresh_logits import logits
from runners import _llmcompressor, base
from runners._hf import shapes
from scorecard.spec import Case, from_json

model, root = Path(sys.argv[1]), Path(sys.argv[2])
apply = _llmcompressor.oneshot
for name, request in json.loads((root / "cases.json").read_text()).items():
    def kept(changed, *rest, **settings):
        apply(changed, *rest, **settings)
        torch.save(logits(changed), root / f"{name}.memory.pt")

    _llmcompressor.oneshot = kept
    case = from_json(Case, request)
    (root / name).mkdir()
    runner = base.get("llmcompressor")(case, model, root / name)
    runner.check_shapes(shapes(model, case))
    runner.compress()
"""
LOAD = """
import json, sys
from pathlib import Path
import torch
from fresh_logits import logits
from runners import base
from scorecard.spec import Case, from_json
from transformers import AutoModelForCausalLM

root = Path(sys.argv[1])
for name, request in json.loads((root / "cases.json").read_text()).items():
    case = from_json(Case, request)
    lm = base.get("llmcompressor")(case, None, root / name).load()
    torch.save(logits(lm.model), root / f"{name}.loaded.pt")
    if not case.config.options.get("embeddings"):  # transformers alone cannot load packed embeddings
        documented = AutoModelForCausalLM.from_pretrained(root / name).eval()
        torch.save(logits(documented), root / f"{name}.documented.pt")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


@pytest.fixture(scope="module")
def original(model: Path) -> torch.Tensor:
    from fresh_logits import logits
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(model).eval())


def small_case(options: Mapping[str, Any], text: Path) -> Case:
    case = make_case("llmcompressor", options, text)
    return dataclasses.replace(case, calibration=CalibrationSpec(str(text), samples=8, max_length=64))


def write_cases(root: Path, cases: Mapping[str, Case]) -> Path:
    (root / "cases.json").write_text(json.dumps({name: to_json(case) for name, case in cases.items()}))
    return root


def run_all(root: Path, model: Path, cases: Mapping[str, Case]) -> Path:
    write_cases(root, cases)
    run_python(ENVIRONMENT, COMPRESS, model, root)
    run_python(ENVIRONMENT, LOAD, root)
    return root


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    cases = {name: small_case(options, text) for name, options in QUICK.items()}
    return run_all(tmp_path_factory.mktemp("quick"), model, cases)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    cases = {name: small_case(options, text) for name, options in SLOW.items()}
    return run_all(tmp_path_factory.mktemp("slow"), model, cases)


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


def same_everywhere(root: Path, name: str, original: torch.Tensor) -> float:
    memory, loaded = torch.load(root / f"{name}.memory.pt"), torch.load(root / f"{name}.loaded.pt")
    difference = float((memory - loaded).abs().max())
    loss = divergence(original, loaded)
    size = sum(path.stat().st_size for path in (root / name).iterdir())
    print(f"{name}: KL {loss:.5f}, {size} bytes, largest difference to memory {difference:.2e}", end="")
    assert difference == 0
    if (documented := root / f"{name}.documented.pt").exists():
        print(f", to the documented loader {float((torch.load(documented) - loaded).abs().max()):.2e}")
        assert torch.equal(torch.load(documented), loaded)
    return loss


LARGEST_LOSS = {
    "sparsegpt-2of4": 1.5,
    "wanda": 1.5,
    "sparsegpt+gptq": 1.5,
    "w2": 3.0,
    "gptq-w3": 0.6,
    "dense": 0.6,
}


@pytest.mark.parametrize("name", QUICK)
def test_a_fresh_load_is_the_model_in_memory(quick: Path, name: str, original: torch.Tensor) -> None:
    assert 0 < same_everywhere(quick, name, original) < LARGEST_LOSS.get(name, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_fresh_load_is_the_model_in_memory_in_other_formats(
    slow: Path, name: str, original: torch.Tensor
) -> None:
    assert 0 < same_everywhere(slow, name, original) < LARGEST_LOSS.get(name, 0.4)


def stored(folder: Path) -> dict[str, str]:
    """Name to type of every tensor of the artifact."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping


def test_the_artifact_holds_what_loading_needs_and_no_more(quick: Path, model: Path) -> None:
    for name in QUICK:
        assert {p.name for p in (quick / name).iterdir()} == {p.name for p in model.iterdir()}, name
        assert "_name_or_path" not in (quick / name / "config.json").read_text()


def test_head_and_embeddings_are_stored_in_their_own_bits(quick: Path) -> None:
    tensors = stored(quick / "gptq-head-embeddings")
    assert {n for n in tensors if n.startswith(("lm_head", "model.embed"))} == {
        f"{layer}.{part}"
        for layer in ("lm_head", "model.embed_tokens")
        for part in ("weight_packed", "weight_scale", "weight_shape")
    }
    with safe_open(quick / "gptq-head-embeddings" / "model.safetensors", "pt") as file:
        assert file.get_tensor("lm_head.weight_packed").shape == (320, 128 * 8 // 32)
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight_packed").shape == (256, 128 * 4 // 32)


def test_a_sparse_artifact_has_two_zeros_in_every_four(quick: Path) -> None:
    with safe_open(quick / "sparsegpt-2of4" / "model.safetensors", "pt") as file:
        weight = file.get_tensor("model.layers.0.mlp.up_proj.weight")
        assert int((weight.reshape(-1, 4) == 0).sum(-1).min()) >= 2
        assert int((file.get_tensor("lm_head.weight") == 0).sum()) == 0


TABLES = """
from llmcompressor.modifiers import Modifier, ModifierFactory
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

common = set(Modifier.model_fields)
modifiers = {
    name: sorted(n for n in kind.model_fields if n not in common and not n.endswith("_"))
    for name, kind in ModifierFactory._main_registry.items() if kind is not Modifier
}
presets = {name: parts for name, parts in PRESET_SCHEMES.items() if parts}
groups = {n: (p["weights"].block_structure or [p["weights"].group_size])[-1] for n, p in presets.items()}
inputs = {n: p["input_activations"] for n, p in presets.items() if p.get("input_activations")}
static = [n for n, args in inputs.items() if args.dynamic is not True]
(root / "tables.json").write_text(json.dumps([modifiers, groups, static, sorted(common)]))
"""
REFUSED = {
    "wrong-value": (
        [{"GPTQModifier": {"scheme": "W4A16", "block_size": "many"}}],
        "configs.config: GPTQModifier.block_size: ",
    ),
    "no-layer": (
        [{"QuantizationModifier": {"scheme": "W8A8", "targets": ["re:.*nowhere"]}}],
        "configs.config: no layer of this model",
    ),
    "transforms": (
        [{"QuIPModifier": {"rotations": ["v", "u"], "transform_type": "hadamard"}}],
        "configs.config.recipe: leaves rotations of activations",
    ),
}
AGAIN = ("gptq-w3", "smoothquant-w8a8", "awq-asymmetric")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    """Another process, which compresses some cases again, and others that the library refuses."""
    wrong = {name: small_case({"recipe": recipe}, text) for name, (recipe, _) in REFUSED.items()}
    cases = {**{name: small_case(QUICK[name], text) for name in AGAIN}, **wrong}
    root = write_cases(tmp_path_factory.mktemp("again"), cases)
    caught = (
        "    try:\n        runner.compress()\n    except base.SpecError as error:\n"
        "        (root / f'{name}.error').write_text(str(error))"
    )
    run_python(ENVIRONMENT, COMPRESS.replace("    runner.compress()", caught) + TABLES, model, root)
    return root


@pytest.mark.parametrize("name", AGAIN)
def test_the_same_bytes_in_another_process(quick: Path, again: Path, name: str) -> None:
    assert sha256_tree(again / name) == sha256_tree(quick / name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_library_refuses_is_one_line(again: Path, name: str) -> None:
    message = (again / f"{name}.error").read_text()
    assert message.startswith(REFUSED[name][1])
    assert "\n" not in message


def test_the_tables_are_those_of_the_library(again: Path) -> None:
    modifiers, groups, static, common = json.loads((again / "tables.json").read_text())
    callables = {"calibration_function"}
    assert {name: set(arguments) - callables for name, arguments in modifiers.items()} == _recipe.MODIFIERS
    assert groups == _recipe.SCHEMES
    assert set(static) == _recipe._STATIC_INPUTS
    assert set(common) >= _recipe._COMMON


def test_a_copy_is_kept_where_the_user_wants_it(tmp_path: Path) -> None:
    case = make_case("llmcompressor", {"save_directory": str(tmp_path / "mine")})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    for _ in range(2):
        base.get("llmcompressor")(case, None, tmp_path / "out")._keep_copy()
        assert (tmp_path / "mine" / case.id / "config.json").is_file()
