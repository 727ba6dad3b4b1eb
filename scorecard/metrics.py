"""What a task's metrics mean: which one stands for it, what chance scores, and how uncertain each is."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import Task


#: Random scorings of each document where chance has to be measured.
GUESSES = 20


def chance(task: Task, limit: int | None, metric: str, accuracy: bool) -> float | None:
    """What a guesser without knowledge scores with ``metric``, in [0, 1]; None where it cannot be known.

    ``metadata: {chance: …}`` in the task's YAML file goes first. A multiple-choice accuracy is guessed
    right with the share of right choices, averaged over the documents; a text that must be produced word
    for word is not guessed. A task that scores choices with a function of its own is asked what it gives a
    scorer that knows nothing.
    """
    from lm_eval.api.task import ConfigurableTask

    declared = (task.config.metadata or {}).get("chance")
    if declared is not None:
        return float(declared)
    if not accuracy:
        return None
    if task.OUTPUT_TYPE == "generate_until":
        return 0.0
    standard = type(task).process_results is ConfigurableTask.process_results
    if not standard or callable(task.config.process_results):
        return _guessed(task, limit, metric) if task.OUTPUT_TYPE == "multiple_choice" else None
    if task.OUTPUT_TYPE != "multiple_choice" or metric.startswith("exact_match"):
        return 0.0
    shares = [_right_share(task, doc) for _, doc in task.doc_iterator(limit=limit)]
    return sum(shares) / len(shares)


def _guessed(task: Task, limit: int | None, metric: str) -> float | None:
    """Mean score of random log-likelihoods, exchangeable between the choices; None where the task's function
    wants something else, or gives no number for a document."""
    generator = random.Random(0)
    name, values = metric.partition(",")[0], []
    for _, doc in task.doc_iterator(limit=limit):
        choices = range(len(task.doc_to_choice(doc)))
        for _ in range(GUESSES):
            results = [(generator.gauss(-10, 1), False) for _ in choices]
            try:
                values.append(float(task.process_results(doc, results)[name]))
            except (TypeError, ValueError, LookupError):
                return None
    return sum(values) / len(values) if values else None


def primary_metric(metrics: Sequence[str]) -> str:
    """The metric that stands for a task: ``acc``, else ``acc_norm``, else ``exact_match``, else the first.

    ``metrics`` are in the order of the task's configuration; of several filters the first one counts.
    """
    for wanted in ("acc", "acc_norm", "exact_match"):
        for metric in metrics:
            if metric.partition(",")[0] == wanted:
                return metric
    return metrics[0]


def is_accuracy(metric: str, higher_is_better: bool) -> bool:
    """Whether a metric is a share of right answers, so that it may enter the mean accuracy."""
    name = metric.partition(",")[0]
    known = name in ("exact_match", "em", "pass@1", "pass_at_1") or name.startswith(("acc", "exact_match"))
    return higher_is_better and (known or name.endswith("_acc"))


def ratio(numerators: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """A rate over documents of unequal length, ``sum(numerators) / sum(weights)``, and its standard error.

    The documents are the sampling units, so the error is that of the ratio estimator by linearization
    (Cochran, Sampling Techniques, 3rd ed. 1977, section 6.4); None for a single document.
    """
    total, n = sum(weights), len(weights)
    value = sum(numerators) / total
    if n < 2:
        return value, None
    residuals = sum((a - value * w) ** 2 for a, w in zip(numerators, weights, strict=True))
    return value, math.sqrt(n / (n - 1) * residuals) / total


def task_metrics(
    task: Task, reported: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Every metric with its standard error, in the order of the task's configuration; ``metric,filter`` keys.

    The filter is left out of the name where the task has none.
    """
    place = {metric: i for i, metric in enumerate(task.higher_is_better())}
    found = {}
    for key in sorted(reported, key=lambda k: place.get(k.partition(",")[0], len(place))):
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        items = [s[metric] for s in samples if s["filter"] == name and metric in s]
        error = _stderr(task, metric, items, reported.get(f"{metric}_stderr,{name}"))
        found[metric_name(metric, name)] = {"value": _number(reported[key]), "stderr": error}
    return found


def metric_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _stderr(task: Task, metric: str, items: Sequence[Any], reported: Any) -> float | None:
    """lm-eval's standard error where it has one; else the analytic one of a mean or of a ratio of sums."""
    from lm_eval.api.metrics import bits_per_byte, mean, mean_stderr, weighted_perplexity

    if isinstance(reported, (int, float)):
        return _number(reported)
    aggregation = task.aggregation().get(metric, mean)
    if len(items) < 2:
        return None
    if aggregation is mean:
        return _number(mean_stderr(items))
    if aggregation not in (weighted_perplexity, bits_per_byte):
        return None
    rate, error = ratio([item[0] for item in items], [item[1] for item in items])
    if error is None:
        return None
    return _number(error / math.log(2) if aggregation is bits_per_byte else error * math.exp(-rate))


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def document_value(task: Task, metric: str, item: Any) -> float | None:
    """The metric of one document; None for metrics that only exist for many, such as F1."""
    from lm_eval.api.metrics import bits_per_byte, brier_score, perplexity, weighted_perplexity

    aggregation = task.aggregation().get(metric)
    if aggregation in (bits_per_byte, brier_score, perplexity, weighted_perplexity):
        return _number(aggregation([item]))
    return None if isinstance(item, (tuple, list, dict, str)) or item is None else _number(item)


def _right_share(task: Task, doc: Any) -> float:
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return (len(set(right)) if isinstance(right, list) else 1) / len(task.doc_to_choice(doc))
