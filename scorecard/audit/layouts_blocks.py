"""Layouts that number weights through and cut them into groups: HQQ, quanto below 8 bits, modelopt int4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorecard.audit import numbers
from scorecard.audit.grid import Grid, Stored
from scorecard.audit.parts import Parts
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    from scorecard.audit.numbers import Floats, Ints

# bits of a code: (codes in a word, bits between them)
_HQQ_WORDS = {8: (1, 8), 6: (1, 8), 5: (1, 8), 4: (2, 4), 3: (10, 3), 2: (4, 2), 1.58: (4, 2), 1: (8, 1)}


@dataclass(frozen=True)
class _Lines:
    """A weight as a matrix of ``lines`` x ``length`` numbers in the order of its rows; codes of several lines
    share a word: line i is number ``i // words.shape[0]`` of its word.
    """

    words: Tensor
    lines: int
    length: int
    per_word: int
    spacing: int
    highest_first: bool

    def codes(self, place: Ints) -> Ints:
        """``place``: where in the weight."""
        import numpy as np

        line, column = np.divmod(place, self.length)
        part, line = np.divmod(line, self.words.shape[0])
        if self.highest_first:
            part = self.per_word - 1 - part
        stored = numbers.raw(self.words)[line, column].astype(np.int64)
        codes: Ints = (stored >> (part * self.spacing)) & ((1 << self.spacing) - 1)
        return codes

    @property
    def fits(self) -> bool:
        return self.words.shape == (-(-self.lines // self.per_word), self.length)


def hqq(parts: Parts) -> Stored | None:
    """W_q: lines of groups (``axis`` 1) or across groups (``axis`` 0), k lines a word (ten of 3 bits in 32),
    the first in the highest bits; ``weight = (code - zero) * scale``. Settings are beside the layer or in
    config.json.
    """
    words, scales, zeros = parts.get("W_q"), parts.get("scale"), parts.get("zero")
    bits, axis = round(float(_said(parts, "nbits") or 0), 2), _said(parts, "axis")
    bits = int(bits) if bits.is_integer() else bits
    if words is None or scales is None or zeros is None or bits not in _HQQ_WORDS:
        return None
    size = int(_said(parts, "group_size") or parts.shape[1 if axis == 1 else 0])
    count = parts.shape[0] * parts.shape[1]
    groups, (per_word, spacing) = count // size, _HQQ_WORDS[bits]
    lines, length = (groups, size) if axis == 1 else (size, groups)
    packed = _Lines(words, lines, length, per_word, spacing, highest_first=True)
    if axis not in (0, 1) or not packed.fits or scales.count != groups or zeros.count != groups:
        return Stored("hqq", bits)

    def read(rows: Ints) -> Grid:
        place = _places(rows, parts.shape[1])
        group = place // size if axis == 1 else place % groups
        zero = _of(zeros, group)
        return _grid(packed.codes(place), _of(scales, group), zero, round(2**bits))

    held = words.size_bytes * 8 / count
    return Stored("hqq", bits, size if axis == 1 else None, False, round(held, 1), read)


def _said(parts: Parts, name: str) -> Any:
    said = numbers.scalar(parts.get(name))
    settings = parts.config.get("quant_config", {}).get("weight_quant_params", parts.config)
    return settings.get(name) if said is None else said


def quanto(parts: Parts) -> Stored | None:
    """weight._data._data uint8: lines of groups, 8 / bits lines a byte, the first in the lowest bits;
    ``weight = code * scale - shift``.
    """
    out, width = parts.shape
    words = parts.get("weight._data._data", "weight._data")
    scales, shifts = parts.get("weight._scale"), parts.get("weight._shift")
    if words is None or scales is None or shifts is None or words.dtype != "U8" or len(words.shape) != 2:
        return None
    bits, size = words.count * 8 // (out * width), words.shape[1]
    packed = _Lines(words, out * width // size, size, 8 // bits if bits else 1, bits, highest_first=False)
    if bits not in (2, 4) or not packed.fits or not scales.count == shifts.count == packed.lines:
        return Stored("quanto")

    def read(rows: Ints) -> Grid:
        import numpy as np

        place = _places(rows, width)
        scale, shift = _of(scales, place // size), _of(shifts, place // size)
        zero = shift / np.where(scale == 0, 1, scale) if shifts.is_float else shift
        return _grid(packed.codes(place), scale, zero, 2**bits)

    return Stored("quanto", bits, size, False, bits, read)


def modelopt_int4(parts: Parts) -> Stored | None:
    """weight uint8 of out * in / 2 bytes, two codes a byte, the first in the high bits, plus 8;
    ``weight_quantizer._scale`` is what weights were multiplied with, block by block.
    """
    out, width = parts.shape
    codes, scales = parts.get("weight"), parts.get("weight_quantizer._scale")
    if codes is None or scales is None or codes.dtype != "U8" or codes.count * 2 != out * width:
        return None
    size, rest = divmod(out * width, scales.count)
    if rest:
        return Stored("modelopt int4", 4)

    def read(rows: Ints) -> Grid:
        import numpy as np

        place = _places(rows, width)
        stored = numbers.raw(codes).reshape(-1)[place // 2]
        factor = _of(scales, place // size)
        scale = 1 / np.where(factor == 0, 1, factor)
        codes_of = np.where(place % 2, stored & 15, stored >> 4)
        return _grid(codes_of, scale.astype(np.float32), np.full_like(factor, 8), 16)

    return Stored("modelopt int4", 4, size, True, 4, read)


def _places(rows: Ints, width: int) -> Ints:
    """Where the weights of some rows are, numbered through: [rows, width]."""
    import numpy as np

    places: Ints = rows[:, None] * width + np.arange(width)
    return places


def _of(tensor: Tensor, group: Ints) -> Floats:
    """One value for each weight, from one value for each group."""
    return numbers.decoded(numbers.raw(tensor).reshape(-1)[group], tensor.dtype)


def _grid(codes: Ints, scale: Floats, zero: Floats, levels: int) -> Grid:
    import numpy as np

    return Grid(codes.astype(np.float32), scale, zero, np.arange(levels, dtype=np.float32))
