"""The alphabet of the frequency tables, and the tables as bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import CLASSES

Array = npt.NDArray[Any]

PRECISION = 12
TOTAL = 1 << PRECISION
"""The sum of the frequencies of a table."""
WIDEST = 127
"""The largest magnitude that a table can hold."""
ESCAPE = 2 * WIDEST + 1
"""The symbol of an escape; that of an index k is k + WIDEST."""
SYMBOLS = ESCAPE + 1
RAW_BITS = 9
"""Plain bits after an escape: k + MAX_CODE."""

UNUSED = np.zeros(SYMBOLS, np.uint16)
UNUSED[[WIDEST, ESCAPE]] = TOTAL - 1, 1
"""The table of a class that codes nothing: zero, or an escape."""


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, least first, the top bit set on all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def varints(data: bytes | memoryview, place: int, count: int) -> tuple[list[int], int]:
    """(count numbers from place on, the place after them); IndexError where the data end."""
    numbers = []
    for _ in range(count):
        value = shift = 0
        while data[place] & 128:
            value, shift, place = value | (data[place] & 127) << shift, shift + 7, place + 1
        numbers.append(value | data[place] << shift)
        place += 1
    return numbers, place


def packed(frequencies: Array) -> bytes:
    """uint16 [CLASSES, 2, SYMBOLS], deflated: a byte for each table and the frequencies of each new one.

    All tables of Q0 by class, then all of Q1. Byte 0: unused; 1: as the last new one; 2 + n: new, with
    frequencies up to |k| = n; then the varints of the escape and of |k| = 1 … n follow, and zero has the
    rest.
    """
    out = bytearray()
    before: Array = UNUSED
    for table in frequencies.transpose(1, 0, 2).reshape(-1, SYMBOLS):
        if np.array_equal(table, UNUSED):
            out.append(0)
        elif np.array_equal(table, before):
            out.append(1)
        else:
            before = table
            widest = int(np.flatnonzero(table[WIDEST:ESCAPE]).max())
            out.append(2 + widest)
            for value in (table[ESCAPE], *table[WIDEST + 1 : WIDEST + 1 + widest]):
                out += varint(int(value))
    return zlib.compress(bytes(out), 9)


def unpacked(data: bytes) -> Array:
    """What was packed; ValueError, IndexError, OverflowError or zlib.error if it is damaged."""
    tables = _tables(zlib.decompress(data))
    out = np.stack([next(tables) for _ in range(2 * CLASSES)])
    for _ in tables:
        raise ValueError("there are too many")
    return out.reshape(2, CLASSES, SYMBOLS).transpose(1, 0, 2).copy()


def _tables(plain: bytes) -> Iterator[Array]:
    """Each table, uint16 [SYMBOLS]."""
    place, before = 0, UNUSED
    while place < len(plain):
        code, place = plain[place], place + 1
        if code >= 2:
            widest = code - 2
            (escape, *sizes), place = varints(plain, place, 1 + widest)
            before = np.zeros(SYMBOLS, np.uint16)
            before[[WIDEST, ESCAPE]] = TOTAL - escape - 2 * sum(sizes), escape
            before[WIDEST + 1 : WIDEST + 1 + widest] = sizes
            before[WIDEST - widest : WIDEST] = sizes[::-1]
        yield before if code else UNUSED
