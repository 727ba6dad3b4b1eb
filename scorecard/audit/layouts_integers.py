"""Whole-number codes: compressed-tensors, LLM.int8(), and the int8 of torchao, quanto and modelopt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorecard.audit import numbers, reading
from scorecard.audit.grid import Grid, Stored
from scorecard.audit.parts import Parts, json_object, metadata
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    from scorecard.audit.numbers import Floats, Ints

BNB_INT8_STEPS = 127  # SCB is the largest absolute weight of a row


def pack_quantized(parts: Parts) -> Stored | None:
    """compressed-tensors ``pack-quantized``: weight_packed int32 [out, ceil(in * bits / 32)] of codes plus
    2^(bits - 1), weight_scale [out, groups], weight_zero_point packed down the rows; auto-round
    writes it too.
    """
    out, width = parts.shape
    codes, scales = parts.get("weight_packed"), parts.get("weight_scale")
    if codes is None or scales is None or codes.dtype != "I32" or codes.shape[:1] != (out,):
        return None
    widths = [b for b in range(1, 9) if -(-width * b // 32) == codes.shape[-1]]
    if len(widths) != 1 or len(scales.shape) != 2:
        return None
    (bits,), groups, half = widths, scales.shape[1], 2 ** (widths[0] - 1)
    zeros, order = parts.get("weight_zero_point"), parts.get("weight_g_idx")
    if width % groups and order is None:
        return None

    def read(rows: Ints) -> Grid:
        import numpy as np

        levels = numbers.unpacked(numbers.raw(codes)[rows], bits, width) - half
        scale = numbers.decoded(numbers.raw(scales)[rows], scales.dtype)
        zero = np.zeros_like(scale)
        if zeros is not None:
            columns = np.ascontiguousarray(numbers.raw(zeros).T)
            zero = (numbers.unpacked(columns, bits, out)[:, rows].T - half).astype(np.float32)
        of_column = reading.groups(order, width, groups)
        return reading.grid(levels, scale[:, of_column], zero[:, of_column], -half, half - 1)

    symmetric = zeros is None
    return Stored(
        "compressed-tensors pack-quantized", bits, reading.size(width, groups), symmetric, bits, read
    )


_INT8 = (  # name of the format, codes, scales, zero points
    ("bitsandbytes int8", "weight", "SCB", None),
    ("torchao", "_weight_qdata", "_weight_scale", "_weight_zero_point"),
    ("quanto", "weight._data", "weight._scale", None),
    ("modelopt int8", "weight", "weight_quantizer._scale", None),
    ("compressed-tensors int-quantized", "weight", "weight_scale", "weight_zero_point"),
)


def int8(parts: Parts) -> Stored | None:
    """One int8 a code, [out, in], with scales [out, groups], [out] or a single one.

    torchao keeps codes of fewer bits in bytes too; the header's metadata says how many bits they have.
    """
    out, width = parts.shape
    for form, code_name, scale_name, zero_name in _INT8:
        codes, scales = parts.get(code_name), parts.get(scale_name)
        if codes is None or scales is None or codes.dtype != "I8" or codes.shape != parts.shape:
            continue
        zeros = parts.get(zero_name) if zero_name else None
        groups = 1 if len(scales.shape) < 2 else scales.shape[1]
        if scales.count not in (1, out * groups) or width % groups:
            return None
        bits = _torchao_bits(codes) if form == "torchao" else _config_bits(parts)
        factor = BNB_INT8_STEPS if scale_name == "SCB" else 1
        read = _int8_reader(codes, scales, zeros, 2 ** (bits - 1), factor)
        symmetric = True if zeros is None else reading.middle(read, out, None)
        size = reading.size(width, groups)
        return Stored(form, bits, size, symmetric, 8, read)
    return None


def _int8_reader(codes: Tensor, scales: Tensor, zeros: Tensor | None, half: int, factor: int) -> reading.Read:
    out, width = codes.shape

    def rows_of(tensor: Tensor, rows: Ints) -> Floats:
        import numpy as np

        stored = numbers.raw(tensor)
        if tensor.count == 1:
            stored = np.broadcast_to(stored.reshape(1, 1), (out, 1))
        values = numbers.decoded(stored.reshape(out, -1)[rows], tensor.dtype)
        return np.repeat(values, width // values.shape[1], axis=1)

    def read(rows: Ints) -> Grid:
        import numpy as np

        scale = rows_of(scales, rows) / np.float32(factor)
        zero = rows_of(zeros, rows) if zeros is not None else np.zeros_like(scale)
        return reading.grid(numbers.raw(codes)[rows].astype(np.int64), scale, zero, -half, half - 1)

    return read


def _torchao_bits(codes: Tensor) -> int:
    """``target_dtype`` of torchao's ``IntxUnpackedToInt8Tensor``; 8 for all its other int8 tensors."""
    module = codes.name.removesuffix("_weight_qdata")
    note = json_object(metadata(codes.path).get(f"{module}weight", "{}"))
    for key in ("_data", "target_dtype"):
        note = note[key] if isinstance(note.get(key), dict) else {}
    kind = str(note.get("_data", "int8"))
    number = kind.removeprefix("int")
    return int(number) if number.isdigit() and 1 <= int(number) <= 8 else 8


def _config_bits(parts: Parts) -> int:
    """compressed-tensors' ``int-quantized`` holds narrower codes in bytes as well."""
    groups = parts.config.get("config_groups")
    weights = [g.get("weights") or {} for g in groups.values()] if isinstance(groups, dict) else []
    found = {w.get("num_bits") for w in weights}
    (bits,) = found if len(found) == 1 else (8,)
    return bits if isinstance(bits, int) and 1 <= bits <= 8 else 8
