"""Some rows of a layer beside the same rows of the original.

64 rows, evenly spread and always the same, are enough to tell layers apart, and bound time and memory: they
are 1 % of the weights of an 8B model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorecard.audit import numbers
from scorecard.audit.grid import Stored
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scorecard.audit.numbers import Floats, Ints

SAMPLED_ROWS = 64
_GRID_WINDOWS = (32, 64, 128, 256, 1024)
_SAME = 0.003  # relative error of nothing but another 16-bit type: bfloat16 gives 0.0017
_STEPS = 4


@dataclass(frozen=True)
class Look:
    """``relative_error``: ‖W − Ŵ‖ / ‖W‖ over the sampled rows; if ``rescaled``, up to factors of rows and
    columns.

    ``rounding_difference``: share of codes that are clearly not what plain rounding of the original with
    the stored scales gives; ``None`` for plain floats. ``zeros``, ``original_zeros``: share of zero weights.
    ``levels``: for plain floats that lie on a grid, values in a group (at most), else ``None``.
    ``cosine``: of the angle between W and Ŵ, 0 where either is zero; ``gain``: the factor a with which aW is
    closest to Ŵ.
    """

    relative_error: float
    rescaled: bool
    rounding_difference: float | None
    zeros: float
    original_zeros: float
    levels: int | None
    cosine: float
    gain: float

    @property
    def same(self) -> bool:
        """As the original, but for the float type."""
        return self.relative_error < _SAME and self.rounding_difference is None


def look(
    weight: Tensor,
    stored: Sequence[Tensor],
    layout: Stored,
    shape: tuple[int, int],
    *,
    transposed: bool = False,
    rescaled: bool = False,
) -> Look | None:
    """``weight``: the original's. ``None`` where the layout cannot be read."""
    import numpy as np

    rows = numbers.sample(shape[0], SAMPLED_ROWS)
    if not len(rows) or not shape[1] or not numbers.readable(weight):
        return None
    original = _rows(weight, rows, transposed=transposed)
    if layout.format == "plain":
        here = max(stored, key=lambda tensor: tensor.count)
        weights = _rows(here, rows, transposed=transposed)
        difference, levels = None, grid_levels(weights, original)
    elif layout.read is None:
        return None
    else:
        with np.errstate(all="ignore"):  # broken scales are another finding
            grid = layout.read(rows)
            weights, levels = grid.weights(), None
            difference = float(grid.clearly_not_rounded(original).mean())
    if not np.isfinite(weights).all() or not np.isfinite(original).all():
        return None
    return Look(
        _error_up_to_scales(original, weights) if rescaled else _error(original, weights),
        rescaled,
        difference,
        float((weights == 0).mean()),
        float((original == 0).mean()),
        levels,
        *_direction(original, weights),
    )


def _rows(tensor: Tensor, rows: Ints, *, transposed: bool) -> Floats:
    raw = numbers.raw(tensor)
    flat = raw.reshape(-1, raw.shape[-1])
    return numbers.decoded(flat[:, rows].T if transposed else flat[rows], tensor.dtype)


def _error(original: Floats, weights: Floats) -> float:
    import numpy as np

    size = float(np.linalg.norm(original))
    away = float(np.linalg.norm(original - weights))
    return away / size if size else float(away > 0)


def _direction(original: Floats, weights: Floats) -> tuple[float, float]:
    """Cosine and gain."""
    import numpy as np

    size, here = float(np.linalg.norm(original)), float(np.linalg.norm(weights))
    if not size or not here:
        return 0.0, 0.0
    cosine = float((original / size * (weights / here)).sum())
    return cosine, cosine * here / size


def _error_up_to_scales(original: Floats, weights: Floats) -> float:
    """‖Ŵ − R W C‖ / ‖Ŵ‖ with the diagonal R and C that fit best, found by turns of least squares."""
    import numpy as np

    size = float(np.linalg.norm(weights))
    if not size:
        return 1.0
    wide, here = original.astype(np.float64), weights.astype(np.float64)
    rows: NDArray[Any] = np.ones((len(weights), 1))
    columns: NDArray[Any] = np.ones((1, weights.shape[1]))
    for _ in range(_STEPS):
        columns = _fit(rows * wide, here, 0)
        rows = _fit(wide * columns, here, 1)
    return float(np.linalg.norm(here - rows * wide * columns)) / size


def _fit(old: NDArray[Any], new: NDArray[Any], axis: int) -> NDArray[Any]:
    """The factor along an axis that brings ``old`` closest to ``new``."""
    import numpy as np

    squares = (old * old).sum(axis, keepdims=True)
    factors: NDArray[Any] = (old * new).sum(axis, keepdims=True) / np.where(squares == 0, 1, squares)
    return factors


def grid_levels(weights: Floats, original: Floats) -> int | None:
    """The most values that a group of ``weights`` takes, if so few that they must have been quantized.

    Few: at most a quarter of the group, and half of what the original has there. So 4 bits show in groups of
    64 and more, 8 bits in rows of 1024.
    """
    for window in _GRID_WINDOWS:
        usable = weights.shape[1] // window * window
        if not usable:
            return None
        here, there = (_most_values(part[:, :usable], window) for part in (weights, original))
        if here <= window // 4 and 2 * here <= there:
            return here
    return None


def _most_values(weights: Floats, window: int) -> int:
    import numpy as np

    ordered = np.sort(weights.reshape(-1, window), axis=1)
    return int((np.diff(ordered, axis=1) != 0).sum(1).max()) + 1
