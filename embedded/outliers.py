"""Unequal channels, as large language models have them, without changing what the model computes.

In large models a few channels carry much larger activations than the others (Dettmers et al. 2022,
arXiv:2208.07339), and the weights that meet them need more precision than their size shows (Lin et al. 2023,
arXiv:2306.00978). A model as small and briefly trained as this one has nothing of the kind and shrugs off
rounding. So channels are scaled by powers of two, and what reads them by the inverse: exact in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

SEED = 0
SPREAD = 0.42  # standard deviation of the exponents before they are rounded
LARGEST = 3  # exponents end here


def exponents(channels: int, generator: torch.Generator) -> Tensor:
    """Powers of two, most of them 1: float32 of shape (channels,)."""
    return torch.exp2((torch.randn(channels, generator=generator) * SPREAD).round().clamp(-LARGEST, LARGEST))


@torch.no_grad()
def scale_channels(model: LlamaForCausalLM) -> None:
    """Scale, in place, the channels after both norms, between up and down, and between v and o."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            scales = exponents(len(norm.weight), generator).to(norm.weight.dtype)
            norm.weight.mul_(scales)
            for linear in readers:
                linear.weight.div_(scales)
        scales = exponents(mlp.up_proj.out_features, generator).to(mlp.up_proj.weight.dtype)
        mlp.up_proj.weight.mul_(scales[:, None])
        mlp.down_proj.weight.div_(scales)
        scales = exponents(attention.v_proj.out_features, generator).to(attention.v_proj.weight.dtype)
        attention.v_proj.weight.mul_(scales[:, None])
        heads = scales.view(-1, attention.head_dim)  # one row for each key-value head
        attention.o_proj.weight.div_(heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten())
