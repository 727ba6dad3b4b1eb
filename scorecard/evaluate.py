"""Score one loaded model on tasks and held-out text: the record of the ``evaluate`` stage.

Tasks are run by lm-eval, unchanged, so that a number here is the number of ``lm_eval --seed …`` on the same
folder (docs/evaluation.md says how nearly). Its response cache is never used: the key does not hold the
model, so that one model would silently get another one's answers.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard import conditions, stopping
from scorecard.clusters import clusters
from scorecard.errors import SpecError
from scorecard.heldout import heldout
from scorecard.metrics import chance, document_value, is_accuracy, metric_name, primary_metric, task_metrics
from scorecard.shuffled import shuffled
from scorecard.spec import EvalSpec, to_json
from scorecard.tasks import HELDOUT, load, resolve, seed

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

__all__ = ["evaluate", "resolve"]

Row = tuple[str, int, str, float, int]  # task, document, metric, value, cluster


def evaluate(
    lm: LM,
    spec: EvalSpec,
    *,
    reference: Path | None,
    write_reference: Path | None,
    documents: Path,
    baseline: Path | None = None,
    calibration: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run every task and the held-out text; returns the ``result`` of an ``evaluate`` record.

    ``reference`` holds the original's predictions on the held-out text; for the original itself they are
    written to ``write_reference``. The score of each document goes to ``documents`` (parquet). With
    ``spec.early_stop`` a task ends when it is decided against ``baseline``, such a file of the baseline.
    Texts of ``calibration`` that come up again in the tasks are counted. Raises SpecError and
    DataUnavailable as ``resolve`` does.
    """
    import lm_eval

    started = time.perf_counter()
    tasks = load(spec)
    with shuffled(lm, spec.shuffle):
        results, stopped = _run(lm, tasks, spec, baseline)
    scores = {name: _task_score(task, name, results, spec) for name, task in tasks.items()}
    text = heldout(lm, spec, reference=reference, write_reference=write_reference)
    rows = [
        row for name, task in tasks.items() for row in document_rows(task, name, results["samples"][name])
    ]
    write_documents(documents, rows + [(HELDOUT, *row, row[0]) for row in text.rows])
    return {
        "tasks": {name: {**score, "stopped": stopped.get(name)} for name, score in scores.items()},
        **mean_accuracy(scores),
        "heldout": text.summary,
        "heldout_reason": text.reason,
        "calibration_overlap": _overlap(calibration, results["samples"]),
        "conditions": conditions.of_model(lm, chat=spec.apply_chat_template),
        "lm_notes": list(getattr(lm, "notes", ())),
        "lm_eval_version": lm_eval.__version__,
        "seconds": time.perf_counter() - started,
        "settings": to_json(spec),
    }


def _overlap(
    calibration: Sequence[str] | None, samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any] | None:
    """By task: documents that share a run of words with the calibration text, see runners/_overlap.py."""
    from runners._overlap import overlap

    if calibration is None:
        return None
    found = {}
    for name, scored in samples.items():
        documents = {sample["doc_id"]: sample["doc"] for sample in scored}  # once, however many filters
        counted = overlap(calibration, [" ".join(_strings(document)) for document in documents.values()])
        found[name] = {key: counted[key] for key in ("documents", "of", "ngram")}
    return found


def _strings(value: Any) -> Iterator[str]:
    """Every text in a document, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def mean_accuracy(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of the tasks that have an accuracy, each with the same weight, and its standard error.

    Documents of different tasks are drawn independently, so the variances add up.
    """
    chosen = [s for s in scores.values() if s["accuracy"] and s["value"] is not None]
    if not chosen:
        return {"mean_accuracy": None, "mean_accuracy_stderr": None}
    errors = [s["stderr"] for s in chosen]
    known = None not in errors
    return {
        "mean_accuracy": sum(s["value"] for s in chosen) / len(chosen),
        "mean_accuracy_stderr": math.hypot(*errors) / len(chosen) if known else None,
    }


def write_documents(path: Path, rows: Sequence[Row]) -> None:
    """One row for each document and metric: columns ``task``, ``doc``, ``metric``, ``value``, ``cluster``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "task": pa.string(),
        "doc": pa.int64(),
        "metric": pa.string(),
        "value": pa.float64(),
        "cluster": pa.int64(),
    }
    schema = pa.schema(list(kinds.items()))
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in kinds]
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def _run(
    lm: LM, tasks: Mapping[str, Task], spec: EvalSpec, baseline: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """lm-eval's results, and of each task that may be stopped how it ended."""
    if not tasks:
        return {"results": {}, "samples": {}}, {}
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap must not fork a process full of threads
    seed(spec.seed)
    if spec.early_stop is None or baseline is None:
        return run_tasks(lm, tasks, spec), {}
    found: dict[str, dict[str, Any]] = {}
    stopped: dict[str, Any] = {}
    with stopping.remembering(lm):
        for name, task in tasks.items():
            some, stopped[name] = stopping.run(
                task,
                functools.partial(run_tasks, lm, {name: task}, spec),
                functools.partial(_right, task, name, spec),
                stopping.Baseline.read(baseline, name),
                spec.early_stop,
                spec.seed,
            )
            for part in ("results", "samples", "n-samples", "versions", "n-shot"):
                found.setdefault(part, {}).update(some[part])
    return found, stopped


def _right(task: Task, name: str, spec: EvalSpec, results: Mapping[str, Any]) -> stopping.Marked | None:
    """The task's metric and which documents it calls right; ``None`` where it says more than that."""
    score = _task_score(task, name, results, spec)
    rows = document_rows(task, name, results["samples"][name])
    answers = {doc: value for _, doc, metric, value, _ in rows if metric == score["metric"]}
    return (score["metric"], answers) if set(answers.values()) <= {0.0, 1.0} else None


def run_tasks(lm: LM, tasks: Mapping[str, Task], spec: EvalSpec) -> dict[str, Any]:
    """lm-eval's own evaluation loop on tasks that are already loaded."""
    import lm_eval

    results: dict[str, Any] = lm_eval.evaluate(
        lm=lm,
        task_dict={"tasks": dict(tasks), "groups": {}},
        limit=spec.limit,
        bootstrap_iters=spec.bootstrap_iters,
        log_samples=True,
        system_instruction=spec.system_instruction,
        apply_chat_template=spec.apply_chat_template,
        fewshot_as_multiturn=spec.fewshot_as_multiturn,
    )
    return results


def _task_score(task: Task, name: str, results: Mapping[str, Any], spec: EvalSpec) -> dict[str, Any]:
    score = task_score(task, name, results)
    return {**score, "chance": chance(task, spec.limit, score["metric"], score["accuracy"])}


def task_score(task: Task, name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The metric that stands for a task with its value and standard error, and every other one, as lm-eval's
    ``results`` have them."""
    metrics = task_metrics(task, results["results"][name], results["samples"][name])
    first = primary_metric(list(metrics))
    higher = bool(task.higher_is_better().get(first.partition(",")[0], True))
    value = metrics[first]["value"]
    accuracy = is_accuracy(first, higher) and value is not None and 0 <= value <= 1
    return {
        "metric": first,
        **metrics[first],
        "higher_is_better": higher,
        "n": results["n-samples"][name]["effective"],
        "version": results["versions"][name],
        "num_fewshot": results["n-shot"][name],
        "accuracy": accuracy,
        "metrics": metrics,
    }


def document_rows(task: Task, name: str, samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    cluster = _clusters(task, name, samples)
    rows = []
    for sample in samples:
        doc = int(sample["doc_id"])
        for metric in sample["metrics"]:
            value = document_value(task, metric, sample[metric])
            if value is not None:
                rows.append((name, doc, metric_name(metric, sample["filter"]), value, cluster[doc]))
    return rows


def _clusters(task: Task, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """For each document the first one that shares its context; ``metadata: {cluster: KEY}`` says by what."""
    documents = {int(sample["doc_id"]): sample["doc"] for sample in samples}  # once, however many filters
    places = sorted(documents)
    try:
        found = clusters([documents[place] for place in places], (task.config.metadata or {}).get("cluster"))
    except SpecError as error:
        raise SpecError(f"task '{name}': {error}") from None
    return {place: places[first] for place, first in zip(places, found, strict=True)}
