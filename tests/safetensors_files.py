"""Write safetensors files byte by byte, so that the reader is not tested with its own code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BITS = {"U8": 8, "I8": 8, "F8_E4M3": 8, "BF16": 16, "F16": 16, "F32": 32, "I32": 32, "F64": 64, "I64": 64}

TensorSpec = tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], bytes]


def filling(name: str, size: int) -> bytes:
    """Bytes that differ from tensor to tensor, are never zero, and are finite in every float type."""
    start = sum(name.encode()) % 13
    return bytes(1 + (start + i * 7) % 53 for i in range(min(size, 4096))) * (size // 4096 + 1)


def save(path: Path, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
    """``tensors``: name -> (dtype, shape) or (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, shape, *given) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        content = given[0] if given else filling(name, size)[:size]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


LINEARS = tuple(
    f"model.layers.{n}.{part}"
    for n in range(2)
    for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
)
WIDTH = 64


def plain(*, lm_head: bool = True, dtype: str = "BF16") -> dict[str, TensorSpec]:
    """A small Llama-like original: six square Linear layers, embedding, lm_head, norms."""
    tensors: dict[str, TensorSpec] = {"model.embed_tokens.weight": (dtype, (100, WIDTH))}
    for name in LINEARS:
        tensors[f"{name}.weight"] = (dtype, (WIDTH, WIDTH))
    for n in range(2):
        tensors[f"model.layers.{n}.input_layernorm.weight"] = (dtype, (WIDTH,))
    tensors["model.norm.weight"] = (dtype, (WIDTH,))
    if lm_head:
        tensors["lm_head.weight"] = (dtype, (100, WIDTH))
    return tensors


def packed(scheme: str, *, lm_head: bool = True) -> dict[str, TensorSpec]:
    """The same model with its Linear layers in one of the known layouts."""
    tensors = plain(lm_head=lm_head)
    for name in LINEARS:
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": spec for part, spec in LAYOUTS[scheme].items()}
    return tensors


LAYOUTS: dict[str, dict[str, TensorSpec]] = {
    "gptq": {
        "qweight": ("I32", (WIDTH // 8, WIDTH)),
        "qzeros": ("I32", (2, WIDTH // 8)),
        "scales": ("F16", (2, WIDTH)),
        "g_idx": ("I32", (WIDTH,), bytes(4 * WIDTH)),
    },
    "awq": {
        "qweight": ("I32", (WIDTH, WIDTH // 8)),
        "qzeros": ("I32", (2, WIDTH // 8)),
        "scales": ("F16", (2, WIDTH)),
    },
    "nf4": {
        "weight": ("U8", (WIDTH * WIDTH // 2, 1)),
        "weight.absmax": ("F32", (WIDTH,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
    },
    "int8": {
        "weight": ("I8", (WIDTH, WIDTH)),
        "SCB": ("F32", (WIDTH,)),
        "weight_format": ("U8", (), b"\0"),
    },
    "compressed-tensors": {
        "weight_packed": ("I32", (WIDTH, WIDTH // 8)),
        "weight_scale": ("BF16", (WIDTH, 2)),
        "weight_shape": ("I64", (2,)),
    },
    "fp8": {"weight": ("F8_E4M3", (WIDTH, WIDTH)), "weight_scale": ("F32", (WIDTH, 1))},
    "rtn": {
        "qweight": ("U8", (WIDTH, WIDTH // 2)),
        "scales": ("F16", (WIDTH, 2)),
        "zeros": ("U8", (WIDTH, 1)),
    },
}
CLAIMED_BITS = {"gptq": 4, "awq": 4, "nf4": 4, "int8": 8, "compressed-tensors": 4, "fp8": 8, "rtn": 4}
