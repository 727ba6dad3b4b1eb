"""The kernels that numba compiles: one index at a time, the lanes' states side by side in the cache.

They hold no Python object and release the interpreter's lock, so panels and matrices run in threads. See
`lanes` for the coder and `lanes_numpy` for the same with whole lanes at a time; both write and read the
same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import MAX_CODE
from rdq.compiled import compiled
from rdq.lanes import LOWEST, NO_INDEX, TOO_LONG, TOO_SHORT
from rdq.symbols import ESCAPE, PRECISION, RAW_BITS, SYMBOLS, TOTAL, WIDEST

Array = npt.NDArray[Any]

_RAW_MASK = (1 << RAW_BITS) - 1
_RAW_LIMIT = 1 << (32 - RAW_BITS)
_FREQUENCY_SHIFT = 32 - PRECISION
_INDICES = 2 * MAX_CODE + 1


@compiled
def _tables_of(
    codes: Array, first: int, width: int, row_spread: Array, column_spread: Array,
    after: Array, quantizer: Array, table_of: Array,
) -> Array:  # fmt: skip
    """uint8 [rows, width]: the table of each index of the panel that begins at column `first`."""
    rows = codes.shape[0]
    out = np.empty((rows, width), np.uint8)
    trellis = np.zeros(width, np.uint8)
    for row in range(rows):
        for c in range(width):
            t = np.int64(trellis[c])
            spread = np.int64(row_spread[row]) + np.int64(column_spread[first + c])
            out[row, c] = table_of[2 * spread + np.int64(quantizer[t])]
            trellis[c] = after[2 * t + (np.int64(codes[row, first + c]) & 1)]
    return out


@compiled
def encode_panel(
    codes: Array, first: int, width: int,
    row_spread: Array, column_spread: Array, after: Array, quantizer: Array,
    frequency: Array, start: Array, reciprocal: Array, table_of: Array, states: Array, out: Array,
) -> int:  # fmt: skip
    """Codes columns [first, first + width) of codes, backwards, into the end of out (uint16).

    states: int64 [lanes], the final states when done. Returns the place in out of the first word.
    """
    lanes = states.size
    tables = _tables_of(codes, first, width, row_spread, column_spread, after, quantizer, table_of)
    for lane in range(lanes):
        states[lane] = LOWEST
    p = out.size
    for row in range(codes.shape[0] - 1, -1, -1):
        for begin in range(((width - 1) // lanes) * lanes, -1, -lanes):
            n = min(lanes, width - begin)
            for lane in range(n - 1, -1, -1):
                k = np.int64(codes[row, first + begin + lane])
                place = np.int64(tables[row, begin + lane]) * SYMBOLS + k + WIDEST
                if abs(k) > WIDEST or frequency[place] == 0:
                    x = states[lane]
                    if x >= _RAW_LIMIT:
                        p -= 1
                        out[p] = x & 0xFFFF
                        x >>= 16
                    states[lane] = (x << RAW_BITS) | (k + MAX_CODE)
            for lane in range(n - 1, -1, -1):
                k = np.int64(codes[row, first + begin + lane])
                base = np.int64(tables[row, begin + lane]) * SYMBOLS
                place = base + k + WIDEST
                if abs(k) > WIDEST or frequency[place] == 0:
                    place = base + ESCAPE
                f = frequency[place]
                x = states[lane]
                if x >= f << _FREQUENCY_SHIFT:
                    p -= 1
                    out[p] = x & 0xFFFF
                    x >>= 16
                whole = np.int64((x + 0.5) * reciprocal[place])
                states[lane] = (whole << PRECISION) + (x - whole * f) + start[place]
    return p


@compiled
def _row(
    words: Array, p: int, states: Array, first: int, width: int,
    row_spread: int, column_spread: Array, decode: Array, after: Array, quantizer: Array, table_of: Array,
    trellis: Array, before: Array, codes: Array,
) -> int:  # fmt: skip
    """Decodes one row of a panel into codes (int16 [width]); before: the trellis state that read each index.

    Returns the place of the next word; NO_INDEX if an escape holds no index.
    """
    lanes = states.size
    for begin in range(0, width, lanes):
        n = min(lanes, width - begin)
        escapes = 0
        for lane in range(n):
            c = begin + lane
            t = np.int64(trellis[c])
            spread = row_spread + np.int64(column_spread[first + c])
            table = np.int64(table_of[2 * spread + np.int64(quantizer[t])])
            x = np.int64(states[lane])
            entry = np.int64(decode[(table << PRECISION) | (x & (TOTAL - 1))])
            symbol = entry & 255
            x = ((entry >> 8) & (TOTAL - 1)) * (x >> PRECISION) + (entry >> 20)
            word = np.int64(words[p])  # read in any case, so that nothing branches
            low = 1 if x < LOWEST else 0
            states[lane] = (x << (16 * low)) | (word * low)
            p += low
            before[c] = t
            codes[c] = symbol - WIDEST
            escapes += 1 if symbol == ESCAPE else 0
            trellis[c] = after[2 * t + ((symbol + 1) & 1)]
        if escapes:
            p = _escapes(words, p, states, begin, n, after, trellis, before, codes)
            if p < 0:
                return p
    return p


@compiled
def _escapes(
    words: Array, p: int, states: Array, begin: int, n: int,
    after: Array, trellis: Array, before: Array, codes: Array,
) -> int:  # fmt: skip
    """Reads the plain bits of those of the n columns from `begin` on that hold an escape; as `_row`."""
    for lane in range(n):
        c = begin + lane
        if codes[c] == ESCAPE - WIDEST:
            x = np.int64(states[lane])
            k = (x & _RAW_MASK) - MAX_CODE
            x >>= RAW_BITS
            if x < LOWEST:
                x = (x << 16) | np.int64(words[p])
                p += 1
            states[lane] = x
            if k > MAX_CODE:
                return NO_INDEX
            codes[c] = k
            trellis[c] = after[2 * np.int64(before[c]) + (k & 1)]
    return p


@compiled
def decode_panel(
    words: Array, count_of_words: int, states: Array, first: int, width: int,
    row_spread: Array, column_spread: Array, after: Array, quantizer: Array, decode: Array, table_of: Array,
    row_factor: Array, column_factor: Array, values: Array,
    codes_out: Array, floats_out: Array, halves_out: Array,
) -> int:  # fmt: skip
    """Decodes columns [first, first + width) into whichever of the three outputs is not empty.

    words: uint16, count_of_words of them and room for one row more; states: uint32 [lanes], used up.
    codes_out int16, floats_out float32, halves_out uint16 (the bits of bfloat16): [rows, columns] or [0, 0].
    values: float32 [2 * (2 * MAX_CODE + 1)], the reconstructions. Returns 0, TOO_SHORT, TOO_LONG or NO_INDEX.
    """
    trellis, before = np.zeros(width, np.uint8), np.zeros(width, np.uint8)
    codes, floats = np.zeros(width, np.int16), np.zeros(width, np.float32)
    bits = floats.view(np.uint32)
    p = 0
    for row in range(row_spread.size):
        p = _row(
            words, p, states, first, width, int(row_spread[row]), column_spread, decode, after,
            quantizer, table_of, trellis, before, codes,
        )  # fmt: skip
        if p < 0 or p > count_of_words:
            return NO_INDEX if p < 0 else TOO_SHORT
        if codes_out.size:
            for c in range(width):
                codes_out[row, first + c] = codes[c]
            continue
        for c in range(width):
            u = values[np.int64(quantizer[before[c]]) * _INDICES + np.int64(codes[c]) + MAX_CODE]
            floats[c] = (u * row_factor[row]) * column_factor[first + c]
        if floats_out.size:
            for c in range(width):
                floats_out[row, first + c] = floats[c]
        else:
            _to_bfloat16(bits, halves_out, row, first)
    for lane in range(states.size):
        if states[lane] != LOWEST:
            return TOO_LONG
    return 0 if p == count_of_words else TOO_LONG


@compiled
def _to_bfloat16(bits: Array, out: Array, row: int, first: int) -> None:
    """Rounds a row of float32, given as uint32, to the nearest, ties to even."""
    for c in range(bits.size):
        b = np.int64(bits[c])
        out[row, first + c] = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
