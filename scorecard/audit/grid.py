"""Some rows of a compressed weight: codes, how they are read, and how far they are from plain rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scorecard.audit.numbers import Floats, Ints

_SLACK, _BFLOAT16 = 0.05, 2**-7


@dataclass(frozen=True)
class Grid:
    """``weight = (level - zero) * scale``, element by element; all arrays are [rows, in_features].

    ``levels`` are the values that the codes stand for. ``table`` holds every value that a code can stand for,
    sorted.
    """

    levels: Floats
    scale: Floats
    zero: Floats
    table: Floats

    def weights(self) -> Floats:
        return (self.levels - self.zero) * self.scale

    def clearly_not_rounded(self, original: Floats) -> NDArray[np.bool_]:
        """Where a level is not the one nearest to the original, and arithmetic in bfloat16 is no excuse.

        A level is that much further away than the nearest one, in steps of the table: 0 for what rounding
        gives; up to twice the error of the quotient for what rounding in bfloat16 gives (2^-9 of it, 2^-8
        where the scale was rounded too); 1 and less for the next level, 1 and more for those beyond.
        """
        import numpy as np

        safe = np.where(self.scale == 0, 1, self.scale)
        exact = np.clip(original / safe + self.zero, self.table[0], self.table[-1])
        above = np.clip(np.searchsorted(self.table, exact, "right"), 1, len(self.table) - 1)
        low, high = self.table[above - 1], self.table[above]
        nearest = np.minimum(exact - low, high - exact)
        away = (np.abs(self.levels - exact) - nearest) / (high - low)
        excuse = _SLACK + _BFLOAT16 * np.abs(exact - self.zero) / (high - low)
        moved: NDArray[np.bool_] = (away > excuse) & (self.scale != 0)
        return moved


@dataclass(frozen=True)
class Stored:
    """How a layer is stored. ``None`` where the format has no such thing, or where it cannot be told.

    ``bits`` is the width of a code; ``group_size`` counts input features that share a scale;
    ``held_in_bits`` is the room that each code takes in the file. ``read`` gives some rows of the grid.
    ``drifts``: errors go where the layer's inputs do not see them, and may be larger than the weights.
    """

    format: str
    bits: float | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    held_in_bits: float | None = None
    read: Callable[[Ints], Grid] | None = None
    drifts: bool = False
