"""What both kinds of kernels share: the numbers of the rANS coder and the lookups made from the tables.

The coder is range asymmetric numeral systems (Duda, arXiv:1311.2540; interleaved as in Giesen,
arXiv:1402.3392) with states of [2**16, 2**32) and words of 16 bits: at most one word is read or written for
a symbol. Lane n of a panel codes its columns n, n + lanes, n + 2·lanes …, row by row; the indices of one
row and one round of lanes are a chunk. A chunk's symbols come first, then the plain bits of its escapes,
each in the order of the columns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rdq.coded import CLASS_OFFSET, CLASSES
from rdq.symbols import SYMBOLS, TOTAL
from rdq.tables import Tables

Array = npt.NDArray[Any]

LOWEST = 1 << 16
"""Every state is at least this between symbols, and exactly this before the first is coded."""
MANY_LANES, LANE_SHARE = 1024, 1 << 14
"""At most so many lanes, each of so many indices: a lane costs two bytes."""
FEW_LANES = 4
PANEL_INDICES, PANEL_COLUMNS = 1 << 24, 1024
"""A panel, which can be decoded by itself, has at least so many indices and columns."""

TOO_SHORT, TOO_LONG, NO_INDEX = -1, -2, -3
"""What a decoder returns for words that do not fit the tables."""


class Lookup(NamedTuple):
    """Tables as the kernels read them."""

    decode: Array
    """uint32 [n * 4096]: for table × slot: symbol, frequency << 8, slot - start << 20."""
    frequency: Array
    """int64 [n * SYMBOLS]"""
    start: Array
    """int64 [n * SYMBOLS]: the sum of the frequencies before."""
    reciprocal: Array
    """float64 [n * SYMBOLS]: 1 / frequency; x // frequency is floor((x + 0.5) * it) for all x < 2**32."""
    table_of: Array
    """uint16 [511 * 2]: the table of row_spread + column_spread and quantizer."""


@lru_cache(maxsize=4)
def lookup(tables: Tables) -> Lookup:
    """The lookups of these tables, made once."""
    rows, place = tables.distinct
    kind = np.clip(np.arange(2 * 255 + 1) - CLASS_OFFSET, 0, CLASSES - 1)
    table_of = place.reshape(CLASSES, 2)[kind].astype(np.uint16).reshape(-1)
    frequency = rows.astype(np.int64)
    start = np.cumsum(frequency, axis=1) - frequency
    decode = np.empty((len(rows), TOTAL), np.uint32)
    symbols = np.arange(SYMBOLS)
    for own, begin, out in zip(frequency, start, decode, strict=True):
        symbol = np.repeat(symbols, own)
        out[:] = symbol | own[symbol] << 8 | (np.arange(TOTAL) - begin[symbol]) << 20
    reciprocal = 1.0 / np.maximum(frequency, 1)
    return Lookup(
        decode.reshape(-1), frequency.reshape(-1), start.reshape(-1), reciprocal.reshape(-1), table_of
    )


def panels(rows: int, columns: int) -> tuple[int, int]:
    """(columns of a panel, lanes) for a matrix of this shape; the last panel may be narrower."""
    wide = max(PANEL_COLUMNS, -(-PANEL_INDICES // rows))
    count = max(1, columns // wide)
    width = -(-columns // count)
    lanes = max(FEW_LANES, min(MANY_LANES, rows * width // LANE_SHARE))
    return width, min(lanes, width)
