"""One matrix to codes: steps from what each row and column matters, error feedback, code length as a cost.

With ``KL = 1/2 sum_i sensitivity[i] dW[i] H dW[i]^T`` (see ``statistics``) and ``(H + damping)^-1 = U^T U``,
``U`` upper triangular, feeding the error of each column to the later ones (GPTQ, Frantar et al. 2022,
arXiv:2210.17323) leaves ``1/2 sum_ij sensitivity[i] * e_ij^2 / U_jj^2``, with ``e`` the errors of rounding
alone. A code of step a costs ``h - log2(a)`` bits, so bytes are spent best where
``sensitivity[i] * a_ij^2 / U_jj^2`` is the same everywhere: ``a_ij = c * sensitivity[i]^-1/2 * U_jj`` with
one c for the whole model (the columns' part: WaterSIC, arXiv:2603.04956).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdq.coded import (
    CLASS_OFFSET,
    CLASSES,
    MAX_CODE,
    MAX_STEP,
    MIN_STEP,
    NEXT_STATE,
    QUANTIZER_OF_STATE,
    SCALES_PER_OCTAVE,
    CodedMatrix,
    scales,
    spreads,
)
from rdq.errors import RdqError
from rdq.lengths import entropy_bits, measured_lengths, prior_lengths, taper
from rdq.statistics import Statistics
from rdq.trellis import incoming, quantize_block

Array = NDArray[Any]
BLOCK = 128
ROOM = 0.85  # of the largest index: error feedback moves weights outwards


@dataclass(frozen=True)
class Settings:
    """How a matrix is quantized; the defaults are what was measured best (docs/rdq.md)."""

    states: int = 8
    kappa: float = 0.15
    """Squared steps that a bit is worth when a code is chosen."""
    damping: float = 0.01
    """Added to the diagonal of H, in means of it."""
    feedback: bool = True
    passes: int = 2
    row_range: float = 5.0
    """Most that a row's step may differ from the geometric mean, as a factor."""
    row_part: float = 0.5
    """How much of the logarithm by which it should differ it does: sensitivities are estimates."""


@dataclass(frozen=True)
class Prepared:
    """What the statistics say of a matrix, for any c.

    ``factor`` float64 [stack, columns, columns]: U with each row divided by its diagonal; ``innovation``
    [stack, columns]: 1 / U_jj; ``row`` [stack * rows]: sensitivity^-1/2, nearer to its mean (``Settings``).
    A stack is one tensor of several matrices (experts); it is 1 for any other.
    """

    factor: torch.Tensor
    innovation: Array
    row: Array

    def every(self, step: int) -> Prepared:
        """With each so many-th row of each matrix."""
        return replace(self, row=some_rows(self.row, len(self.innovation), step))

    def steps(self) -> tuple[Array, Array]:
        """(of rows, of columns): what the step of a row and a column is the product of, but for c.

        The columns' steps serve the whole stack: their geometric mean. What all steps of a matrix differ from
        it goes to its rows.
        """
        if len(self.innovation) == 1:
            return self.row, 1 / self.innovation[0]
        logs = -np.log(self.innovation)
        level = logs.mean(1) - logs.mean()
        return self.row * np.repeat(np.exp(level), len(self.row) // len(level)), np.exp(logs.mean(0))


def some_rows(values: Any, stack: int, step: int) -> Any:
    """``values`` [stack * rows, ...] at each so many-th row of each matrix of the stack."""
    parts = values.reshape(stack, len(values) // stack, *values.shape[1:])
    some = parts[:, step // 2 if step < parts.shape[1] else 0 :: step]
    return some.reshape(-1, *values.shape[1:])


def prepare(statistics: Statistics, settings: Settings) -> Prepared:
    """Raises RdqError where H is not finite."""
    hessians = statistics.hessian if statistics.hessian.ndim == 3 else statistics.hessian[None]
    sensitivity = np.maximum(np.asarray(statistics.sensitivity, np.float64), 0).reshape(len(hessians), -1)
    inverses = torch.stack([_inverse_root(hessian, settings) for hessian in hessians])
    diagonals = inverses.diagonal(dim1=1, dim2=2)
    return Prepared(
        factor=inverses / diagonals[:, :, None],
        innovation=(1 / diagonals).numpy().copy(),
        row=np.concatenate([_row_factors(rows, settings) for rows in sensitivity]),
    )


def _inverse_root(hessian: torch.Tensor, settings: Settings) -> torch.Tensor:
    """U, upper triangular, with ``(H + damping)^-1 = U^T U``."""
    hessian = hessian.double()
    if not bool(torch.isfinite(hessian).all()):
        raise RdqError("statistics: not finite; use other calibration text, or --data-free")
    mean = float(hessian.diagonal().mean()) or 1.0
    hessian.diagonal().add_(settings.damping * mean)
    if not settings.feedback:
        hessian = torch.diag(hessian.diagonal())
    # H = R R^T with R upper triangular, from the Cholesky factor of H turned by 180 degrees; U = R^-1.
    turned = torch.linalg.cholesky(hessian.flip(0, 1))
    root = turned.flip(0, 1)
    unit = torch.eye(len(root), dtype=root.dtype, device=root.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(root, unit, upper=True)
    return inverse.cpu()


def _row_factors(sensitivity: Array, settings: Settings) -> Array:
    floor = float(sensitivity.mean()) * 1e-6 or 1.0
    logs = -0.5 * np.log(np.maximum(sensitivity, floor))
    middle, limit = logs.mean(), np.log(settings.row_range)
    clipped: Array = np.exp(middle + np.clip(settings.row_part * (logs - middle), -limit, limit))
    return clipped


def quantize(weight: torch.Tensor, prepared: Prepared, c: float, settings: Settings) -> Quantized:
    """``weight`` [stack * rows, columns] with the steps ``c * row * U_jj``.

    Raises RdqError for weights not finite.

    A row whose codes would not fit gets wider steps instead of clipped weights.
    """
    matrix = weight.double().cpu().numpy()
    if not np.isfinite(matrix).all():
        raise RdqError("weights: not finite; repair the model first")
    row, column = prepared.steps()
    row = c * row
    largest = np.abs(matrix / column).max(1)
    reach = ROOM * MAX_CODE * (2 if settings.states > 1 else 1)
    for _ in range(64):
        steps = _steps(np.maximum(row, largest / reach), column)
        found = _passes(matrix, prepared, c, steps, settings)
        full = (np.abs(found.coded.codes) >= MAX_CODE).any(1)
        if not full.any():
            return found
        row = np.where(full, np.maximum(row, largest / reach) * 1.25, row)
        largest = np.where(full, largest * 1.25, largest)
    raise RdqError("weights: too wide a range for any step; leave this matrix out")


@dataclass(frozen=True)
class Quantized:
    """``counts`` int64 [CLASSES, 2, MAX_CODE + 1]: how often each magnitude occurs by class and quantizer."""

    coded: CodedMatrix
    counts: NDArray[np.int64]

    @property
    def predicted_bytes(self) -> float:
        """Codes under tables of their own, and about a byte for each row and column."""
        return entropy_bits(self.counts) / 8 + sum(self.coded.shape)


@dataclass(frozen=True)
class _Steps:
    """The step of (row, column) is ``step * 2**((row + column - 256) / 8)``."""

    step: float
    row: NDArray[np.uint8]
    column: NDArray[np.uint8]

    def row_factors(self) -> Array:
        found: Array = (np.float32(self.step) * scales(self.row)).astype(np.float64)
        return found

    def column_factors(self) -> Array:
        return scales(self.column).astype(np.float64)


def _steps(row: Array, column: Array) -> _Steps:
    """The nearest that can be stored: factors around their middle, the middle itself in ``step``."""
    row_log, column_log = np.log2(row), np.log2(column)
    row_middle, column_middle = (float(logs.max() + logs.min()) / 2 for logs in (row_log, column_log))
    step = float(np.float32(np.clip(2.0 ** (row_middle + column_middle), MIN_STEP, MAX_STEP)))
    stored = [
        np.clip(np.rint(SCALES_PER_OCTAVE * (logs - middle)) + 128, 0, 255).astype(np.uint8)
        for logs, middle in ((row_log, row_middle), (column_log, column_middle))
    ]
    return _Steps(step, stored[0], stored[1])


def _passes(matrix: Array, prepared: Prepared, c: float, steps: _Steps, settings: Settings) -> Quantized:
    """First with the prior's code lengths; then with those, and the centroids, of the pass before."""
    per_index = 2 if settings.states > 1 else 1
    units = matrix / (per_index * steps.row_factors()[:, None] * steps.column_factors())
    row_spread, column_spread = spreads(units)
    coded = CodedMatrix(
        np.zeros(matrix.shape, np.int16), steps.row, steps.column, row_spread, column_spread, steps.step,
        np.zeros((2, 4), np.float16), settings.states,
    )  # fmt: skip
    lengths = prior_lengths(settings.states)
    for number in range(settings.passes):
        codes, counts, centroids = _feedback(matrix, prepared, c, coded, lengths, settings)
        coded = replace(coded, codes=codes)
        if number + 1 == settings.passes:
            break
        lengths = measured_lengths(counts, settings.states)
        row_spread, column_spread = spreads(codes.astype(np.float32))
        coded = replace(coded, centroids=centroids, row_spread=row_spread, column_spread=column_spread)
    return Quantized(coded, counts)


def _feedback(
    matrix: Array, prepared: Prepared, c: float, coded: CodedMatrix, lengths: Array, settings: Settings
) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.float16]]:
    """Codes [stack * rows, columns], their counts, and the centroids that they came to.

    The matrices of a stack follow each other down the columns: each takes up the states of the trellis that
    the one above it ended in.
    """
    codes = np.empty(matrix.shape, np.int16)
    counts = np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64)
    shifts = np.zeros((2, 4, 2))
    states = np.zeros(matrix.shape[1], np.int64)
    costs = lengths * taper()[:, None, None]
    stack = len(prepared.innovation)
    for number, rows in enumerate(np.split(np.arange(len(matrix)), stack)):
        part = slice(rows[0], rows[-1] + 1)
        own = Prepared(prepared.factor[number], prepared.innovation[number], prepared.row[part])
        codes[part] = _fed(matrix, own, c, coded, part, costs, settings, counts, shifts, states).T
    return codes, counts, _centroids(shifts)


def _fed(
    matrix: Array, own: Prepared, c: float, coded: CodedMatrix, part: slice, costs: Array, settings: Settings,
    counts: Array, shifts: Array, states: Array,
) -> NDArray[np.int16]:  # fmt: skip
    """Codes [columns, rows] of a part of the rows, by blocks of columns; the last three are added to.

    ``own``: of these rows, without the dimension of the stack.
    """
    x = torch.from_numpy(np.ascontiguousarray(matrix[part].T))
    columns, rows = x.shape
    steps = _Steps(coded.step, coded.row_scale[part], coded.column_scale)
    row_step, column_step = steps.row_factors(), steps.column_factors()
    row_weight = (row_step / (c * own.row)) ** 2
    column_weight = (column_step * own.innovation) ** 2
    trellis = NEXT_STATE[settings.states].astype(np.int64)
    quantizer_of = QUANTIZER_OF_STATE[settings.states].astype(np.int64)
    ways = incoming(trellis, quantizer_of) if settings.states > 1 else np.zeros((1, 2, 2), np.int64)
    row_class = coded.row_spread[part].astype(np.int64) - CLASS_OFFSET
    column_class = coded.column_spread.astype(np.int64)
    codes = np.empty((columns, rows), np.int16)
    errors = torch.empty((min(BLOCK, columns), rows), dtype=torch.float64)
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        quantize_block(
            x[start:end].numpy(), own.factor[start:end, start:end].contiguous().numpy(), row_step,
            column_step[start:end], row_weight, column_weight[start:end], row_class, column_class[start:end],
            costs, coded.centroids.astype(np.float64), settings.kappa, ways, quantizer_of, trellis,
            codes[start:end], errors.numpy(), counts, shifts, states[start:end],
        )  # fmt: skip
        if end < columns and settings.feedback:
            x[end:].addmm_(own.factor[start:end, end:].T, errors[: end - start], alpha=-1)
    return codes


def _centroids(shifts: Array) -> NDArray[np.float16]:
    """How much nearer to zero than their points the weights of each quantizer and magnitude lie, in steps."""
    found = shifts[..., 0] / (shifts[..., 1] + 8.0)
    return np.clip(found, -1, 1).astype(np.float16)
