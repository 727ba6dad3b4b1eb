"""The layer audit: known layouts are seen through, and each way of not compressing is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import CLAIMED_BITS, LINEARS, WIDTH, TensorSpec, packed, plain, save

from scorecard.audit import audit

BODY_PARTS = {
    "codes": ("model.layers.0.mlp.up_proj.qweight", "I32", (WIDTH // 8, WIDTH)),
    "scales": ("model.layers.0.mlp.up_proj.scales", "F16", (2, WIDTH)),
}


def run(folder: Path, artifact: Mapping[str, TensorSpec], claims: Any, **original: Any) -> dict[str, Any]:
    save(folder / "original/model.safetensors", plain(**original))
    save(folder / "artifact/model.safetensors", artifact)
    result = audit(folder / "artifact", folder / "original", claims)
    json.dumps(result)
    return result


def errors(result: Mapping[str, Any]) -> list[str]:
    return [f["what"] for f in result["findings"] if f["level"] == "error"]


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("scheme", sorted(CLAIMED_BITS))
def test_known_layouts_have_no_findings(tmp_path: Path, scheme: str, lm_head: bool) -> None:
    tensors = packed(scheme, lm_head=lm_head)
    result = run(tmp_path, tensors, {"runner": "x", "bits": CLAIMED_BITS[scheme]}, lm_head=lm_head)
    assert result["findings"] == []
    layers = {layer["module"]: layer for layer in result["layers"]}
    assert len(layers) == 10 + lm_head
    assert sum(layer["stored_bytes"] for layer in layers.values()) == sum(
        tensor.stat().st_size - 8 - int.from_bytes(tensor.read_bytes()[:8], "little")
        for tensor in (tmp_path / "artifact").iterdir()
    )
    layer = layers[LINEARS[0]]
    assert layer["kind"] == "linear"
    assert layer["original_bytes"] == 2 * WIDTH**2
    assert layer["bits_per_weight"] == 8 * layer["stored_bytes"] / WIDTH**2
    assert CLAIMED_BITS[scheme] <= layer["bits_per_weight"] < CLAIMED_BITS[scheme] + 2
    assert layers["model.embed_tokens"]["kind"] == "embedding"
    assert layers["model.norm"]["kind"] == "norm"


@pytest.mark.parametrize("claims", [None, {"runner": "baseline"}])
def test_a_baseline_has_no_findings(tmp_path: Path, claims: Any) -> None:
    assert run(tmp_path, plain(), claims)["findings"] == []


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_nothing_was_compressed(tmp_path: Path, dtype: str) -> None:
    (found,) = errors(run(tmp_path, plain(), {"runner": "gptq", "bits": 4}, dtype=dtype))
    assert "nothing was compressed: all 6 Linear layers" in found


def test_a_custom_case_without_bits_must_compress_too(tmp_path: Path) -> None:
    assert "nothing was compressed" in errors(run(tmp_path, plain(), {"runner": "custom"}))[0]


def test_one_layer_left_uncompressed_is_a_warning(tmp_path: Path) -> None:
    tensors = packed("gptq")
    for name in [n for n in tensors if n.startswith(LINEARS[0])]:
        del tensors[name]
    tensors[f"{LINEARS[0]}.weight"] = ("BF16", (WIDTH, WIDTH))
    (found,) = run(tmp_path, tensors, {"bits": 4})["findings"]
    assert found == {"level": "warning", "what": f"{LINEARS[0]}: left uncompressed among compressed layers"}


def test_most_layers_left_uncompressed_is_an_error(tmp_path: Path) -> None:
    tensors = plain() | {n: t for n, t in packed("gptq").items() if n.startswith(LINEARS[0])}
    del tensors[f"{LINEARS[0]}.weight"]
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found.startswith("artifact: the body takes 14.")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CLAIMED_BITS)), st.integers(1, 8))
def test_wider_than_claimed(scheme: str, bits: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        result = run(Path(name), packed(scheme), {"runner": "x", "bits": bits})
    stored = {layer["module"]: layer["bits_per_weight"] for layer in result["layers"]}[LINEARS[0]]
    wide = stored > 1.6 * bits + 1
    assert bool(errors(result)) == wide
    if wide:
        assert errors(result) == [
            f"{LINEARS[0]} and 5 more: {stored:.1f} bits per weight are stored, {bits} claimed"
        ]
    if bits >= CLAIMED_BITS[scheme]:
        assert not wide


@pytest.mark.parametrize(("form", "wide"), [("nf4", True), ("int8", False), ("Q4_0", False), (None, False)])
def test_bits_are_read_from_a_format(tmp_path: Path, form: str | None, wide: bool) -> None:
    assert bool(errors(run(tmp_path, packed("int8"), {"runner": "bnb", "format": form}))) is wide


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [("F16", 0x7C00), ("F16", 0xFE01), ("BF16", 0x7F80), ("BF16", 0xFFC0), ("F32", 0x7FC0_0000)]
    ),
    st.integers(0, 2 * WIDTH - 1),
)
def test_one_value_that_is_not_finite_is_found_anywhere(value: tuple[str, int], index: int) -> None:
    dtype, bits = value
    size = 4 if dtype == "F32" else 2
    content = bytearray(b"\x01" * (2 * WIDTH * size))
    content[index * size : (index + 1) * size] = bits.to_bytes(size, "little")
    tensors = packed("gptq")
    tensors[BODY_PARTS["scales"][0]] = (dtype, (2, WIDTH), bytes(content))
    with tempfile.TemporaryDirectory() as name:
        (found,) = errors(run(Path(name), tensors, {"bits": 4}))
    assert found.startswith("model.layers.0.mlp.up_proj.scales: holds values that are not finite")


@pytest.mark.parametrize("part", ["codes", "scales"])
def test_all_zero_codes_or_scales_are_found(tmp_path: Path, part: str) -> None:
    name, dtype, shape = BODY_PARTS[part]
    tensors = packed("gptq")
    tensors[name] = (dtype, shape, bytes(shape[0] * shape[1] * (4 if dtype == "I32" else 2)))
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found == f"{name}: all zero; compress this layer again"


def test_what_is_broken_in_the_original_is_not_the_artifacts_fault(tmp_path: Path) -> None:
    tensors = plain()
    tensors[f"{LINEARS[0]}.weight"] = ("BF16", (WIDTH, WIDTH), bytes(2 * WIDTH**2))
    tensors["model.norm.weight"] = ("BF16", (WIDTH,), b"\x80\x7f" * WIDTH)
    for folder in ("original", "artifact"):
        save(tmp_path / folder / "model.safetensors", tensors)
    assert audit(tmp_path / "artifact", tmp_path / "original")["findings"] == []


def test_missing_layers(tmp_path: Path) -> None:
    tensors = {n: t for n, t in packed("awq").items() if not n.startswith((LINEARS[1], "lm_head"))}
    (found,) = errors(run(tmp_path, tensors, {"bits": 4}))
    assert found == f"{LINEARS[1]} and 1 more: missing; write every layer into $OUTPUT_MODEL"


@pytest.mark.parametrize("by", ["config", "bytes"])
def test_a_tied_head_need_not_be_stored(tmp_path: Path, by: str) -> None:
    original, same = plain(), ("BF16", (100, WIDTH), b"\x01" * 200 * WIDTH)
    if by == "bytes":
        original |= {"lm_head.weight": same, "model.embed_tokens.weight": same}
    else:
        (tmp_path / "original").mkdir()
        (tmp_path / "original/config.json").write_text('{"tie_word_embeddings": true}')
    save(tmp_path / "original/model.safetensors", original)
    save(tmp_path / "artifact/model.safetensors", packed("rtn", lm_head=False))
    assert audit(tmp_path / "artifact", tmp_path / "original", {"bits": 4})["findings"] == []


def test_an_lm_head_that_was_to_be_compressed(tmp_path: Path) -> None:
    (found,) = errors(run(tmp_path, packed("gptq"), {"bits": 4, "lm_head": True}))
    assert found == "lm_head: stored at its original width although 'lm_head: true'"


def test_scales_of_a_compressed_head_belong_to_it(tmp_path: Path) -> None:
    tensors = packed("rtn")
    tensors["lm_head.qweight"] = ("U8", (100, WIDTH // 2))
    tensors["lm_head.scales"] = ("F16", (100, 2))
    del tensors["lm_head.weight"]
    result = run(tmp_path, tensors, {"bits": 4, "lm_head": True})
    assert result["findings"] == []
    (head,) = [layer for layer in result["layers"] if layer["module"] == "lm_head"]
    assert head["stored_bytes"] == 100 * WIDTH // 2 + 400


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
    (row,) = [layer for layer in result["layers"] if layer["module"] == "model.blocks.1.mlp.up_proj"]
    assert row["original_bytes"] == 0
    assert row["bits_per_weight"] is None


def test_a_prefix_of_the_whole_model_does_not_matter(tmp_path: Path) -> None:
    """Some originals on the hub lack the prefix that transformers saves."""
    tensors = {n.removeprefix("model."): t for n, t in plain().items()}
    save(tmp_path / "original/model.safetensors", tensors)
    save(tmp_path / "artifact/model.safetensors", packed("int8"))
    result = audit(tmp_path / "artifact", tmp_path / "original", {"bits": 8})
    assert result["findings"] == []
    assert len(result["layers"]) == 11


COMPRESS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
folder, form = Path(sys.argv[1]), sys.argv[2]
config = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=256, dtype="bfloat16")
torch.manual_seed(0)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "original")
quantization = (BitsAndBytesConfig(load_in_8bit=True) if form == "int8"
                else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=form,
                                        bnb_4bit_use_double_quant=True))
model = AutoModelForCausalLM.from_pretrained(
    folder / "original", quantization_config=quantization, device_map="cpu", dtype=torch.bfloat16)
model.save_pretrained(folder / "artifact")
"""


@pytest.mark.backend
@pytest.mark.parametrize(("form", "bits"), [("nf4", 4), ("int8", 8)])
def test_what_bitsandbytes_really_writes(tmp_path: Path, form: str, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", COMPRESS, tmp_path, form], check=True, env=environment)
    result = audit(tmp_path / "artifact", tmp_path / "original", {"runner": "bnb", "format": form})
    assert result["findings"] == []
    widths = [layer["bits_per_weight"] for layer in result["layers"] if layer["kind"] == "linear"]
    assert len(widths) == 14
    assert all(bits < width < bits + 1.5 for width in widths)
    assert errors(audit(tmp_path / "artifact", tmp_path / "original", {"bits": bits // 2}))
