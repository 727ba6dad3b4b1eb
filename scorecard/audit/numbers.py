"""Numbers as they lie in safetensors files: rows of a tensor, packed whole numbers, small floats.

Files are mapped, not read: picking rows of a large tensor takes memory for those rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scorecard.safetensors_header import Tensor

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

# numpy has no bfloat16 and no 8-bit floats: their bits are taken as whole numbers and decoded here
_STORED = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
}  # fmt: skip
E2M1 = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)  # OCP Microscaling Formats 1.0, section 5.3.3; bit 3 is the sign


def readable(tensor: Tensor) -> bool:
    """Whether ``raw`` knows the type."""
    return tensor.dtype in _STORED


def raw(tensor: Tensor) -> NDArray[Any]:
    """The tensor as it is stored, mapped from its file; bfloat16 and 8-bit floats as unsigned bits."""
    import numpy as np

    kind = np.dtype(_STORED[tensor.dtype])
    if not tensor.count:
        return np.zeros(tensor.shape, kind)
    mapped = np.memmap(tensor.path, kind, "r", tensor.start, (tensor.count,))
    return mapped.reshape(tensor.shape)


def decoded(stored: NDArray[Any], dtype: str) -> Floats:
    """Values of what ``raw`` gave, as float32."""
    import numpy as np

    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0"):
        values: Floats = byte_values(dtype)[stored]
        return values
    whole: Floats = stored.astype(np.float32)
    return whole


def floats(tensor: Tensor) -> Floats:
    """The whole tensor; for side data, never for weights."""
    return decoded(raw(tensor), tensor.dtype)


@functools.cache
def byte_values(dtype: str) -> Floats:
    """The 256 values of an 8-bit float; what is not a number or infinite is NaN or infinite here too.

    E4M3 and E5M2 as in "FP8 Formats for Deep Learning" (Micikevicius et al. 2022, arXiv:2209.05433), E8M0 as
    in OCP Microscaling Formats 1.0, section 5.4.1: a power of two.
    """
    import numpy as np

    bits = np.arange(256)
    if dtype == "F8_E8M0":
        values = np.ldexp(1.0, np.minimum(bits, 254) - 127).astype(np.float32)
        values[255] = np.nan
        powers: Floats = values
        return powers
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent, mantissa = (bits & 127) >> mantissa_bits, bits & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    size = np.where(
        exponent, np.ldexp(1 + fraction, np.maximum(exponent, 1) - bias), np.ldexp(fraction, 1 - bias)
    )
    if dtype == "F8_E4M3":
        size[(bits & 127) == 127] = np.nan
    else:
        size[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    both: Floats = np.where(bits < 128, size, -size).astype(np.float32)
    return both


def unpacked(words: NDArray[Any], bits: int, count: int) -> Ints:
    """``count`` whole numbers of ``bits`` bits along the last dimension, the lowest bits of a word first.

    The words are one little-endian stream of bits: number i takes the bits from ``i * bits`` on, across
    words where need be. GPTQ, compressed-tensors and the runner ``rtn`` all pack like that.
    """
    import numpy as np

    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    stream = stream[..., : count * bits].reshape(*stream.shape[:-1], count, bits)
    numbers: Ints = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    return numbers


def unpacked_planes(words: NDArray[Any], bits: int, count: int) -> Ints:
    """As ``unpacked``, but each 32 numbers lie in ``bits`` words of their own: first the lowest 4 bits of all
    32 (or 2, or 1, as far as they go), then the next. GPTQModel's ``gptq_p``.
    """
    import numpy as np

    blocks = np.ascontiguousarray(words).reshape(*words.shape[:-1], -1, bits)
    numbers: Ints = np.zeros((*blocks.shape[:-1], 32), np.int64)
    done = 0
    for plane in (8, 4, 2, 1):
        if bits - done >= plane:
            numbers |= unpacked(blocks[..., done : done + plane], plane, 32) << done
            done += plane
    return numbers.reshape(*words.shape[:-1], -1)[..., :count]


def sample(rows: int, most: int) -> Ints:
    """``most`` row numbers spread evenly over ``rows``, or all of them; always the same ones."""
    import numpy as np

    count = min(rows, most)
    return np.arange(count, dtype=np.int64) * rows // max(count, 1)


def scalar(tensor: Tensor | None) -> float | None:
    """The only value of a tensor; ``None`` where there is no tensor or not exactly one value."""
    return float(floats(tensor).reshape(-1)[0]) if tensor is not None and tensor.count == 1 else None


def text(tensor: Tensor) -> str:
    """A string stored as bytes."""
    return raw(tensor).tobytes().decode("utf-8", "replace")


def spread(groups: Floats, width: int) -> Floats | None:
    """[rows, groups] -> [rows, width], each group over its equal share of the columns; ``None`` if uneven."""
    import numpy as np

    count = groups.shape[-1]
    return None if count == 0 or width % count else np.repeat(groups, width // count, axis=-1)


def table(values: Sequence[float]) -> Floats:
    """Sorted, each value once."""
    import numpy as np

    return np.unique(np.asarray(values, np.float32))
