"""The kernels without numba: a whole round of lanes at a time. Same arguments and bytes as `lanes_numba`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import MAX_CODE
from rdq.lanes import LOWEST, NO_INDEX, TOO_LONG, TOO_SHORT
from rdq.symbols import ESCAPE, PRECISION, RAW_BITS, SYMBOLS, TOTAL, WIDEST

Array = npt.NDArray[Any]


def _tables_of(
    codes: Array, row_spread: Array, column_spread: Array, after: Array, quantizer: Array, table_of: Array
) -> Any:
    """For each row: (row, uint16 [width] the table of each index)."""
    trellis = np.zeros(codes.shape[1], np.uint8)
    for row, indices in enumerate(codes):
        spread = int(row_spread[row]) + column_spread.astype(np.int64)
        yield row, table_of[2 * spread + quantizer[trellis]]
        trellis = after[2 * trellis.astype(np.int64) + (indices & 1)]


def encode_panel(
    codes: Array, first: int, width: int,
    row_spread: Array, column_spread: Array, after: Array, quantizer: Array,
    frequency: Array, start: Array, reciprocal: Array, table_of: Array, states: Array, out: Array,
) -> int:  # fmt: skip
    """As `lanes_numba.encode_panel`."""
    panel = codes[:, first : first + width]
    tables = np.empty(panel.shape, np.uint8)
    for row, found in _tables_of(
        panel, row_spread, column_spread[first : first + width], after, quantizer, table_of
    ):
        tables[row] = found
    states[:] = LOWEST
    lanes, p = states.size, out.size
    for row in range(panel.shape[0] - 1, -1, -1):
        for begin in range(((width - 1) // lanes) * lanes, -1, -lanes):
            k = panel[row, begin : begin + lanes].astype(np.int64)
            base = tables[row, begin : begin + lanes].astype(np.int64) * SYMBOLS
            place = base + ESCAPE
            near = np.abs(k) <= WIDEST
            place[near] = np.where(
                frequency[(base + k + WIDEST)[near]] > 0, (base + k + WIDEST)[near], place[near]
            )
            x = states[: k.size]
            escaped = np.flatnonzero(place == base + ESCAPE)
            if escaped.size:
                p = _spill(x, escaped, 1 << (32 - RAW_BITS), out, p)
                x[escaped] = (x[escaped] << RAW_BITS) | (k[escaped] + MAX_CODE)
            f = frequency[place]
            p = _spill(x, np.arange(k.size), f << (32 - PRECISION), out, p)
            whole = x // f
            x[:] = (whole << PRECISION) + (x - whole * f) + start[place]
    return p


def _spill(x: Array, which: Array, limit: Array | int, out: Array, p: int) -> int:
    """Writes the low words of the states among `which` that have reached the limit; the new place in out."""
    over = which[x[which] >= limit]
    out[p - over.size : p] = x[over] & 0xFFFF
    x[over] >>= 16
    return p - over.size


def decode_panel(
    words: Array, count_of_words: int, states: Array, first: int, width: int,
    row_spread: Array, column_spread: Array, after: Array, quantizer: Array, decode: Array, table_of: Array,
    row_factor: Array, column_factor: Array, values: Array,
    codes_out: Array, floats_out: Array, halves_out: Array,
) -> int:  # fmt: skip
    """As `lanes_numba.decode_panel`."""
    x = states.astype(np.int64)
    trellis: Array = np.zeros(width, np.int64)
    codes, columns = np.zeros(width, np.int64), slice(first, first + width)
    p = 0
    for row, own in enumerate(row_spread):
        before = trellis
        spread = int(own) + column_spread[columns].astype(np.int64)
        contexts = table_of[2 * spread + quantizer[before]].astype(np.int64) << PRECISION
        p = _row(words, p, x, contexts, decode, codes)
        if p < 0 or p > count_of_words:
            return NO_INDEX if p < 0 else TOO_SHORT
        trellis = after[2 * before + (codes & 1)].astype(np.int64)
        if codes_out.size:
            codes_out[row, columns] = codes
            continue
        u = values[quantizer[before].astype(np.int64) * (2 * MAX_CODE + 1) + codes + MAX_CODE]
        floats = (u * row_factor[row]) * column_factor[columns]
        if floats_out.size:
            floats_out[row, columns] = floats
        else:
            bits = floats.view(np.uint32)
            halves_out[row, columns] = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return 0 if p == count_of_words and (x == LOWEST).all() else TOO_LONG


def _row(words: Array, p: int, x: Array, contexts: Array, decode: Array, codes: Array) -> int:
    """Decodes one row into codes; contexts: int64 [width], the first slot of each index's table."""
    lanes = x.size
    for begin in range(0, codes.size, lanes):
        context = contexts[begin : begin + lanes]
        own = x[: context.size]
        entry = decode[context | (own & (TOTAL - 1))].astype(np.int64)
        symbol = entry & 255
        own[:] = ((entry >> 8) & (TOTAL - 1)) * (own >> PRECISION) + (entry >> 20)
        p = _refill(own, np.arange(own.size), words, p)
        k = symbol - WIDEST
        escaped = np.flatnonzero(symbol == ESCAPE)
        if escaped.size:
            k[escaped] = (own[escaped] & ((1 << RAW_BITS) - 1)) - MAX_CODE
            own[escaped] >>= RAW_BITS
            p = _refill(own, escaped, words, p)
            if (k[escaped] > MAX_CODE).any():
                return NO_INDEX
        codes[begin : begin + lanes] = k
    return p


def _refill(x: Array, which: Array, words: Array, p: int) -> int:
    """Reads a word for each of the states among `which` that has become too small; the new place in words."""
    low = which[x[which] < LOWEST]
    x[low] = x[low] << 16 | words[p : p + low.size]
    return p + low.size
