"""The score table as it ends a pytest run: as many columns as fit, and no line longer than the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from scorecard.report.columns import Column, columns
from scorecard.report.summary import notes, problems, title
from scorecard.row import Row, Table, groups

GAP = "  "
_CONFIG_AT_LEAST = 8
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32"}


def render(table: Table, width: int = 80, *, color: bool = False) -> str:
    """The table in at most `width` columns; columns of low priority go first. No escape codes by default.

    Config names are cut with ``…`` only when not even the columns that are always kept would fit.
    """
    lines = [_styled(line, "bold", color) for line in textwrap.wrap(title(table), width)]
    if not table.rows:
        return "\n".join([*lines, "no cases"])
    chosen, widths = _fitting(columns(table), table.rows, width)
    several = len(dict(table.models())) > 1
    lines += [
        "",
        *(_line(heads, chosen, widths, width) for heads in zip(*(c.key for c in chosen), strict=True)),
    ]
    for model, rows in table.models():
        if several:
            lines.append(_styled(_cut(model, width), "bold", color))
        for label, group in groups(rows):
            lines += [_styled(line, "bold", color) for line in _apart(label, width)]
            lines += [_row(row, chosen, widths, width, color) for row in group]
    below = [line for text in problems(table) for line in textwrap.wrap(text, width, subsequent_indent="  ")]
    explained = [line for text in notes(table) for line in textwrap.wrap(text, width, subsequent_indent="  ")]
    return "\n".join(
        [*lines, "", *below, *([""] if below else []), *(_styled(x, "dim", color) for x in explained)]
    )


def _apart(label: str, width: int) -> list[str]:
    """The lines over a group that is not ranked with the baseline's; none over that itself."""
    return textwrap.wrap(f"scored otherwise: {label}", width) if label else []


def _fitting(made: Sequence[Column], rows: Sequence[Row], width: int) -> tuple[list[Column], list[int]]:
    """The columns that fit, in their order, and the width of each."""
    widths = {c.key: max(map(len, (*c.key, *(c.cell(row) for row in rows)))) for c in made}
    kept: set[tuple[str, str]] = set()
    used = -len(GAP)
    for column in sorted(made, key=lambda c: c.priority):
        needed = len(GAP) + widths[column.key]
        if column.priority == 0 or used + needed <= width:
            kept.add(column.key)
            used += needed
    if used > width:
        widths["config", ""] = max(_CONFIG_AT_LEAST, widths["config", ""] - (used - width))
    chosen = [column for column in made if column.key in kept]
    return chosen, [widths[column.key] for column in chosen]


def _row(row: Row, chosen: Sequence[Column], widths: Sequence[int], width: int, color: bool) -> str:
    line = _line([column.cell(row) for column in chosen], chosen, widths, width)
    style = "green" if row.rank == 1 else "red" if row.status == "failed" else "dim" if row.reference else ""
    return _styled(line, style, color)


def _line(cells: Sequence[str], chosen: Sequence[Column], widths: Sequence[int], width: int) -> str:
    parts = []
    for cell, column, room in zip(cells, chosen, widths, strict=True):
        text = _cut(cell, room)
        parts.append(text.ljust(room) if column.left else text.rjust(room))
    return _cut(GAP.join(parts).rstrip(), width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _styled(text: str, style: str, color: bool) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if color and style else text
