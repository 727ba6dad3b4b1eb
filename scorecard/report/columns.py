"""The columns that the terminal and Markdown tables share: how each value is shown, and which matter most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scorecard.row import DEFAULT_RANKING, GIB, SCORES, Row, Table, groups

MISSING = "–"
MIB = 2**20

_GATES = {"pass": "pass", "fail": "FAIL", "inconclusive": "?"}
_STATUS = {"failed": "failed", "skipped": "skipped", "expected failure": "xfailed"}


@dataclass(frozen=True)
class Column:
    """One column. A lower `priority` is kept longer when the table must get narrower; 0 is always kept."""

    title: str
    unit: str
    priority: int
    cell: Callable[[Row], str]
    left: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.title, self.unit


def columns(table: Table) -> list[Column]:
    """All columns that have a value in some row, in the order they are shown."""
    unit, size = ("GiB", GIB) if _largest(table, "size_bytes") >= GIB else ("MiB", MIB)
    ranked = [rows for _, model in table.models() for _, rows in groups(model)]
    shared = {id(row) for rows in ranked for row in rows if _shares_rank(row, rows)}
    recovery = 3 if table.ranking == "recovery" else 7
    made = [
        Column("#", "", 0, lambda row: _rank(row, id(row) in shared), left=True),
        Column("config", "", 0, lambda row: f"({row.config})" if row.reference else row.config, left=True),
        Column("P", "", 6, lambda row: "*" if row.pareto else " "),
        Column("gate", "", 2, lambda row: _GATES.get(row.gate or "", " ")),
        Column("size", unit, 2, _shown("size_bytes", lambda v: _decimals(v / size))),
        Column("bits", "/weight", 9, _shown("bits_per_weight", "{:.2f}".format)),
        Column("accuracy", "%", 1, _accuracy),
        Column("Δ [95 %]", "points", 8, _delta),
        Column("recovery", "%", recovery, _shown("recovery", _percent)),
        Column("recovery", "% [95 %]", 23, _percent_ends("recovery")),
        Column("p", "Holm", 26, _shown("mcnemar_p_holm", _probability)),
        Column("KL", "nats", 4, _shown("kl", "{:.4f}".format)),
        Column("± KL", "nats", 28, _shown("kl_stderr", "{:.4f}".format)),
        Column("top-1", "%", 12, _shown("top1", _percent)),
        Column("perplexity", "/token", 13, _shown("perplexity", _decimals)),
        Column("bits", "/byte", 27, _shown("bits_per_byte", "{:.3f}".format)),
        *_task_columns(table),
        Column("prefill", "ms", 11, _shown("prefill_p50_ms", "{:.1f}".format)),
        Column("decode", "tok/s", 10, _shown("decode_tokens_per_second", "{:.1f}".format)),
        Column("prefill", "speedup", 19, _shown("prefill_speedup", "{:.2f}".format)),
        Column("decode", "speedup", 18, _shown("decode_speedup", "{:.2f}".format)),
        Column("load", "s", 22, _shown("load_seconds", "{:.1f}".format)),
        Column("peak", "MiB", 14, _shown("peak_host_memory_bytes", _mebibytes)),
        Column("CUDA", "MiB", 15, _shown("peak_cuda_memory_bytes", _mebibytes)),
        Column("compress", "s", 16, _shown("compress_seconds", "{:.1f}".format)),
        *_score_columns(table),
        Column("raw", "/GiB [95 %]", 29, _score_ends),
        Column("ranks", "[95 %]", 30, _rank_ends),
    ]
    return [column for column in made if column.priority < 2 or _has_values(column, table)]


def status_word(row: Row) -> str:
    """The word that stands for a case without numbers, as pytest would say it."""
    return _STATUS.get(row.status, "")


def _score_columns(table: Table) -> list[Column]:
    """One column per score per GiB; the one the table is ranked by comes first and stays longest."""
    places = {"raw": 5, "chance-corrected": 17, DEFAULT_RANKING: 20, "floor-99": 24, "floor-90": 25}
    names = [name for name in SCORES if name != "recovery"]
    names.sort(key=lambda name: name != table.ranking)
    return [
        Column(name, "/GiB", 3 if name == table.ranking else places[name], _shown(SCORES[name], _compact))
        for name in names
    ]


def _task_columns(table: Table) -> list[Column]:
    tasks = {name: task for row in table.rows for name, task in row.tasks.items()}
    return [
        Column(name, "%" if task.accuracy else task.metric, 21, _task(name)) for name, task in tasks.items()
    ]


def _largest(table: Table, key: str) -> float:
    return max((getattr(row, key) or 0 for row in table.rows), default=0)


def _shares_rank(row: Row, rows: Sequence[Row]) -> bool:
    return row.rank is not None and sum(other.rank == row.rank for other in rows) > 1


def _rank(row: Row, shared: bool) -> str:
    return MISSING if row.rank is None else f"{row.rank}{'=' if shared else ''}"


def _has_values(column: Column, table: Table) -> bool:
    return any(column.cell(row).strip() not in ("", MISSING) for row in table.rows)


def _shown(key: str, form: Callable[[float], str]) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = getattr(row, key)
        return MISSING if value is None else form(value)

    return cell


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _mebibytes(value: float) -> str:
    return f"{value / MIB:.0f}"


def _decimals(value: float) -> str:
    """Two decimals, but at least two digits that are not zero and at most six digits."""
    return f"{value:.2g}" if 0 < value < 0.1 else f"{value:.2f}" if value < 1e4 else f"{value:.3g}"


def _compact(value: float) -> str:
    """Four significant digits, without an exponent for what is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def _accuracy(row: Row) -> str:
    if row.mean_accuracy is None:
        return status_word(row) or MISSING
    return _with_error(100 * row.mean_accuracy, row.mean_accuracy_stderr, 100, ".1f")


def _with_error(value: float, stderr: float | None, factor: float, form: str) -> str:
    """A value is never shown without its uncertainty; ``?`` says that this is unknown."""
    return f"{value:{form}} ± {'?' if stderr is None else format(stderr * factor, form)}"


def _delta(row: Row) -> str:
    ends = row.delta_accuracy, row.delta_accuracy_low, row.delta_accuracy_high
    if any(end is None for end in ends):
        return MISSING
    value, low, high = (f"{100 * (end or 0.0):+.1f}" for end in ends)
    return f"{value} [{low}, {high}]"


def _percent_ends(key: str) -> Callable[[Row], str]:
    return _ends(key, lambda value: f"{100 * value:.1f}")


def _score_ends(row: Row) -> str:
    return _ends("score_raw", _compact)(row)


def _ends(key: str, form: Callable[[float], str]) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        low, high = getattr(row, f"{key}_low"), getattr(row, f"{key}_high")
        return MISSING if low is None or high is None else f"[{form(low)}, {form(high)}]"

    return cell


def _rank_ends(row: Row) -> str:
    if row.rank_low is None or row.rank_high is None:
        return MISSING
    return str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low}–{row.rank_high}"


def _probability(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def _task(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        task = row.tasks.get(name)
        if task is None or task.value is None:
            return MISSING
        if task.accuracy:
            return _with_error(100 * task.value, task.stderr, 100, ".1f")
        return _with_error(task.value, task.stderr, 1, ".4g")

    return cell
