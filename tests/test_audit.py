"""The layer audit on small hand-made artifacts: good ones have no findings, and each fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import audit_writers as writers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import LINEARS, TensorSpec, plain, save

from scorecard.audit import audit

WIDTH, GROUP, VOCABULARY = 128, 32, 160
UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, TensorSpec]


def weight(name: str, rows: int = WIDTH) -> writers.Array:
    """Random, its own for each name, exact in bfloat16."""
    random = np.random.default_rng(sum(name.encode()))
    values = random.normal(0, 0.05, (rows, WIDTH)).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def dense(*, lm_head: bool = True, dtype: str = "BF16") -> Tensors:
    """A Llama-like original: six square Linear layers, embedding, lm_head, norms."""
    tensors = {"model.embed_tokens.weight": writers.plain(weight("embed", VOCABULARY), dtype)}
    tensors |= {f"{name}.weight": writers.plain(weight(name), dtype) for name in LINEARS}
    for name in ("model.layers.0.input_layernorm", "model.norm"):
        tensors[f"{name}.weight"] = writers.plain(np.ones(WIDTH, np.float32), dtype)
    if lm_head:
        tensors["lm_head.weight"] = writers.plain(weight("lm_head", VOCABULARY), dtype)
    return tensors


def gptq(values: writers.Array, bits: int = 4, group: int = GROUP) -> writers.Parts:
    return writers.gptq(*writers.rounded(values, bits, group), bits)


def awq(values: writers.Array) -> writers.Parts:
    return writers.awq(*writers.rounded(values, 4, GROUP))


def pack_quantized(values: writers.Array) -> writers.Parts:
    codes, scale, _ = writers.rounded(values, 4, GROUP)
    return writers.pack_quantized(codes, scale, None, 4)


def rtn(values: writers.Array) -> writers.Parts:
    codes, scale, _ = writers.rounded(values, 4, GROUP)
    return writers.rtn(codes, scale, None, 4)


def int8(values: writers.Array) -> writers.Parts:
    codes, scale, zero = writers.rounded(values, 8, WIDTH)
    return writers.int8(codes - zero, scale, ("weight", "SCB"))


def nf4(values: writers.Array) -> writers.Parts:
    blocks = values.reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    codes = np.rint((blocks / absmax[:, None] + 1) * 7.5).astype(np.int64)
    return writers.bitsandbytes(codes.reshape(values.shape), absmax, 64)


SCHEMES: dict[str, tuple[Callable[[writers.Array], writers.Parts], dict[str, Any]]] = {
    "gptq": (gptq, {"bits": 4, "group_size": GROUP, "symmetric": True}),
    "awq": (awq, {"bits": 4, "group_size": GROUP}),
    "pack-quantized": (pack_quantized, {"scheme": "W4A16", "group_size": GROUP, "symmetric": True}),
    "rtn": (rtn, {"bits": 4, "group_size": GROUP, "symmetric": True}),
    "int8": (int8, {"format": "int8"}),
    "nf4": (nf4, {"format": "nf4", "block_size": 64}),
}


def packed(scheme: str = "gptq", *, lm_head: bool = True, only: tuple[str, ...] = LINEARS) -> Tensors:
    tensors = dense(lm_head=lm_head)
    for name in only:
        rows = VOCABULARY if name == "lm_head" else WIDTH
        put(tensors, name, SCHEMES[scheme][0](weight(name, rows)))
    return tensors


def put(tensors: Tensors, name: str, parts: writers.Parts) -> None:
    """Store a layer in place of what is there."""
    for old in [n for n in tensors if n.startswith(f"{name}.")]:
        del tensors[old]
    tensors |= {f"{name}.{part}": spec for part, spec in parts.items()}


def run(folder: Path, artifact: Tensors, claims: Any, original: Tensors | None = None) -> dict[str, Any]:
    save(folder / "original/model.safetensors", original or dense())
    save(folder / "artifact/model.safetensors", artifact)
    result = audit(folder / "artifact", folder / "original", claims)
    json.dumps(result)
    return result


def errors(result: Mapping[str, Any]) -> list[str]:
    return [f["what"] for f in result["findings"] if f["level"] == "error"]


def row(result: Mapping[str, Any], module: str) -> dict[str, Any]:
    (found,) = [layer for layer in result["layers"] if layer["module"] == module]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_known_layouts_have_no_findings(tmp_path: Path, scheme: str, lm_head: bool) -> None:
    claims = {"runner": "x", **SCHEMES[scheme][1]}
    result = run(tmp_path, packed(scheme, lm_head=lm_head), claims, dense(lm_head=lm_head))
    assert result["findings"] == []
    assert len(result["layers"]) == 9 + lm_head
    assert sum(layer["stored_bytes"] for layer in result["layers"]) == sum(
        tensor.stat().st_size - 8 - int.from_bytes(tensor.read_bytes()[:8], "little")
        for tensor in (tmp_path / "artifact").iterdir()
    )
    layer, bits = row(result, LINEARS[0]), 8 if scheme == "int8" else 4
    assert layer["kind"] == "linear"
    assert layer["original_bytes"] == 2 * WIDTH**2
    assert layer["bits"] == bits
    assert bits <= layer["bits_per_weight"] < bits + 2
    assert layer["group_size"] == {"int8": WIDTH, "nf4": 64}.get(scheme, GROUP)
    assert layer["symmetric"] in (True, None)
    assert 0.001 < layer["relative_error"] < 0.2
    assert layer["rounding_difference"] == 0
    assert row(result, "model.embed_tokens")["format"] == "plain"
    assert row(result, "model.embed_tokens")["relative_error"] == 0
    assert row(result, "model.norm")["relative_error"] is None


@pytest.mark.parametrize("claims", [None, {"runner": "baseline"}])
def test_a_baseline_has_no_findings(tmp_path: Path, claims: Any) -> None:
    assert run(tmp_path, dense(), claims)["findings"] == []


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_nothing_was_compressed(tmp_path: Path, dtype: str) -> None:
    (found,) = errors(run(tmp_path, dense(dtype=dtype), {"runner": "x", "bits": 4}, dense(dtype=dtype)))
    assert "nothing was compressed: all 6 Linear layers are stored as they were in the original" in found


def test_float16_is_not_compressed_although_its_bits_differ(tmp_path: Path) -> None:
    (found,) = errors(run(tmp_path, dense(dtype="F16"), {"runner": "custom"}))
    assert "as they were in the original" in found


def test_one_layer_left_uncompressed_is_a_warning(tmp_path: Path) -> None:
    (found,) = run(tmp_path, packed(only=LINEARS[1:]), {"bits": 4, "group_size": GROUP})["findings"]
    what = f"{LINEARS[0]}: left uncompressed among compressed layers (as in the original)"
    assert found == {"level": "warning", "what": what}


def test_most_layers_left_uncompressed_is_an_error(tmp_path: Path) -> None:
    (found,) = errors(run(tmp_path, packed(only=LINEARS[:1]), {"bits": 4}))
    assert found.startswith("artifact: the body takes 14.")


@pytest.mark.parametrize("claims", [{"bits": 2}, {"bits": 8}, {"scheme": "W8A16"}, {"format": "fp8"}])
def test_other_bits_than_claimed(tmp_path: Path, claims: dict[str, Any]) -> None:
    (found,) = errors(run(tmp_path, packed(), claims))
    assert found.startswith(f"{LINEARS[0]} and 5 more: codes of 4 bits are stored, ")
    assert " claimed; " in found


def test_another_group_size_than_claimed(tmp_path: Path) -> None:
    (found,) = errors(run(tmp_path, packed(), {"bits": 4, "group_size": -1}))
    assert f"groups of {GROUP} input features are stored, {WIDTH} claimed" in found
    tensors = packed()
    put(tensors, UP, gptq(weight(UP), group=64))
    (found,) = errors(run(tmp_path, tensors, {"bits": 4, "group_size": GROUP}))
    assert found.startswith(f"{UP}: groups of 64 input features are stored, {GROUP} claimed")


def test_a_group_longer_than_the_row_is_the_row(tmp_path: Path) -> None:
    tensors = dense()
    for name in LINEARS:
        put(tensors, name, gptq(weight(name), group=WIDTH))
    assert run(tmp_path, tensors, {"bits": 4, "group_size": 4 * WIDTH})["findings"] == []


def test_symmetric_although_asymmetric_was_asked(tmp_path: Path) -> None:
    (found,) = errors(run(tmp_path, packed(), {"bits": 4, "symmetric": False}))
    assert "symmetric: true is stored, false claimed" in found


GROUPS = {"weights": {"num_bits": 8, "strategy": "channel", "symmetric": True}, "targets": ["Linear"]}


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 8, "sym": True},
        {"quant_method": "gptq", "bits": 4, "dynamic": {r"+:.*layers\.0": {"bits": 8}}},
        {"quant_method": "auto-round", "bits": 4, "extra_config": {UP: {"bits": 8}}},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUPS}},
    ],
    ids=lambda config: config["quant_method"],
)
def test_the_artifact_is_not_what_its_own_config_says(tmp_path: Path, config: dict[str, Any]) -> None:
    save(tmp_path / "artifact/model.safetensors", {})
    (tmp_path / "artifact/config.json").write_text(json.dumps({"quantization_config": config}))
    found = errors(run(tmp_path, packed(), {"runner": "x"}))
    assert "codes of 4 bits are stored, 8 said by its config.json" in found[0]


def test_layers_that_the_config_treats_apart_are_not_held_to_the_claim(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "dynamic": {f"+:{UP}": {"bits": 8}}}
    tensors = packed()
    put(tensors, UP, gptq(weight(UP), bits=8))
    save(tmp_path / "artifact/model.safetensors", {})
    (tmp_path / "artifact/config.json").write_text(json.dumps({"quantization_config": config}))
    assert run(tmp_path, tensors, {"runner": "x", "bits": 4})["findings"] == []
    (tmp_path / "artifact/config.json").unlink()
    assert "codes of 8 bits are stored, 4 claimed" in errors(run(tmp_path, tensors, {"bits": 4}))[0]


def test_float16_stored_as_int4(tmp_path: Path) -> None:
    """Rounded weights in 16 bits each: quantized, but nothing was saved."""
    tensors = dense()
    for name in LINEARS:
        codes, scale, zero = writers.rounded(weight(name), 4, WIDTH)
        tensors[f"{name}.weight"] = writers.plain(((codes - zero) * scale).astype(np.float32), "F16")
    (found,) = errors(run(tmp_path, tensors, {"runner": "x", "bits": 4}))
    assert found.startswith(f"{LINEARS[0]} and 5 more: only 16 values in a group, but stored in F16")


def test_codes_in_wider_types_than_they_need_are_told(tmp_path: Path) -> None:
    """torchao keeps 4-bit codes in bytes and says so in the file's metadata."""
    note = {"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": {"_data": "int4"}}}
    tensors, metadata = dense(), {f"{name}.weight": json.dumps(note) for name in LINEARS}
    for name in LINEARS:
        codes, scale, zero = writers.rounded(weight(name), 4, GROUP)
        put(tensors, name, writers.int8(codes - zero[0, 0], scale, ("_weight_qdata", "_weight_scale")))
    save(tmp_path / "original/model.safetensors", dense())
    save(tmp_path / "artifact/model.safetensors", tensors, metadata)
    result = audit(tmp_path / "artifact", tmp_path / "original", {"runner": "torchao", "bits": 4})
    (found,) = result["findings"]
    assert found["level"] == "warning"
    assert "torchao holds each code of 4 bits in 8" in found["what"]
    save(tmp_path / "artifact/model.safetensors", tensors)
    assert (
        "codes of 8 bits are stored, 4 claimed"
        in errors(audit(tmp_path / "artifact", tmp_path / "original", {"runner": "torchao", "bits": 4}))[0]
    )


@pytest.mark.parametrize(("recipe", "level"), [("WandaPruningModifier: {}", "warning"), ("", "error")])
def test_zeros_in_a_dense_file(tmp_path: Path, recipe: str, level: str) -> None:
    tensors = dense()
    for name in LINEARS:
        values = weight(name)
        values[:, ::2] = 0
        tensors[f"{name}.weight"] = writers.plain(values, "BF16")
    (found,) = run(tmp_path, tensors, {"runner": "x", "recipe": recipe})["findings"]
    assert found["level"] == level
    assert "50% of the weights are zero, in a dense file: no byte is saved" in found["what"]


def test_weights_beside_their_codes(tmp_path: Path) -> None:
    tensors = packed()
    tensors[f"{UP}.weight"] = writers.plain(weight(UP), "BF16")
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found == f"{UP}: stored twice, as codes and as floats; drop the floats"


@pytest.mark.parametrize("method", ["gptq", "awq", "llmcompressor"])
def test_calibration_that_changed_nothing(tmp_path: Path, method: str) -> None:
    claims = {"runner": method, "bits": 4, "recipe": {"GPTQModifier": {"scheme": "W4A16"}}}
    (found,) = errors(run(tmp_path, packed(), claims))
    assert found.startswith(f"{LINEARS[0]} and 5 more: its codes are those of plain rounding (at most 0.00%")
    claims = {"runner": "llmcompressor", "bits": 4, "recipe": {"QuantizationModifier": {}}}
    assert run(tmp_path, packed(), claims)["findings"] == []


def nudged(name: str, share: float) -> writers.Parts:
    """Rounded, then a share of the codes that stand nearest to their weights moved by one."""
    values = weight(name)
    codes, scale, zero = writers.rounded(values, 4, GROUP)
    wide = np.repeat(scale, GROUP, axis=1)
    off = np.abs(values / wide + 8 - codes)
    moved = (off < 0.2) & (np.random.default_rng(0).random(values.shape) < share / 0.4)
    return writers.gptq(np.where(moved, np.where(codes > 7, codes - 1, codes + 1), codes), scale, zero, 4)


def test_calibration_that_left_its_trace(tmp_path: Path) -> None:
    tensors = dense()
    for name in LINEARS:
        put(tensors, name, nudged(name, 0.05))
    result = run(tmp_path, tensors, {"runner": "gptq", "bits": 4})
    assert result["findings"] == []
    assert 0.03 < row(result, UP)["rounding_difference"] < 0.07


def test_some_layers_without_a_trace_of_calibration(tmp_path: Path) -> None:
    tensors = packed()
    put(tensors, UP, nudged(UP, 0.05))
    (found,) = run(tmp_path, tensors, {"runner": "gptq", "bits": 4})["findings"]
    assert found["level"] == "warning"
    assert "unlike those of other layers" in found["what"]
    assert UP not in found["what"]


def test_auto_round_without_iterations_is_rounding(tmp_path: Path) -> None:
    claims = {"runner": "auto_round", "bits": 4, "iters": 0}
    assert run(tmp_path, packed(), claims)["findings"] == []
    assert "AutoRound changed nothing" in errors(run(tmp_path, packed(), {**claims, "iters": 200}))[0]


def test_two_layers_swapped(tmp_path: Path) -> None:
    tensors = packed()
    put(tensors, LINEARS[0], gptq(weight(LINEARS[3])))
    put(tensors, LINEARS[3], gptq(weight(LINEARS[0])))
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found.startswith(f"{LINEARS[0]} and 1 more: decodes to other weights than the original's")


@pytest.mark.parametrize("change", ["rows reversed", "columns reversed", "scale doubled"])
def test_a_layer_that_is_permuted_or_scaled(tmp_path: Path, change: str) -> None:
    values = weight(UP)
    wrong = {
        "rows reversed": values[::-1],
        "columns reversed": values[:, ::-1],
        "scale doubled": values * 2.1,
    }
    tensors = packed()
    put(tensors, UP, gptq(np.ascontiguousarray(wrong[change])))
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found.startswith(f"{UP}: decodes to other weights than the original's")


def test_gptq_may_err_by_more_than_the_weights_in_their_direction(tmp_path: Path) -> None:
    """As at 2 bits, where its feedback goes where the inputs do not see it."""
    tensors, dice = dense(), np.random.default_rng(0)
    for name in LINEARS:
        values = weight(name)
        noise = dice.normal(size=values.shape).astype(np.float32)
        put(
            tensors,
            name,
            gptq(values + noise * np.float32(1.03 * np.linalg.norm(values) / np.linalg.norm(noise))),
        )
    result = run(tmp_path, tensors, {"runner": "gptq", "bits": 4})
    assert row(result, UP)["relative_error"] > 1
    assert errors(result) == []
    (found,) = errors(run(tmp_path, tensors, {"runner": "rtn", "bits": 4}))
    assert "decodes to other weights" in found
    for wrong in (np.ascontiguousarray(weight(UP)[::-1]), weight(UP) * 2.1):
        put(tensors, UP, gptq(wrong))
        (found,) = errors(run(tmp_path, tensors, {"runner": "gptq", "bits": 4}))
        assert found.startswith(f"{UP}: decodes to other weights than the original's")


def test_a_layer_with_more_error_than_its_like_stands_out(tmp_path: Path) -> None:
    tensors = packed()
    put(tensors, UP, gptq(weight(UP) * 1.5))
    (found,) = run(tmp_path, tensors, {"bits": 4})["findings"]
    assert found["level"] == "warning"
    assert found["what"].startswith(f"{UP}: relative error 0.5")


@pytest.mark.parametrize("swap", [False, True])
def test_scales_moved_from_norms_into_weights_are_taken_out(tmp_path: Path, swap: bool) -> None:
    """AWQ and SmoothQuant: W diag(s) is stored, and the norm before it is divided by s."""
    random = np.random.default_rng(0)
    tensors = packed()
    norm = np.exp2(random.integers(-3, 4, WIDTH)).astype(np.float32)
    tensors["model.layers.0.input_layernorm.weight"] = writers.plain(1 / norm, "BF16")
    source = LINEARS[4] if swap else LINEARS[0]
    rows = np.exp2(random.integers(-2, 3, (WIDTH, 1))).astype(np.float32)
    put(tensors, LINEARS[0], gptq(rows * weight(source) * norm))
    result = run(tmp_path, tensors, {"runner": "awq", "bits": 4})
    assert bool(errors(result)) is swap
    assert (row(result, LINEARS[0])["relative_error"] > 0.9) is swap


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(
        [("F16", 0x7C00), ("F16", 0xFE01), ("BF16", 0x7F80), ("BF16", 0xFFC0), ("F32", 0x7FC0_0000)]
    ),
    st.integers(0, 4 * WIDTH - 1),
)
def test_one_value_that_is_not_finite_is_found_anywhere(
    tmp_path_factory: pytest.TempPathFactory, value: tuple[str, int], index: int
) -> None:
    dtype, bits = value
    size = 4 if dtype == "F32" else 2
    content = bytearray(b"\x01" * (WIDTH * 4 * size))
    content[index * size : (index + 1) * size] = bits.to_bytes(size, "little")
    tensors = packed()
    tensors[f"{UP}.scales"] = (dtype, (4, WIDTH), bytes(content))
    found = errors(run(tmp_path_factory.mktemp("model"), tensors, {"bits": 4}))
    assert found[0].startswith(f"{UP}.scales: holds values that are not finite")


@pytest.mark.parametrize("part", ["qweight", "scales"])
def test_all_zero_codes_or_scales_are_found(tmp_path: Path, part: str) -> None:
    tensors = packed()
    dtype, shape, data = tensors[f"{UP}.{part}"]  # type: ignore[misc]
    tensors[f"{UP}.{part}"] = (dtype, shape, bytes(len(data)))
    assert (
        errors(run(tmp_path, tensors, {"bits": 4}))[0] == f"{UP}.{part}: all zero; compress this layer again"
    )


def test_what_is_broken_in_the_original_is_not_the_artifacts_fault(tmp_path: Path) -> None:
    tensors = dense()
    tensors[f"{LINEARS[0]}.weight"] = ("BF16", (WIDTH, WIDTH), bytes(2 * WIDTH**2))
    tensors["model.norm.weight"] = ("BF16", (WIDTH,), b"\x80\x7f" * WIDTH)
    assert run(tmp_path, tensors, None, tensors)["findings"] == []


def test_missing_layers(tmp_path: Path) -> None:
    tensors = {n: t for n, t in packed("awq").items() if not n.startswith((LINEARS[1], "lm_head"))}
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found == f"{LINEARS[1]} and 1 more: missing; write every layer into $OUTPUT_MODEL"


def tied_original(folder: Path, by: str) -> Tensors:
    """A model with one tensor for embeddings and lm_head, as its config says or as equal bytes show."""
    tensors = dense(lm_head=by == "bytes")
    if by == "bytes":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    else:
        (folder / "original").mkdir(parents=True)
        (folder / "original/config.json").write_text('{"tie_word_embeddings": true}')
    return tensors


@pytest.mark.parametrize("by", ["config", "bytes"])
def test_a_tied_head_need_not_be_stored(tmp_path: Path, by: str) -> None:
    original = tied_original(tmp_path, by)
    assert run(tmp_path, packed(lm_head=False), {"bits": 4}, original)["findings"] == []


@pytest.mark.parametrize("by", ["config", "bytes"])
def test_a_tied_head_that_was_untied(tmp_path: Path, by: str) -> None:
    original, artifact = tied_original(tmp_path, by), packed()
    found = errors(run(tmp_path, artifact, {"bits": 4}, original))
    assert found[0].startswith(
        "lm_head.weight: tied to model.embed_tokens.weight in the original, here it is"
    )
    put(artifact, "lm_head", gptq(weight("lm_head", VOCABULARY)))
    assert "the tie is broken" in errors(run(tmp_path, artifact, {"bits": 4}, original))[0]


def test_a_tied_head_stored_twice(tmp_path: Path) -> None:
    original = tied_original(tmp_path, "config")
    artifact = packed(lm_head=False)
    artifact["lm_head.weight"] = artifact["model.embed_tokens.weight"]
    (found,) = errors(run(tmp_path, artifact, {"bits": 4}, original))
    assert found.startswith(
        "lm_head.weight: tied to model.embed_tokens.weight in the original, here stored twice"
    )


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    tensors = packed()
    tensors["model.extra.weight"] = tensors[f"{UP}.qweight"]
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert "bytes are stored as model.extra.weight too" in found
    both = dense()
    both[f"{LINEARS[1]}.weight"] = both[f"{LINEARS[0]}.weight"]
    assert run(tmp_path, both, None, both)["findings"] == []


def test_tensors_in_two_files(tmp_path: Path) -> None:
    save(tmp_path / "artifact/sub/consolidated.safetensors", {"a": ("BF16", (4,))})
    (found,) = run(tmp_path, packed(), {"bits": 4})["findings"]
    assert found["level"] == "warning"
    assert found["what"].startswith("sub/consolidated.safetensors: no loader takes it")
    save(tmp_path / "artifact/sub/consolidated.safetensors", packed())
    assert "in more than one file" in errors(run(tmp_path, packed(), {"bits": 4}))[0]


@pytest.mark.parametrize("option", ["lm_head", "embeddings"])
def test_an_outer_layer_that_was_to_be_compressed(tmp_path: Path, option: str) -> None:
    (found,) = errors(run(tmp_path, packed(), {"bits": 4, option: True}))
    name = {"lm_head": "lm_head", "embeddings": "model.embed_tokens"}[option]
    assert found == f"{name}: stored at its original width although '{option}: true'"


def test_scales_of_a_compressed_head_belong_to_it(tmp_path: Path) -> None:
    result = run(tmp_path, packed(only=(*LINEARS, "lm_head")), {"bits": 4, "lm_head": True})
    assert result["findings"] == []
    layer = row(result, "lm_head")
    assert layer["stored_bytes"] < 0.4 * layer["original_bytes"]
    assert layer["relative_error"] < 0.2


def test_a_head_with_other_bits(tmp_path: Path) -> None:
    tensors = packed()
    put(tensors, "lm_head", gptq(weight("lm_head", VOCABULARY), bits=8))
    (found,) = errors(run(tmp_path, tensors, {"bits": 4, "lm_head": True}))
    assert found.startswith("lm_head: codes of 8 bits are stored, 4 claimed")


def test_an_unknown_layout_is_not_guessed(tmp_path: Path) -> None:
    tensors = dense()
    for name in LINEARS:
        put(tensors, name, {"trellis": ("U8", (WIDTH * WIDTH // 2,)), "lut": ("F16", (16,))})
    (found,) = run(tmp_path, tensors, {"runner": "x", "bits": 4})["findings"]
    assert found["level"] == "warning"
    assert found["what"].startswith(f"{LINEARS[0]} and 5 more: cannot see inside (lut, trellis)")
    (found,) = errors(run(tmp_path, tensors, {"runner": "x", "bits": 1}))
    assert found == f"{LINEARS[0]} and 5 more: 4.0 bits per weight are stored, 1 claimed"


@pytest.mark.parametrize("artifact", ["other file", "other names", "nothing"])
def test_a_format_of_its_own_is_a_warning(tmp_path: Path, artifact: str) -> None:
    save(tmp_path / "original/model.safetensors", plain())
    (tmp_path / "artifact").mkdir()
    if artifact == "other file":
        (tmp_path / "artifact/model.rans").write_bytes(b"codes")
    if artifact == "other names":
        save(tmp_path / "artifact/model.safetensors", {"blob": ("U8", (5000,))})
    result = audit(tmp_path / "artifact", tmp_path / "original", {"runner": "custom", "bits": 4})
    assert [finding["level"] for finding in result["findings"]] == ["warning"]
    assert "cannot see inside" in result["findings"][0]["what"]
    assert result["layers"] == []


def test_renamed_layers_are_a_warning(tmp_path: Path) -> None:
    tensors = {n.replace("layers.1", "blocks.1"): t for n, t in packed("awq").items()}
    result = run(tmp_path, tensors, {"bits": 4})
    assert errors(result) == []
    assert "not stored under this name" in result["findings"][0]["what"]
    assert row(result, "model.blocks.1.mlp.up_proj")["original_bytes"] == 0
    assert row(result, "model.blocks.1.mlp.up_proj")["bits_per_weight"] is None


def test_a_prefix_of_the_whole_model_does_not_matter(tmp_path: Path) -> None:
    """Some originals on the hub lack the prefix that transformers saves."""
    original = {n.removeprefix("model."): t for n, t in dense().items()}
    result = run(tmp_path, packed("int8"), {"format": "int8"}, original)
    assert result["findings"] == []
    assert len(result["layers"]) == 10
    assert row(result, LINEARS[0].removeprefix("model."))["relative_error"] < 0.02


def test_layers_of_gpt2_lie_the_other_way_round(tmp_path: Path) -> None:
    """Its Conv1D holds [in, out]; a runner stores [out, in]."""
    values = weight("transformer.h.0.mlp.c_fc", 256).T.copy()
    original: Tensors = {"transformer.h.0.mlp.c_fc.weight": writers.plain(values, "BF16")}
    (tmp_path / "original").mkdir()
    (tmp_path / "original/config.json").write_text('{"model_type": "gpt2"}')
    artifact: Tensors = {}
    put(artifact, "transformer.h.0.mlp.c_fc", gptq(values.T.copy()))
    result = run(tmp_path, artifact, {"runner": "x", "bits": 4, "group_size": GROUP}, original)
    assert result["findings"] == []
    assert result["layers"][0]["relative_error"] < 0.2
