"""What two runs of the same model differ by on this machine: nothing smaller between two cases means much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorecard.compare import HELDOUT, paired
from scorecard.pairs import columns
from scorecard.spec import Case, ConfigSpec

if TYPE_CHECKING:
    import pandas as pd

AA = "aa"


@dataclass(frozen=True)
class Noise:
    """Second run minus first: ``flips`` of ``documents``, ``delta_accuracy`` as a share, the largest change
    of any task's accuracy, and of the held-out text ``kl`` in nats per token and the share of tokens whose
    most likely next token is another one; ``None`` where there is no such text."""

    documents: int
    flips: int | None
    delta_accuracy: float | None
    largest_task_delta: float | None
    kl: float | None
    top1_changed: float | None


def noise_floor(first: pd.DataFrame, second: pd.DataFrame, metrics: Mapping[str, str]) -> Noise:
    """From the documents of both runs; those of the second are measured against the first's predictions.

    Raises ComparisonError where they do not hold the same documents.
    """
    found = paired(second, first, metrics)
    deltas = [abs(task.delta.value) for task in found.tasks.values()]
    heldout = set(second[second["task"] == HELDOUT]["metric"])
    return Noise(
        documents=found.documents,
        flips=found.flips,
        delta_accuracy=found.delta_accuracy.value if found.delta_accuracy else None,
        largest_task_delta=max(deltas, default=None),
        kl=_per_token(second, "kl") if {"kl", "tokens"} <= heldout else None,
        top1_changed=1 - _per_token(second, "top1") if {"top1", "tokens"} <= heldout else None,
    )


def again(baseline: Case) -> Case:
    """The baseline once more, as another case: other batches, and requests in another order."""
    spec = baseline.evaluation
    other = max(1, spec.batch_size // 2 - 1) if spec.batch_size > 1 else 3
    return dataclasses.replace(
        baseline,
        config=ConfigSpec(AA, baseline.config.runner, baseline.config.options),
        evaluation=dataclasses.replace(spec, batch_size=other, shuffle=spec.seed + 1, early_stop=None),
    )


def told(noise: Mapping[str, object]) -> str:
    """A line for people, from the JSON of a Noise."""

    def number(key: str, factor: float, form: str) -> str:
        value = noise.get(key)
        return "?" if not isinstance(value, (int, float)) else format(factor * value, form)

    parts = [f"{number('flips', 1, 'd')} of {number('documents', 1, ',d')} documents flip"]
    parts.append(f"Δ {number('delta_accuracy', 100, '+.2f')} points")
    if noise.get("kl") is not None:
        parts.append(f"KL {number('kl', 1, '.1e')} nats/token")
        parts.append(f"{number('top1_changed', 100, '.2f')} % other top tokens")
    return ", ".join(parts)


def _per_token(frame: pd.DataFrame, metric: str) -> float:
    values, tokens = (columns(frame, {HELDOUT: name})[HELDOUT].values for name in (metric, "tokens"))
    return float((values * tokens).sum() / tokens.sum())
