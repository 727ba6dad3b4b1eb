"""Compress a Hugging Face causal language model: 4-bit weights, 8-bit embeddings and lm_head.

    python compress.py MODEL_DIR OUTPUT_MODEL

Every matrix is cut into groups of neighbouring weights of a row; a group is stored as whole numbers and one
float16 scale. The scale is not simply max|w| / 7: a grid of smaller ones is tried, of either sign (the range
-8..7 reaches one step further on one side), and the one with the least squared error is taken. No
calibration data is used. Weights come and go one at a time, so memory stays far below the model's size.

codes.safetensors: NAME.weight.codes (uint8 [out, in / 2] with two codes in a byte, or int8 [out, in]) and
NAME.weight.scale (float16 [out, groups]) for a matrix NAME.weight; vectors as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

GROUP = {4: 64, 8: 128}
LEAST = {4: -8, 8: -127}
MOST = {4: 7, 8: 127}
SHRINK = {4: torch.linspace(1.0, 0.6, 17), 8: torch.ones(1)}
EIGHT_BIT = ("embed_tokens.weight", "lm_head.weight", "wte.weight")
ROWS_WEIGHTS = 1 << 22  # weights searched at once
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the safetensors files in ``folder``, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def best_scale(groups: torch.Tensor, bits: int) -> torch.Tensor:
    """Groups [..., size] -> float16 scale [...] with the least squared error among the candidates."""
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    least_error = torch.full_like(extreme, torch.inf)
    best = torch.ones_like(extreme, dtype=torch.float16)
    limit = torch.finfo(torch.float16)
    for shrink in SHRINK[bits]:
        for edge in (LEAST[bits], MOST[bits]):
            scale = extreme * shrink / edge
            scale = torch.where(scale.abs() < limit.smallest_normal, limit.smallest_normal, scale)
            stored = scale.clamp(limit.min, limit.max).to(torch.float16)
            step = stored.float().unsqueeze(-1)
            codes = torch.round(groups / step).clamp(LEAST[bits], MOST[bits])
            error = (codes * step - groups).square().sum(-1)
            better = error < least_error
            best, least_error = torch.where(better, stored, best), torch.where(better, error, least_error)
    return best


def quantize(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """Weight [out, in] -> ``codes`` and ``scale``; a width that no group divides is one group a row."""
    width = weight.shape[1]
    size = GROUP[bits] if width % GROUP[bits] == 0 else width
    codes, scales = [], []
    for rows in weight.split(max(1, ROWS_WEIGHTS // width)):
        groups = rows.float().unflatten(1, (-1, size))
        scale = best_scale(groups, bits)
        code = torch.round(groups / scale.float().unsqueeze(-1)).clamp(LEAST[bits], MOST[bits]).flatten(1)
        codes.append(pack(code) if bits == 4 else code.to(torch.int8))
        scales.append(scale)
    return {"codes": torch.cat(codes), "scale": torch.cat(scales)}


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Whole numbers -8..7 [out, in] -> uint8 [out, in / 2]: the even columns in the low four bits."""
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def compress(model: Path, output: Path) -> None:
    """Write everything that user.py needs into ``output``."""
    tied = json.loads((model / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors(model):
        if tied and name == "lm_head.weight":
            continue
        if tensor.dim() != 2 or tensor.shape[1] % 2:
            stored[name] = tensor
            continue
        bits = 8 if name.endswith(EIGHT_BIT) else 4
        for part, value in quantize(tensor, bits).items():
            stored[f"{name}.{part}"] = value
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, output / "codes.safetensors")
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, output / name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compress.py MODEL_DIR OUTPUT_MODEL")
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    if not list(source.glob("*.safetensors")):
        sys.exit(f"{source}: no .safetensors files; write the folder of the original model")
    torch.set_grad_enabled(False)
    compress(source, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size:,} bytes")
