"""How often each magnitude occurs in each class and quantizer: what frequency tables are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import (
    CLASS_OFFSET,
    CLASSES,
    MAX_CODE,
    NEXT_STATE,
    QUANTIZER_OF_STATE,
    CodedMatrix,
    classes,
    quantizers,
)
from rdq.compiled import COMPILED, compiled

Array = npt.NDArray[Any]

_BLOCK = 1 << 20
"""Indices counted at a time without numba, to need little memory."""


def magnitudes(m: CodedMatrix) -> Array:
    """int64 [CLASSES, 2, MAX_CODE + 1]: how often each |k| occurs in each class × quantizer."""
    counts = np.zeros(CLASSES * 2 * (MAX_CODE + 1), np.int64)
    if COMPILED:
        row_class, column_class = (
            m.row_spread.astype(np.int64) - CLASS_OFFSET,
            m.column_spread.astype(np.int64),
        )
        codes = np.require(m.codes, requirements=["C", "W"])
        _count(codes, row_class, column_class, NEXT_STATE[m.states], QUANTIZER_OF_STATE[m.states], counts)
    else:
        context, size = 2 * classes(m).astype(np.int32) + quantizers(m), np.abs(m.codes)
        rows_at_once = max(1, _BLOCK // m.codes.shape[1])
        for start in range(0, m.codes.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            places = context[rows] * (MAX_CODE + 1) + size[rows]
            counts += np.bincount(places.reshape(-1), minlength=counts.size)
    return counts.reshape(CLASSES, 2, MAX_CODE + 1)


@compiled
def _count(
    codes: Array, row_class: Array, column_class: Array, after: Array, quantizer: Array, counts: Array
) -> None:
    """Adds each |k| of codes, int16 [rows, columns], to counts, int64 [CLASSES * 2 * (MAX_CODE + 1)]."""
    rows, columns = codes.shape
    trellis = np.zeros(columns, np.uint8)
    for row in range(rows):
        for c in range(columns):
            k = np.int64(codes[row, c])
            t = trellis[c]
            kind = min(max(row_class[row] + column_class[c], 0), CLASSES - 1)
            counts[(2 * kind + quantizer[t]) * (MAX_CODE + 1) + abs(k)] += 1
            trellis[c] = after[t, k & 1]
