"""Two cases side by side, as text: what differs, how surely, and on which documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scorecard.compare import Comparison, TaskComparison
from scorecard.resample import Interval
from scorecard.significance import holm

_HEADER = ("task", "documents", "contexts", "Δ points [95 %]", "gained", "lost", "p", "p (Holm)")


def render(found: Comparison, names: tuple[str, str], most: int = 20) -> str:
    """At most `most` flipped documents are listed for each task and direction."""
    first, second = names
    lines = [f"{first} minus {second}: {found.documents:,} documents of {len(found.tasks)} tasks", ""]
    lines += _aligned([list(pair) for pair in _overall(found)])
    if found.tasks:
        lines += ["", *_aligned([list(_HEADER), *_task_rows(found)])]
    lines += _flips(found, most)
    return "\n".join(lines)


def _overall(found: Comparison) -> Iterator[tuple[str, str]]:
    if found.accuracy and found.delta_accuracy:
        yield "mean accuracy", f"{_interval(found.accuracy, 100)} %, of the first"
        yield "Δ accuracy", f"{_interval(found.delta_accuracy, 100, '+')} points, on these tasks"
    if found.delta_over_tasks:
        yield (
            "",
            f"{_interval(found.delta_over_tasks, 100, '+')} points, tasks taken for a sample of all tasks",
        )
    if found.recovery:
        yield "recovery", f"{_interval(found.recovery, 100)} %"
    if found.delta_score:
        yield "Δ score", f"{_interval(found.delta_score, 1, '+,', '.4g')} accuracy / GiB"
    if found.mcnemar_p is not None:
        yield "flips", f"{found.gained} gained, {found.lost} lost; p = {_p(found.mcnemar_p)}"
    if found.delta_kl and found.kl_p is not None:
        yield "Δ KL", f"{_interval(found.delta_kl, 1, '+', '.2g')} nats per token; p = {_p(found.kl_p)}"


def _task_rows(found: Comparison) -> Iterator[list[str]]:
    adjusted = holm({name: task.p for name, task in found.tasks.items()})
    for name, task in found.tasks.items():
        counts = [_count(task.gained), _count(task.lost)]
        delta = _interval(task.delta, 100, "+")
        yield [
            name,
            str(task.documents),
            str(task.clusters),
            delta,
            *counts,
            _p(task.p),
            _p(adjusted[name]),
        ]


def _flips(found: Comparison, most: int) -> Iterator[str]:
    for name, task in found.tasks.items():
        for word, documents in _directions(task):
            if documents and most:
                rest = f" and {len(documents) - most} more" if len(documents) > most else ""
                yield f"\n{name}, {word}: {' '.join(map(str, documents[:most]))}{rest}"


def _directions(task: TaskComparison) -> Sequence[tuple[str, tuple[int, ...]]]:
    return ("gained", task.gained or ()), ("lost", task.lost or ())


def _count(documents: tuple[int, ...] | None) -> str:
    return "–" if documents is None else str(len(documents))


def _interval(interval: Interval, factor: float, sign: str = "", form: str = ".1f") -> str:
    value, low, high = (f"{factor * x:{sign}{form}}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first column to the left, the last of two too, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if len(widths) == 2:
        return [f"{name:<{widths[0]}}  {text}".rstrip() for name, text in rows]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
