"""Codes packed into words: GPTQ, AWQ and the runner ``rtn``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scorecard.audit import numbers, reading
from scorecard.audit.grid import Grid, Stored
from scorecard.audit.parts import Parts
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scorecard.audit.numbers import Ints

    Zeros = Callable[[Ints, int, int], NDArray[Any] | None]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds output feature 8 * word + AWQ_ORDER[i]


def gptq(parts: Parts) -> Stored | None:
    """qweight int32 [in * bits / 32, out] packed down the columns, scales [groups, out], qzeros packed along
    out; AutoGPTQ's layout, which GPTQModel and auto-round write too.

    Zero points are stored less one, but as they are in GPTQModel's ``gptq_v2`` and ``gptq_p`` (packed in
    planes) and auto-round's own format.
    """
    out, width = parts.shape
    codes, scales = parts.get("qweight"), parts.get("scales")
    if codes is None or scales is None or codes.dtype != "I32" or codes.shape[-1:] != (out,):
        return None
    if _variant(parts) not in (None, "gptq", "gptq_v2", "gptq_p"):
        return None
    unpacked = numbers.unpacked_planes if _variant(parts) == "gptq_p" else numbers.unpacked
    bits, rest = divmod(codes.shape[0] * 32, width)
    if rest or not 1 <= bits <= 8 or len(codes.shape) != 2 or scales.shape[1:] != (out,):
        return None
    groups, zeros, order = scales.shape[0], parts.get("qzeros"), parts.get("g_idx")
    offset = 0 if _plain_zeros(parts) else 1

    def read(rows: Ints) -> Grid:
        import numpy as np

        levels = unpacked(reading.columns(codes, rows), bits, width)
        scale = numbers.decoded(reading.columns(scales, rows), scales.dtype)
        zero = np.full_like(scale, 2 ** (bits - 1))
        if zeros is not None:
            stored = unpacked(numbers.raw(zeros), bits, out)[:, rows].T
            zero = ((stored + offset) & (2**bits - 1)).astype(np.float32)
        of_column = reading.groups(order, width, groups)
        return reading.grid(levels, scale[:, of_column], zero[:, of_column], 0, 2**bits - 1)

    return Stored("gptq", bits, reading.size(width, groups), reading.middle(read, out, bits), bits, read)


def _variant(parts: Parts) -> Any:
    """What the artifact's config calls the layout: others have the same names, and even shapes."""
    said = (parts.config.get(key) for key in ("checkpoint_format", "format", "version"))
    return next((value for value in said if isinstance(value, str) and not value[:1].isdigit()), None)


def _plain_zeros(parts: Parts) -> bool:
    own = parts.config.get("packing_format") == "auto_round"
    return own or _variant(parts) in ("gptq_v2", "gptq_p")


def awq(parts: Parts) -> Stored | None:
    """AWQ's GEMM layout: qweight int32 [in, out / 8] of 4-bit codes in ``AWQ_ORDER``, scales [groups, out],
    qzeros [groups, out / 8].
    """
    out, width = parts.shape
    codes, scales, zeros = parts.get("qweight"), parts.get("scales"), parts.get("qzeros")
    if codes is None or scales is None or zeros is None or codes.dtype != "I32":
        return None
    if (
        _variant(parts) not in (None, "gemm")
        or codes.shape != (width, out // 8)
        or scales.shape[1:] != (out,)
        or width % scales.shape[0]
    ):
        return None
    groups = scales.shape[0]

    def read(rows: Ints) -> Grid:
        import numpy as np

        column = reading.groups(None, width, groups)
        scale = numbers.decoded(reading.columns(scales, rows), scales.dtype)
        zero = _awq_nibbles(numbers.raw(zeros), rows).astype(np.float32)
        return reading.grid(_awq_nibbles(numbers.raw(codes), rows), scale[:, column], zero[:, column], 0, 15)

    return Stored("awq-gemm", 4, reading.size(width, groups), reading.middle(read, out, 4), 4, read)


def _awq_nibbles(words: NDArray[Any], rows: Ints) -> Ints:
    """[in or groups, out / 8] -> 4-bit numbers [rows, in or groups]."""
    import numpy as np

    shift = 4 * np.argsort(AWQ_ORDER)[rows % 8]
    return ((words[:, rows // 8].astype(np.int64) >> shift) & 15).T


def rtn(parts: Parts) -> Stored | None:
    """The runner ``rtn``: qweight uint8 [out, ceil(in / 8) * bits], scales [out, groups], packed zeros."""
    codes, scales, zeros = parts.get("qweight"), parts.get("scales"), parts.get("zeros")
    if codes is None or scales is None or codes.dtype != "U8":
        return None
    found = _eights(
        parts, codes, scales, lambda rows, bits, groups: _unpacked_zeros(zeros, rows, bits, groups)
    )
    return found and replace(found, format="rtn", symmetric=zeros is None)


def torchao(parts: Parts) -> Stored | None:
    """The runner ``torchao``, below 8 bits: codes plus 2^(bits - 1) packed as by ``rtn``, torchao's own
    _weight_scale [out, groups], and signed _weight_zero_point where they are not all 0.
    """
    codes, scales = parts.get("_weight_packed"), parts.get("_weight_scale")
    zeros = parts.get("_weight_zero_point")
    if codes is None or scales is None or codes.dtype != "U8":
        return None

    def zero(rows: Ints, bits: int, groups: int) -> NDArray[Any] | None:
        if zeros is None:
            return None
        stored = numbers.decoded(numbers.raw(zeros).reshape(-1, groups), zeros.dtype)
        shifted: NDArray[Any] = stored[rows if len(stored) > 1 else rows * 0] + 2 ** (bits - 1)
        return shifted

    found = _eights(parts, codes, scales, zero)
    return found and replace(found, format="torchao", symmetric=zeros is None)


def _eights(parts: Parts, codes: Tensor, scales: Tensor, zeros: Zeros) -> Stored | None:
    """Eight codes in ``bits`` bytes; ``zeros`` gives zero points [rows, groups], ``None`` the middle."""
    out, width = parts.shape
    bits, rest = divmod(codes.shape[-1], -(-width // 8))
    if rest or not 1 <= bits <= 8 or codes.shape[:1] != (out,) or len(scales.shape) != 2:
        return None
    groups = scales.shape[1]
    if scales.shape[0] not in (1, out) or width % groups:
        return None

    def read(rows: Ints) -> Grid:
        import numpy as np

        levels = numbers.unpacked(numbers.raw(codes)[rows], bits, width)
        own = rows if scales.shape[0] == out else rows * 0
        scale = numbers.decoded(numbers.raw(scales)[own], scales.dtype)
        zero = zeros(rows, bits, groups)
        middle = np.full_like(scale, 2 ** (bits - 1)) if zero is None else zero.astype(np.float32)
        of_column = reading.groups(None, width, groups)
        return reading.grid(levels, scale[:, of_column], middle[:, of_column], 0, 2**bits - 1)

    return Stored("", bits, reading.size(width, groups), None, bits, read)


def _unpacked_zeros(zeros: Tensor | None, rows: Ints, bits: int, groups: int) -> NDArray[Any] | None:
    return None if zeros is None else numbers.unpacked(numbers.raw(zeros)[rows], bits, groups)
