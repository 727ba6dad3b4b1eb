"""The leaderboard as one HTML file that loads nothing. All text in it comes from strangers and is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from scorecard.leaderboard import Entry, columns

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NUMBERS = ("#", "accuracy %", "bytes", "code", "score /GiB")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { border-bottom: 2px solid; white-space: nowrap; }
td { border-bottom: 1px solid #8884; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verified { color: light-dark(#17692b, #7bd88f); }
.undecided { color: light-dark(#7a5600, #e5c07b); }
.false, .refused { color: light-dark(#a3161f, #ff8b8b); }
.state { white-space: nowrap; }
tr.group td { font-weight: 600; padding-top: 1.2rem; }
details { color: inherit; }
summary { cursor: pointer; }
pre { margin: .4rem 0; white-space: pre-wrap; font-size: .85em; }
p, footer { color: light-dark(#555, #aaa); }
"""
_EXPLAINED = (
    "Every number was measured here, not claimed. Score: mean accuracy per GiB of the model's files. "
    "±: standard error. 1=: shared ranks, where a paired test on the same documents (Holm) cannot tell two "
    "scores apart. ✓: all claims hold. ?: one could not be decided. ✗: one is false, or the zip was refused; "
    "not ranked."
)


def render(entries: Sequence[Entry], title: str = "Leaderboard") -> str:
    """The whole page."""
    heads = "".join(f"<th{_number(name)}>{escape(name)}</th>" for name in columns())
    body, several = [], len({entry.group for entry in entries if entry.group}) > 1
    group: int | None = 0
    for entry in entries:
        if several and entry.group != group:
            group = entry.group
            body.append(f'<tr class="group"><td colspan="{len(columns())}">{_alike(entry)}</td></tr>')
        body.append(_row(entry))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(_EXPLAINED)}</p>
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table>
<footer><p>Made by <code>scorecard leaderboard</code>.</p></footer>
</body>
</html>
"""


def _number(name: str) -> str:
    return ' class="number"' if name in _NUMBERS else ""


def _row(entry: Entry) -> str:
    cells = []
    for name, cell in columns().items():
        shown = escape(cell(entry))
        if name == "submission":
            shown += _details(entry)
        kind = f' class="state {entry.state}"' if name == "claims" else _number(name)
        cells.append(f"<td{kind}>{shown}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _details(entry: Entry) -> str:
    """Why it is refused, or its verdicts; those that do not hold stay visible."""
    if entry.report is None:
        return f'<pre class="refused">{escape(entry.refused or "")}</pre>'
    found = [line for v in entry.report.verdicts for line in (v.line, *(f"    {d}" for d in v.details))]
    found += [f"note: {note}" for note in entry.report.notes]
    found.append(f"sha256 {entry.report.sha256}")
    wrong = f'<pre class="{entry.state}">{escape(chr(10).join(entry.lines))}</pre>' if entry.lines else ""
    inside = escape("\n".join(found))
    return f"{wrong}<details><summary>all claims</summary><pre>{inside}</pre></details>"


def _alike(entry: Entry) -> str:
    """What the entries of a group share."""
    if entry.report is None:
        return "refused"
    settings = ", ".join(
        f"{name} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in entry.report.settings.items()
        if value not in (None, False)
    )
    return escape(f"{entry.report.model}: {settings}")
