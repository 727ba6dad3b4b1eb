"""What the readers of whole-number codes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scorecard.audit import numbers
from scorecard.audit.grid import Grid
from scorecard.safetensors_header import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scorecard.audit.numbers import Floats, Ints

Read = Callable[["Ints"], Grid]


def columns(tensor: Tensor, rows: Ints) -> NDArray[Any]:
    """Some columns of a matrix, as rows."""
    import numpy as np

    return np.ascontiguousarray(numbers.raw(tensor)[:, rows].T)


def groups(order: Tensor | None, width: int, groups: int) -> Ints:
    """The group of each input feature."""
    import numpy as np

    if order is not None and order.count == width:
        return numbers.raw(order).reshape(-1).astype(np.int64) % groups
    return np.arange(width, dtype=np.int64) // -(-width // groups)


def size(width: int, groups: int) -> int:
    return -(-width // groups)


def grid(levels: Ints, scale: Floats, zero: Floats, low: int, high: int) -> Grid:
    import numpy as np

    table = np.arange(low, high + 1, dtype=np.float32)
    return Grid(levels.astype(np.float32), scale, zero, table)


def middle(read: Read, out: int, bits: int | None) -> bool:
    """Whether all zero points (of a few rows) are in the middle of the grid (``None``: at 0)."""
    grid = read(numbers.sample(out, 16))
    return bool((grid.zero == (0 if bits is None else 2 ** (bits - 1))).all())
