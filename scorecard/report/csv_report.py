"""The score table as CSV: one line per row, every key of a row in a column of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorecard.row import Table

if TYPE_CHECKING:
    import pandas as pd


def render(table: Table) -> str:
    """RFC 4180 text in which every row is one line that ends with ``\\n``.

    A value that was not measured is an empty cell. Nested keys are joined by dots (``tasks.NAME.value``),
    lists by ``; ``. Floats keep all their digits.
    """
    return frame(table).to_csv(index=False, lineterminator="\n")


def frame(table: Table) -> pd.DataFrame:
    """The same as a DataFrame, for work in a notebook. Integers stay integers beside missing values."""
    import pandas as pd

    flat = [row.flat() for row in table.rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    cells = [[_one_line(row.get(name)) for name in names] for row in flat]
    return pd.DataFrame(cells, columns=names, dtype=object)


def _one_line(value: Any) -> Any:
    return " ".join(value.splitlines()) if isinstance(value, str) else value
