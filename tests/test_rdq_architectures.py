"""Tiny models of many families: all that is large is compressed, by what is seen of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rdq_loads import check
from transformers import PreTrainedModel

from rdq.compress import Compressor, Options
from rdq.matrices import Matrix

pytestmark = pytest.mark.backend

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2LMHeadModel", {
        "vocab_size": 512, "n_positions": 64, "n_embd": 128, "n_layer": 2, "n_head": 4,
    }),
    "Bloom": ("BloomForCausalLM", {"vocab_size": 512, "hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "Gemma": ("GemmaForCausalLM", {**SIZES, "head_dim": 32}),
    "Mixtral": ("MixtralForCausalLM", {**SIZES, **EXPERTS, "num_local_experts": 4}),
    "Qwen3Moe": ("Qwen3MoeForCausalLM", {
        **SIZES, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 80, "head_dim": 32,
    }),
    "DeepseekV3": ("DeepseekV3ForCausalLM", {
        **SIZES, **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "moe_intermediate_size": 80,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 48, "kv_lora_rank": 32,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
    }),
    "GptOss": ("GptOssForCausalLM", {
        **SIZES, **EXPERTS, "num_local_experts": 4, "head_dim": 32, "layer_types": ["full_attention"] * 2,
    }),
    "Llama4": ("Llama4ForCausalLM", {
        **SIZES, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96,
        "head_dim": 32, "interleave_moe_layer_step": 1,
    }),
}  # fmt: skip
STACKED = {"GptOss": 4, "Llama4": 4}  # tensors of three dimensions in the files


def written(family: str, folder: Path) -> PreTrainedModel:
    """A model whose predictions are far from even, in the files of its family."""
    name, sizes = FAMILIES[family]
    config_class = getattr(transformers, "Llama4TextConfig" if family == "Llama4" else f"{family}Config")
    model: PreTrainedModel = getattr(transformers, name)(config_class(**sizes))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1.2 / parameter.shape[-1] ** 0.5, generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    return model.float().eval()


def seen(made: Compressor, matrix: Matrix) -> bool:
    """Whether its statistics come from inputs: those of the weights alone are a unit matrix."""
    hessian = made.statistics[matrix.name].hessian
    parts = hessian if hessian.ndim == 3 else hessian[None]
    unit = torch.eye(parts.shape[-1])
    return all(not torch.equal(part / part[0, 0], unit) for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_nearly_all_weights_are_compressed(family: str, tmp_path: Path) -> None:
    model = written(family, tmp_path / "model")
    made = Compressor(tmp_path / "model", Options(samples=16, length=32))
    assert sum(bool(matrix.stack) for matrix in made.matrices) == STACKED.get(family, 0)
    assert all(seen(made, matrix) for matrix in made.matrices)
    report = made.compress(4e-4, tmp_path / "out")
    coded = [row for row in report.tensors if row.kind != "plain"]
    weights = sum(row.weights for row in coded)
    assert weights >= 0.95 * made.parameters
    assert 3 < 8 * sum(row.stored_bytes for row in coded) / weights < 5.5
    assert report.kl is not None
    assert report.kl < 0.06
    check(model, made, tmp_path / "out")


@pytest.mark.parametrize("mode", ["calibrated", "data-free"])
def test_stacked_experts_in_the_other_modes(mode: str, tmp_path: Path) -> None:
    written("GptOss", tmp_path / "model")
    made = Compressor(tmp_path / "model", Options(mode=mode, samples=8, length=32))
    stacks = [matrix for matrix in made.matrices if matrix.stack]
    assert [seen(made, matrix) for matrix in stacks] == [mode == "calibrated"] * 4
    report = made.compress({"calibrated": 0.0025, "data-free": 0.1}[mode], tmp_path / "out")
    assert report.kl is not None
    assert report.kl < 0.2
    assert made.estimated_bits(report.c) == pytest.approx(report.bits, rel=0.15)
