"""Write weights in each layout that the audit knows, from the layouts' descriptions, bit by bit.

Each writer takes codes, scales and zero points, and returns the tensors of one layer by their last names.
None shares code with the readers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from safetensors_files import TensorSpec

Array = NDArray[np.float32]
Codes = NDArray[np.int64]
Parts = dict[str, TensorSpec]

AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = tuple(i / 7.5 - 1 for i in range(16))  # any 16 values do: the file holds the table


def plain(weight: Array, dtype: str = "F32") -> TensorSpec:
    kinds = {"F32": np.float32, "F16": np.float16}
    data = bf16(weight) if dtype == "BF16" else weight.astype(kinds[dtype]).tobytes()
    return dtype, weight.shape, data


def bf16(values: Array) -> bytes:
    """Cut off, so exact only for values that bfloat16 holds."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def whole(values: NDArray[np.integer], dtype: str) -> TensorSpec:
    kinds = {"I8": np.int8, "U8": np.uint8, "I32": np.uint32, "I64": np.int64}
    shape = tuple(np.shape(values))
    return dtype, shape, np.asarray(values).astype(np.int64).astype(kinds[dtype]).tobytes()


def f32(values: Array) -> TensorSpec:
    return "F32", tuple(values.shape), values.astype("<f4").tobytes()


def words(numbers: Iterable[int], bits: int, word: int = 32) -> list[int]:
    """One long integer cut into words: number i at bit i * bits."""
    stream, count = 0, 0
    for i, number in enumerate(numbers):
        stream |= int(number) << (i * bits)
        count = i + 1
    return [stream >> (word * k) & (1 << word) - 1 for k in range(-(-count * bits // word))]


def gptq(codes: Codes, scale: Array, zero: Codes, bits: int, order: Codes | None = None) -> Parts:
    """codes [out, in]; scale, zero [out, groups]; ``order``: the group of each input."""
    width, groups = codes.shape[1], scale.shape[1]
    stored_zeros = (zero - 1) & ((1 << bits) - 1)
    g_idx = np.arange(width) // (width // groups) if order is None else order
    return {
        "qweight": whole(np.array([words(row, bits) for row in codes]).T, "I32"),
        "qzeros": whole(np.array([words(column, bits) for column in stored_zeros.T]), "I32"),
        "scales": f32(scale.T.copy()),
        "g_idx": whole(g_idx, "I32"),
    }


def planes(numbers: Iterable[int], bits: int) -> list[int]:
    """GPTQModel's ``gptq_p``: each 32 numbers as words of their low 4 bits, then 2, then 1."""
    found = []
    given = [int(number) for number in numbers]
    for start in range(0, len(given), 32):
        block, done = given[start : start + 32], 0
        for plane in (4, 2, 1):
            if bits - done >= plane:
                found += words([n >> done & (1 << plane) - 1 for n in block], plane)
                done += plane
    return found


def awq(codes: Codes, scale: Array, zero: Codes) -> Parts:
    def nibbles(matrix: Codes) -> TensorSpec:
        eights = matrix.T.reshape(matrix.shape[1], -1, 8)[:, :, list(AWQ_NIBBLES)]
        return whole(np.array([[words(e, 4)[0] for e in line] for line in eights]), "I32")

    return {"qweight": nibbles(codes), "qzeros": nibbles(zero), "scales": f32(scale.T.copy())}


def pack_quantized(codes: Codes, scale: Array, zero: Codes | None, bits: int) -> Parts:
    """codes and zero points are unsigned here; the format's are less 2^(bits - 1), packed after adding it."""
    parts = {
        "weight_packed": whole(np.array([words(row, bits) for row in codes]), "I32"),
        "weight_scale": f32(scale),
        "weight_shape": whole(np.array(codes.shape), "I64"),
    }
    if zero is not None:
        parts["weight_zero_point"] = whole(np.array([words(c, bits) for c in zero.T]).T, "I32")
    return parts


def rtn(codes: Codes, scale: Array, zero: Codes | None, bits: int) -> Parts:
    def pack(matrix: Codes) -> TensorSpec:
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 8)))
        return whole(np.array([words(row, bits, 8) for row in padded]), "U8")

    parts = {"qweight": pack(codes), "scales": f32(scale)}
    return parts if zero is None else {**parts, "zeros": pack(zero)}


def int8(codes: Codes, scale: Array, names: tuple[str, str]) -> Parts:
    """codes are signed."""
    factor = 127 if names[1] == "SCB" else 1
    stored = scale.reshape(-1) * factor if names[1] == "SCB" else scale
    return {names[0]: whole(codes, "I8"), names[1]: f32(np.ascontiguousarray(stored))}


def bitsandbytes(codes: Codes, absmax: Array, block: int) -> Parts:
    """codes index ``NF4``; absmax is flat, one for each block of the weights numbered through."""
    pairs = codes.reshape(-1, 2)
    state = json.dumps({"quant_type": "nf4", "blocksize": block, "shape": list(codes.shape)}).encode()
    return {
        "weight": whole((pairs[:, :1] << 4) | pairs[:, 1:], "U8"),
        "weight.absmax": f32(absmax),
        "weight.quant_map": f32(np.array(NF4, np.float32)),
        "weight.quant_state.bitsandbytes__nf4": whole(np.frombuffer(state, np.uint8), "U8"),
    }


def fp4(codes: Codes, scale_bytes: Codes, global_scale: float | None) -> Parts:
    """codes 0…15 (E2M1, bit 3 the sign); NVFP4 with a global scale, MXFP4 without."""
    pairs = codes.reshape(codes.shape[0], -1, 2)
    packed = whole(pairs[..., 0] | (pairs[..., 1] << 4), "U8")
    _, shape, data = whole(scale_bytes, "U8")  # type: ignore[misc]
    parts: Parts = {"weight_packed": packed}
    parts["weight_scale"] = ("U8" if global_scale is None else "F8_E4M3", shape, data)
    if global_scale is not None:
        parts["weight_global_scale"] = f32(np.array([global_scale], np.float32))
    return parts


def fp8(code_bytes: Codes, scale: Array) -> Parts:
    _, shape, data = whole(code_bytes, "U8")  # type: ignore[misc]
    return {"weight": ("F8_E4M3", shape, data), "weight_scale": f32(scale)}


def hqq(codes: Codes, scale: Array, zero: Array, bits: int, size: int) -> Parts:
    """scale and zero are flat, one for each group of ``size`` weights numbered through (axis 1)."""
    per_word = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[bits]
    lines = codes.reshape(-1, size)
    lines = np.pad(lines, ((0, -len(lines) % per_word), (0, 0)))
    step = len(lines) // per_word
    packed = sum(lines[i * step : (i + 1) * step] << (bits * (per_word - 1 - i)) for i in range(per_word))
    return {
        "W_q": whole(np.asarray(packed), "I32" if bits == 3 else "U8"),
        "scale": f32(scale.reshape(-1, 1)),
        "zero": f32(zero.reshape(-1, 1)),
        "nbits": whole(np.array(bits), "I32"),
        "group_size": whole(np.array(size), "I32"),
        "axis": whole(np.array(1), "I32"),
    }


def quanto(codes: Codes, scale: Array, shift: Array, bits: int, size: int) -> Parts:
    """scale and shift are flat, one for each group of ``size`` weights numbered through."""
    lines, per_byte = codes.reshape(-1, size), 8 // bits
    step = -(-len(lines) // per_byte)
    lines = np.pad(lines, ((0, step * per_byte - len(lines)), (0, 0)))
    packed = sum(lines[i * step : (i + 1) * step] << (bits * i) for i in range(per_byte))
    return {
        "weight._data._data": whole(np.asarray(packed), "U8"),
        "weight._scale": f32(scale.reshape(-1, 1)),
        "weight._shift": f32(shift.reshape(-1, 1)),
    }


def modelopt_int4(codes: Codes, scale: Array) -> Parts:
    """codes 0…15 stand for -8…7; scale is flat."""
    pairs = codes.reshape(codes.shape[0], -1, 2)
    return {
        "weight": whole((pairs[..., 0] << 4) | pairs[..., 1], "U8"),
        "weight_quantizer._scale": f32((1 / scale).reshape(-1, 1)),
    }


def rounded(weight: Array, bits: int, group: int) -> tuple[Codes, Array, Codes]:
    """Plain rounding to a symmetric grid: codes [out, in], scales and zero points [out, groups]."""
    groups = weight.reshape(weight.shape[0], -1, group)
    scale = (np.abs(groups).max(-1) * 2 / (2**bits - 1)).astype(np.float32)
    scale[scale == 0] = 1
    codes = np.clip(np.rint(groups / scale[..., None]) + 2 ** (bits - 1), 0, 2**bits - 1)
    zero = np.full(scale.shape, 2 ** (bits - 1), np.int64)
    return codes.reshape(weight.shape).astype(np.int64), scale, zero
