"""The four short vectors of a matrix (scales and spreads of rows and columns) in few bytes.

An adaptive binary arithmetic coder with 32-bit bounds (the carryless kind of Mahoney's fpaq and lpaq) and,
for each context, a probability of 16 bits that learns as 1/n: no tables are stored, which short vectors
could not pay for. A value is coded as its difference from a running mean, as zero flag, sign and unary
size; a spread is first added to half its scale, since a wider step means proportionally smaller indices.
Integers only: exact on every platform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.compiled import compiled

Array = npt.NDArray[Any]

_UNARY = 20
"""Sizes from here on share one context."""
_CONTEXTS = _UNARY + 2
_SLOWEST = 255
"""A context never learns more slowly than 1/255 per bit."""


def pack(row_scale: Array, column_scale: Array, row_spread: Array, column_spread: Array) -> bytes:
    """The vectors (uint8 each) as bytes."""
    values = [row_scale, column_scale, _joined(row_spread, row_scale), _joined(column_spread, column_scale)]
    symbols = np.concatenate(values).astype(np.int64)
    ends = np.cumsum([v.size for v in values])
    room = np.zeros(64 + 40 * symbols.size, np.uint8)
    return room[: int(_encode(symbols, ends, room))].tobytes()


def unpack(data: bytes, rows: int, columns: int) -> tuple[Array, Array, Array, Array]:
    """What `pack` was given: (row_scale, column_scale, row_spread, column_spread), uint8 each."""
    ends = np.cumsum([rows, columns, rows, columns])
    padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)])
    out = np.zeros(int(ends[-1]), np.int64)
    _decode(padded, ends, out)
    row_scale, column_scale, row, column = np.split(out.astype(np.uint8), ends[:-1])
    return row_scale, column_scale, _parted(row, row_scale), _parted(column, column_scale)


def _joined(spread: Array, scale: Array) -> Array:
    joined: Array = spread + (scale >> 1)  # both are bytes: modulo 256
    return joined


def _parted(value: Array, scale: Array) -> Array:
    parted: Array = value - (scale >> 1)
    return parted


@compiled
def _split(low: int, high: int, p: int) -> int:
    """The last value of [low, high] that means a 1, which has the probability p / 65536."""
    width = high - low
    return low + (width >> 16) * p + (((width & 65535) * p) >> 16)


@compiled
def _learn(probability: Array, seen: Array, context: int, bit: int) -> None:
    p = probability[context]
    n = seen[context]
    p += ((bit * 65535 - p) * 2) // (2 * n + 3)
    probability[context] = min(max(p, 64), 65535 - 64)
    if n < _SLOWEST:
        seen[context] = n + 1


@compiled
def _put(coder: Array, out: Array, probability: Array, seen: Array, context: int, bit: int) -> None:
    """Code one bit; coder: int64 [low, high, bytes written]."""
    middle = _split(coder[0], coder[1], probability[context])
    if bit == 1:
        coder[1] = middle
    else:
        coder[0] = middle + 1
    _learn(probability, seen, context, bit)
    while (coder[0] ^ coder[1]) & 0xFF000000 == 0:
        out[coder[2]] = coder[1] >> 24
        coder[2] += 1
        coder[0] = (coder[0] << 8) & 0xFFFFFFFF
        coder[1] = ((coder[1] << 8) & 0xFFFFFFFF) | 255


@compiled
def _get(coder: Array, data: Array, probability: Array, seen: Array, context: int) -> int:
    """The next bit; coder: int64 [low, high, bytes read, window]. What is past the end reads as zeros."""
    middle = _split(coder[0], coder[1], probability[context])
    bit = 1 if coder[3] <= middle else 0
    if bit == 1:
        coder[1] = middle
    else:
        coder[0] = middle + 1
    _learn(probability, seen, context, bit)
    while (coder[0] ^ coder[1]) & 0xFF000000 == 0:
        coder[0] = (coder[0] << 8) & 0xFFFFFFFF
        coder[1] = ((coder[1] << 8) & 0xFFFFFFFF) | 255
        byte = data[coder[2]] if coder[2] < data.size else 0
        coder[3] = ((coder[3] << 8) & 0xFFFFFFFF) | byte
        coder[2] += 1
    return bit


@compiled
def _fresh(probability: Array, seen: Array) -> None:
    """Contexts of a new vector, [zero, sign, one for each size]: half of all values are zero, then one in
    four ends at each size."""
    for context in range(probability.size):
        probability[context] = 32768 if context < 2 else 16384
        seen[context] = 2


@compiled
def _mean_after(mean: int, value: int, index: int) -> int:
    """16 times the running mean: exact at first, then of about the last 32 values."""
    return mean + (16 * value - mean) // min(index + 1, 32)


@compiled
def _encode(symbols: Array, ends: Array, out: Array) -> int:
    """Writes the code of all vectors to `out`; the number of bytes."""
    coder = np.zeros(3, np.int64)
    coder[1] = 0xFFFFFFFF
    probability = np.zeros(_CONTEXTS, np.int64)
    seen = np.zeros(_CONTEXTS, np.int64)
    start = 0
    for end in ends:
        _fresh(probability, seen)
        mean = 128 * 16
        for i in range(start, end):
            signed = ((symbols[i] - ((mean + 8) >> 4) + 128) & 255) - 128
            _put(coder, out, probability, seen, 0, 1 if signed == 0 else 0)
            if signed != 0:
                _put(coder, out, probability, seen, 1, 1 if signed < 0 else 0)
                size = abs(signed)
                limit = 128 if signed < 0 else 127
                for n in range(1, limit):
                    done = 1 if size == n else 0
                    _put(coder, out, probability, seen, 1 + min(n, _UNARY), done)
                    if done == 1:
                        break
            mean = _mean_after(mean, symbols[i], i - start)
        start = end
    out[coder[2]] = (coder[0] >> 24) + 1  # one byte lies between the bounds: their first bytes differ
    return int(coder[2]) + 1


@compiled
def _decode(data: Array, ends: Array, out: Array) -> None:
    """Reads back into `out` what `_encode` wrote."""
    coder = np.zeros(4, np.int64)
    coder[1], coder[2] = 0xFFFFFFFF, 4
    for i in range(4):
        coder[3] = (coder[3] << 8) | data[i]
    probability = np.zeros(_CONTEXTS, np.int64)
    seen = np.zeros(_CONTEXTS, np.int64)
    start = 0
    for end in ends:
        _fresh(probability, seen)
        mean = 128 * 16
        for i in range(start, end):
            signed = 0
            if _get(coder, data, probability, seen, 0) == 0:
                negative = _get(coder, data, probability, seen, 1)
                limit = 128 if negative == 1 else 127
                signed = 1
                while signed < limit and _get(coder, data, probability, seen, 1 + min(signed, _UNARY)) == 0:
                    signed += 1
                if negative == 1:
                    signed = -signed
            out[i] = (((mean + 8) >> 4) + signed) & 255
            mean = _mean_after(mean, out[i], i - start)
        start = end
