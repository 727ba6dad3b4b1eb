"""A quantized matrix: what the quantizer makes, the coder writes and the loader turns back into weights.

The weight of row i and column j is `u * (step * row[i]) * column[j]`, where `row[i]` is
`2**((row_scale[i] - 128) / 8)`, likewise `column`, and `u` the reconstruction, in steps, of its index k.

With 4 or 8 states this is dependent quantization: two quantizers on one grid of unit spacing, Q0 with
`v = 2k` (the even points) and Q1 with `v = 2k - sign(k)` (the odd points and zero). Which of them reads an
index follows from the parities of the indices above it in its column, by a trellis that starts in state 0 at
the top of every column. The 4-state trellis is that of ITU-T H.266 (VVC), the 8-state one that of the
Enhanced Compression Model made after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.errors import RdqError

Array = npt.NDArray[Any]

MAX_CODE = 255
"""The largest magnitude of an index."""
CLASSES = 48
"""Number of classes of the entropy coder: one for each quarter octave of the expected spread of an index."""
SPREADS_PER_OCTAVE = 4
"""Units of `row_spread` and `column_spread` to one doubling of the standard deviation."""
CLASS_OFFSET = 2 * 128 - 20
"""class = row_spread + column_spread - CLASS_OFFSET: class 20 expects indices of standard deviation 1."""
SCALES_PER_OCTAVE = 8
"""Units of `row_scale` and `column_scale` to one doubling of the step."""
MIN_STEP, MAX_STEP = 2.0**-64, 2.0**64
"""The base step of a matrix lies between these, so that no weight leaves the normal numbers of float32."""

NEXT_STATE: dict[int, Array] = {
    1: np.array([[0, 0]], np.uint8),
    4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]], np.uint8),
    8: np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.uint8),
}
"""Number of states -> uint8 [states, 2]: the state after an index of even or odd parity."""
QUANTIZER_OF_STATE: dict[int, Array] = {
    1: np.array([0], np.uint8),
    4: np.array([0, 0, 1, 1], np.uint8),
    8: np.array([0, 1, 0, 1, 0, 1, 0, 1], np.uint8),
}
"""Number of states -> uint8 [states]: the quantizer that reads an index in that state."""


@dataclass(frozen=True)
class CodedMatrix:
    """One quantized matrix; raises RdqError for fields that no file could hold."""

    codes: Array
    """int16 [rows, columns]: the index k of each weight, |k| <= MAX_CODE."""
    row_scale: Array
    """uint8 [rows]: step factor 2**((value - 128) / 8)."""
    column_scale: Array
    """uint8 [columns]: step factor 2**((value - 128) / 8)."""
    row_spread: Array
    """uint8 [rows]: 128 + 4 log2 of the row's share in the expected standard deviation of an index."""
    column_spread: Array
    """uint8 [columns]: the same for the column; both only choose the frequency table, see `classes`."""
    step: float
    """The base step of the matrix, a float32."""
    centroids: Array
    """float16 [2, 4]: subtracted from |v| for quantizer Q and min(|k|, 3); that of k = 0 is not used."""
    states: int
    """8 or 4: a trellis of that many states; 1: a plain scalar quantizer, Q0 with v = k."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise RdqError(f"coded matrix: {problem}")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        rows, columns = self.codes.shape
        return rows, columns


def _problems(m: CodedMatrix) -> list[str]:
    """What is wrong with the fields, worst first."""
    if m.codes.ndim != 2 or 0 in m.codes.shape:
        return [f"codes have the shape {m.codes.shape}; give a matrix of at least one row and one column"]
    rows, columns = m.codes.shape
    wanted = {
        "codes": (np.int16, (rows, columns)),
        "row_scale": (np.uint8, (rows,)),
        "row_spread": (np.uint8, (rows,)),
        "column_scale": (np.uint8, (columns,)),
        "column_spread": (np.uint8, (columns,)),
        "centroids": (np.float16, (2, 4)),
    }
    found = []
    for name, (dtype, shape) in wanted.items():
        value = getattr(m, name)
        if value.dtype != dtype or value.shape != shape:
            found.append(f"{name} are {value.dtype} {value.shape}; give {np.dtype(dtype)} {shape}")
    if m.states not in NEXT_STATE:
        found.append(f"{m.states} states; give one of {', '.join(map(str, NEXT_STATE))}")
    if not MIN_STEP <= float(np.float32(m.step)) <= MAX_STEP:  # also what is not a number
        found.append(f"the step is {m.step}; give a finite number between 2**-64 and 2**64")
    if not found and not np.isfinite(m.centroids).all():
        found.append("the centroids are not finite; give finite numbers")
    if not found and max(int(m.codes.max()), -int(m.codes.min())) > MAX_CODE:
        found.append(f"an index is beyond ±{MAX_CODE}; take a wider step for its row")
    return found


def scales(values: Array) -> Array:
    """uint8 scales -> float32 factors of the same shape, equal on every platform.

    Eight constants, rounded once to float32, times an exact power of two.
    """
    exponent = values.astype(np.int32) - 128
    factors: Array = np.ldexp(_EIGHTHS[exponent & 7], exponent >> 3)
    return factors


_EIGHTHS = np.array(
    [1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32
)
"""float32 of 2**(n/8), written out so that no mathematics library can round it otherwise."""


def classes(m: CodedMatrix) -> Array:
    """uint8 [rows, columns]: which frequency table codes each index."""
    rows = m.row_spread.astype(np.int16) - CLASS_OFFSET
    return np.clip(rows[:, None] + m.column_spread[None, :], 0, CLASSES - 1).astype(np.uint8)


def quantizers(m: CodedMatrix) -> Array:
    """uint8 [rows, columns]: 0 or 1, the quantizer of each index: the trellis runs down each column."""
    out = np.zeros(m.codes.shape, np.uint8)
    if m.states == 1:
        return out
    after, quantizer = NEXT_STATE[m.states].reshape(-1), QUANTIZER_OF_STATE[m.states]
    state = np.zeros(m.codes.shape[1], np.uint8)
    for row, codes in enumerate(m.codes):
        out[row] = quantizer[state]
        state = after[2 * state + (codes & 1).astype(np.uint8)]
    return out


def reconstructions(centroids: Array, states: int) -> Array:
    """float32 [2, 2 * MAX_CODE + 1]: u, in steps, of quantizer Q and index k at place k + MAX_CODE.

    centroids: float16 [2, 4]. u = sign(k) * (|v| - centroid), and 0 for k = 0.
    """
    k = np.arange(-MAX_CODE, MAX_CODE + 1)
    size, sign = np.abs(k), np.sign(k)
    points = np.stack([size, size]) if states == 1 else np.stack([2 * size, 2 * size - (size > 0)])
    shifts = centroids.astype(np.float32)[:, np.minimum(size, 3)]
    table: Array = sign.astype(np.float32) * (points.astype(np.float32) - shifts)
    return table


def dequantize(m: CodedMatrix) -> Array:
    """float32 [rows, columns]: the weights, `(u * (step * row)) * column`, every product rounded once."""
    table = reconstructions(m.centroids, m.states)
    u: Array = table[quantizers(m), m.codes + MAX_CODE]
    u *= (np.float32(m.step) * scales(m.row_scale))[:, None]
    u *= scales(m.column_scale)[None, :]
    return u


def spreads(values: Array) -> tuple[Array, Array]:
    """(row_spread uint8 [rows], column_spread uint8 [columns]) that suit a matrix of real numbers.

    values: float [rows, columns], the weights in units of the index: weight / (step·row·column), halved for a
    trellis (there the index counts every second point). The standard deviation of an element is modelled as a
    product row × column, found by two rounds of alternating least squares on the squares.
    """
    power = np.square(values, dtype=np.float32)
    column: Array = np.ones(values.shape[1], np.float64)
    row: Array = np.ones(values.shape[0], np.float64)
    for _ in range(2):
        row = np.maximum((power @ (1 / column).astype(np.float32)).astype(np.float64) / column.size, 1e-12)
        column = np.maximum(((1 / row).astype(np.float32) @ power).astype(np.float64) / row.size, 1e-12)
    return _spread(row), _spread(column)


def _spread(variance: Array) -> Array:
    """Variances -> spreads: 128 + 4 log2 of the standard deviation, rounded, within a byte."""
    rounded = np.rint(SPREADS_PER_OCTAVE / 2 * np.log2(variance))
    return np.clip(rounded + 128, 0, 255).astype(np.uint8)
