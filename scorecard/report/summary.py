"""The words around the table: what was run, what its signs mean, and what did not work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scorecard.gate import told
from scorecard.noise import told as floor_told
from scorecard.report.columns import status_word
from scorecard.row import KL_GUARD, Table


def title(table: Table) -> str:
    """One sentence: tasks, shots, limit, number of documents, dtype, lm-eval version."""
    settings = table.settings
    tasks = settings.get("tasks") or []
    named = f" ({', '.join(tasks)})" if 0 < len(tasks) <= 8 else ""
    documents = settings.get("documents")
    parts = [
        f"{len(tasks)} task{'s' * (len(tasks) != 1)}{named}",
        f"{_listed(settings.get('num_fewshot'), '0')}-shot",
        f"limit {_listed(settings.get('limit'), 'none')}",
        f"n = {documents:,} documents" if documents else "no documents",
        f"dtype {_listed(settings.get('dtype'), 'auto')}",
        f"lm-eval {_listed(settings.get('lm_eval_version'), 'not run')}",
    ]
    return "score table: " + ", ".join(parts)


def notes(table: Table) -> list[str]:
    """At most four lines, each short enough for 80 columns, that explain the signs in the table."""
    rule = {
        "raw": "raw: mean accuracy per GiB",
        "chance-corrected": "chance-corrected: mean of (a-h)/(1-h) per GiB, h: chance level",
        "recovery": "recovery: mean accuracy / the baseline's",
    }.get(table.ranking) or (
        f"{table.ranking}: accuracy/GiB; – if recovery < {table.ranking.removeprefix('floor-')} %"
        f" or KL > {KL_GUARD} nats/token"
    )
    return [
        "±: standard error. Δ: to the baseline, paired. –: not measured. *: Pareto front",
        f"Ranked by {rule}",
        "1=: ranks are shared where paired tests (Holm) cannot tell the scores apart",
        "(null): guesses, no weights. (lossless): the original, zstd. Both unranked",
    ]


def problems(table: Table) -> list[str]:
    """One paragraph per case that failed or was skipped, per threshold of a gate that is not passed, per
    audit finding, per note, and per model whose noise floor is known."""
    several = len({row.model for row in table.rows}) > 1
    names = {row.case: row.case if several else row.config for row in table.rows}
    failed = [
        f"{status_word(row)} {names[row.case]}: {row.reason}" for row in table.rows if row.status != "ok"
    ]
    judged = [
        f"gate {names[row.case]}: {told(name, check)}"
        for row in table.rows
        for name, check in row.gate_checks.items()
        if check.outcome != "pass"
    ]
    found = [(f"audit {text}", names[row.case]) for row in table.rows for text in row.findings]
    noted = [(f"note {text}", names[row.case]) for row in table.rows for text in row.notes]
    floors = table.settings.get("noise_floor") or {}
    noise = [f"noise floor of {model}, scored twice: {floor_told(floor)}" for model, floor in floors.items()]
    return failed + judged + _grouped(found) + _grouped(noted) + noise


def _grouped(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Equal texts once, with all the cases they hold for."""
    texts = dict.fromkeys(text for text, _ in pairs)
    return [f"{text} ({', '.join(name for other, name in pairs if other == text)})" for text in texts]


def _listed(values: Any, missing: str) -> str:
    return "/".join(missing if value is None else str(value) for value in values or [None])
