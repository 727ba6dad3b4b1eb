"""Codes that stand for floating-point numbers: bitsandbytes' NF4 and FP4, NVFP4, MXFP4, FP8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorecard.audit import numbers
from scorecard.audit.grid import Grid, Stored
from scorecard.audit.parts import Parts, json_object
from scorecard.audit.reading import Read
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scorecard.audit.numbers import Floats, Ints

_STATE = "weight.quant_state.bitsandbytes__"


def bitsandbytes_4bit(parts: Parts) -> Stored | None:
    """weight uint8 [out * in / 2, 1], two codes a byte, the first in the high bits, in the order of the rows;
    ``absmax`` for each block of consecutive weights, itself quantized with ``nested_*`` tensors if asked.
    The bytes may be declared as any type (``quant_storage``).
    """
    out, width = parts.shape
    codes, absmax, levels = parts.get("weight"), parts.get("weight.absmax"), parts.get("weight.quant_map")
    state_name = next((name for name in parts.tensors if name.startswith(_STATE)), None)
    if codes is None or absmax is None or levels is None or state_name is None:
        return None
    if codes.size_bytes * 2 != out * width or levels.count != 16:
        return None
    state = json_object(numbers.text(parts.tensors[state_name]))
    name, block = state_name.removeprefix(_STATE), _whole(state.get("blocksize"))
    if not block or absmax.count * block < out * width:
        return Stored(f"bitsandbytes {name}", 4)
    nested = parts.get("weight.nested_absmax"), parts.get("weight.nested_quant_map")

    def read(rows: Ints) -> Grid:
        import numpy as np

        place = rows[:, None] * width + np.arange(width)
        stored = numbers.raw(codes).reshape(-1).view(np.uint8)[place // 2]
        code = np.where(place % 2, stored & 15, stored >> 4)
        scale = numbers.raw(absmax).reshape(-1)[place // block]
        if absmax.dtype == "U8" and nested[0] is not None and nested[1] is not None:
            outer = numbers.floats(nested[0])[place // block // _whole(state.get("nested_blocksize"))]
            scale = numbers.floats(nested[1])[scale] * outer + np.float32(state.get("nested_offset", 0))
        values = numbers.floats(levels).reshape(-1)
        scale = scale.astype(np.float32)
        return Grid(values[code], scale, np.zeros_like(scale), numbers.table(values.tolist()))

    return Stored(f"bitsandbytes {name}", 4, block, None, 4, read)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def fp4(parts: Parts) -> Stored | None:
    """E2M1 codes, two a byte, the first in the low bits, [out, in / 2].

    NVFP4: scales are E4M3 [out, in / 16], divided by ``weight_global_scale`` (compressed-tensors) or times
    ``weight_scale_2`` (modelopt) or ``_weight_per_tensor_scale`` (torchao, which stores them in the order of
    ``_swizzled``). MXFP4: scales are powers of two (E8M0) [out, in / 32].
    """
    out, width = parts.shape
    codes = parts.get("weight_packed", "weight", "_weight_qdata")
    scales = parts.get("weight_scale", "_weight_scale")
    if codes is None or scales is None or codes.dtype != "U8" or codes.shape != (out, width // 2):
        return None
    divisor = numbers.scalar(parts.get("weight_global_scale"))
    factor = numbers.scalar(parts.get("weight_scale_2", "_weight_per_tensor_scale"))
    power_of_two, tiled = scales.dtype in ("U8", "F8_E8M0"), codes.name.endswith("_weight_qdata")
    groups = width // (32 if power_of_two else 16) if tiled else scales.count // out
    if not groups or width % groups or scales.count < out * groups:
        return None
    if not power_of_two and (scales.dtype != "F8_E4M3" or not (divisor or factor or tiled)):
        return None
    outer = 1.0 if power_of_two else factor if factor else 1 / (divisor or 1)
    kind = "F8_E8M0" if power_of_two else scales.dtype
    values = [sign * size for sign in (1, -1) for size in numbers.E2M1]

    def read(rows: Ints) -> Grid:
        import numpy as np

        code = numbers.unpacked(numbers.raw(codes)[rows], 4, width)
        flat = scales.shape == (out, groups)
        place = rows[:, None] * groups + np.arange(groups) if flat else _swizzled(rows, groups)
        scale = numbers.decoded(numbers.raw(scales).reshape(-1)[place], kind) * np.float32(outer)
        wide = np.repeat(scale, width // groups, axis=1)
        levels = np.asarray(values, np.float32)[code]
        return Grid(levels, wide, np.zeros_like(wide), numbers.table(values))

    return Stored("mxfp4" if power_of_two else "nvfp4", 4, width // groups, True, 4, read)


def _swizzled(rows: Ints, groups: int) -> Ints:
    """Where the scales of some rows are in the tiles of 128 x 4 that tensor cores read (cuBLAS, "1D Block
    Scaling Factors Layout"): row r, column c of a tile at ``r % 32 * 16 + r // 32 * 4 + c``.
    """
    import numpy as np

    column, row = np.arange(groups), rows[:, None] % 128
    tile = rows[:, None] // 128 * -(-groups // 4) + column // 4
    place: Ints = tile * 512 + row % 32 * 16 + row // 32 * 4 + column % 4
    return place


_FP8 = (  # codes, scales
    ("weight", "weight_scale"),
    ("weight", "weight_scale_inv"),
    ("weight", "weight_quantizer._scale"),
    ("_weight_qdata", "_weight_scale"),
    ("weight._data", "weight._scale"),
    ("qweight", "scales"),
)


def fp8(parts: Parts) -> Stored | None:
    """8-bit floats [out, in] with a scale for all, for each row, or for each block of rows and columns."""
    out, width = parts.shape
    for code_name, scale_name in _FP8:
        codes, scales = parts.get(code_name), parts.get(scale_name)
        if codes is None or scales is None or codes.dtype not in ("F8_E4M3", "F8_E5M2"):
            continue
        if codes.shape != parts.shape:
            return None
        down, across = _two(scales)
        if out % down or width % across:
            return None
        return Stored("fp8", 8, width // across, True, 8, _fp8_reader(codes, scales))
    return None


def _two(scales: Tensor) -> tuple[int, int]:
    shape = (*scales.shape, 1, 1)[:2] if len(scales.shape) < 3 else (0, 0)
    return (shape[0], shape[1]) if all(shape) else (1 << 62, 1 << 62)


def _fp8_reader(codes: Tensor, scales: Tensor) -> Read:
    out, width = codes.shape
    down, across = _two(scales)

    def read(rows: Ints) -> Grid:
        import numpy as np

        kind = "F8_E8M0" if scales.dtype == "U8" else scales.dtype  # MXFP8
        stored: NDArray[np.float32] = numbers.decoded(numbers.raw(scales), kind).reshape(down, across)
        scale: Floats = np.repeat(stored[rows // (out // down)], width // across, axis=1)
        levels = numbers.decoded(numbers.raw(codes)[rows], codes.dtype)
        every = numbers.byte_values(codes.dtype)
        return Grid(levels, scale, np.zeros_like(scale), numbers.table(every[np.isfinite(every)].tolist()))

    return read
