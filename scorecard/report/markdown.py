"""The score table as GitHub Markdown, for a README or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Sequence

from scorecard.report.columns import Column, columns
from scorecard.report.summary import notes, problems, title
from scorecard.row import Row, Table, groups

_ESCAPES = str.maketrans({"|": "\\|", "*": "\\*", "_": "\\_", "<": "&lt;", "`": "\\`", "\n": " "})


def render(table: Table, most: int | None = None) -> str:
    """One table per model with all its columns, or with the `most` important ones; then what to know."""
    made = columns(table)
    kept = {c.key for c in sorted(made, key=lambda c: c.priority)[:most]}
    chosen = [column for column in made if column.key in kept]
    blocks = [f"**{_escaped(title(table))}**"]
    for model, rows in table.models():
        blocks.append(f"`{model}`")
        for label, group in groups(rows):
            blocks += [*([_escaped(f"scored otherwise: {label}")] if label else []), _table(group, chosen)]
    listed = [f"- {_escaped(text)}" for text in problems(table)]
    return "\n\n".join([*blocks, *(["\n".join(listed)] if listed else []), "\n".join(_footer(table))]) + "\n"


def _table(rows: Sequence[Row], chosen: Sequence[Column]) -> str:
    header = [_escaped(" ".join(filter(None, column.key))) for column in chosen]
    rule = [":--" if column.left else "--:" for column in chosen]
    body = [[_escaped(column.cell(row)) for column in chosen] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *body])


def _footer(table: Table) -> list[str]:
    return [f"<sub>{_escaped(line)}</sub>  " for line in notes(table)]


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)
