"""The two rows that every table ends with: a uniform guesser, and the original with nothing lost.

They show where the bare ratio of accuracy to size leads: the guesser, all tokenizer and no weights, wins it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from scorecard.row import GIB, Row, TaskScore

NULL, LOSSLESS = "null", "lossless"


def reference_rows(
    model: str,
    own: Sequence[Row],
    baseline: Row | None,
    categories: Mapping[str, int] | None,
    lossless_bytes: int | None,
) -> list[Row]:
    """Rows ``null`` and ``lossless`` of a model, without scores.

    `own` are the model's rows, `categories` the baseline's bytes by category, `lossless_bytes` the size of
    the losslessly compressed original. What is unknown stays ``None``; the rows are there all the same.
    """
    tasks = next((row.tasks for row in ([baseline] if baseline else own) if row.tasks), {})
    return [_guesser(model, tasks, baseline, categories), _lossless(model, baseline, lossless_bytes)]


def _guesser(
    model: str, tasks: Mapping[str, TaskScore], baseline: Row | None, categories: Mapping[str, int] | None
) -> Row:
    """A model that guesses uniformly: its accuracy is the chance level, its files tokenizer and config."""
    guessed = {
        name: dataclasses.replace(
            task,
            value=task.chance,
            stderr=None if task.chance is None else 0.0,
            chance_corrected=None if task.chance in (None, 1) else 0.0,
        )
        for name, task in tasks.items()
        if task.accuracy
    }
    size = None if categories is None else categories["tokenizer"] + categories["config"]
    values = [task.value for task in guessed.values() if task.value is not None]
    mean = sum(values) / len(values) if values and len(values) == len(guessed) else None
    accurate = baseline.mean_accuracy if baseline else None
    return Row(
        f"{model}-{NULL}",
        model,
        NULL,
        "reference",
        "ok",
        reference=True,
        size_bytes=size,
        size_gib=None if size is None else size / GIB,
        tasks=guessed,
        mean_accuracy=mean,
        mean_accuracy_stderr=None if mean is None else 0.0,
        chance_corrected_accuracy=None if mean is None else 0.0,
        recovery=mean / accurate if mean is not None and accurate else None,
    )


def _lossless(model: str, baseline: Row | None, size: int | None) -> Row:
    """The original's own predictions in `size` bytes; speed and memory stay unmeasured."""
    row = Row(f"{model}-{LOSSLESS}", model, LOSSLESS, "reference", "ok", reference=True, size_bytes=size)
    row = dataclasses.replace(row, size_gib=None if size is None else size / GIB)
    if baseline is None:
        return row
    kept = (
        "tasks", "documents", "mean_accuracy", "mean_accuracy_stderr", "chance_corrected_accuracy",
        "perplexity", "bits_per_byte",
    )  # fmt: skip
    values = {key: getattr(baseline, key) for key in kept}
    return dataclasses.replace(row, **values, recovery=1.0, kl=0.0, kl_stderr=0.0, top1=1.0, top1_stderr=0.0)
