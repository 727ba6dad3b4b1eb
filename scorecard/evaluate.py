"""Score one loaded model on tasks and held-out text: the record of the ``evaluate`` stage.

Tasks are run by lm-eval, unchanged, so that a number here is the number of ``lm_eval --seed …`` on the same
folder. Its response cache is never used: the key does not hold the model, so that one model would silently
get another one's answers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard.heldout import heldout
from scorecard.metrics import chance, document_value, is_accuracy, metric_name, primary_metric, task_metrics
from scorecard.spec import EvalSpec, to_json
from scorecard.tasks import HELDOUT, load, resolve, seed

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

__all__ = ["evaluate", "resolve"]

Row = tuple[str, int, str, float]  # task, document, metric, value


def evaluate(
    lm: LM,
    spec: EvalSpec,
    *,
    reference: Path | None,
    write_reference: Path | None,
    documents: Path,
    calibration: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run every task and the held-out text; returns the ``result`` of an ``evaluate`` record.

    ``reference`` holds the original's predictions on the held-out text; for the original itself they are
    written to ``write_reference``. The score of each document goes to ``documents`` (parquet). Texts of
    ``calibration`` that come up again in the tasks are counted. Raises SpecError and DataUnavailable as
    ``resolve`` does.
    """
    import lm_eval

    started = time.perf_counter()
    tasks = load(spec)
    results = _run(lm, tasks, spec)
    scores = {name: _task_score(task, name, results, spec) for name, task in tasks.items()}
    text = heldout(lm, spec, reference=reference, write_reference=write_reference)
    rows = [row for name, task in tasks.items() for row in _rows(task, name, results["samples"][name])]
    write_documents(documents, rows + [(HELDOUT, *row) for row in text.rows])
    return {
        "tasks": scores,
        **mean_accuracy(scores),
        "heldout": text.summary,
        "heldout_reason": text.reason,
        "calibration_overlap": _overlap(calibration, results["samples"]),
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
    """One row for each document and metric: columns ``task``, ``doc``, ``metric``, ``value``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"task": pa.string(), "doc": pa.int64(), "metric": pa.string(), "value": pa.float64()}
    schema = pa.schema(list(kinds.items()))
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], []]
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def _run(lm: LM, tasks: dict[str, Task], spec: EvalSpec) -> dict[str, Any]:
    """lm-eval's own evaluation loop on tasks that are already loaded."""
    import lm_eval

    if not tasks:
        return {"results": {}, "samples": {}}
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap must not fork a process full of threads
    seed(spec.seed)
    results: dict[str, Any] = lm_eval.evaluate(
        lm=lm,
        task_dict={"tasks": tasks, "groups": {}},
        limit=spec.limit,
        bootstrap_iters=spec.bootstrap_iters,
        log_samples=True,
        system_instruction=spec.system_instruction,
        apply_chat_template=spec.apply_chat_template,
        fewshot_as_multiturn=spec.fewshot_as_multiturn,
    )
    return results


def _task_score(task: Task, name: str, results: Mapping[str, Any], spec: EvalSpec) -> dict[str, Any]:
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
        "chance": chance(task, spec.limit, first, accuracy),
        "accuracy": accuracy,
        "metrics": metrics,
    }


def _rows(task: Task, name: str, samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    for sample in samples:
        for metric in sample["metrics"]:
            value = document_value(task, metric, sample[metric])
            if value is not None:
                rows.append((name, int(sample["doc_id"]), metric_name(metric, sample["filter"]), value))
    return rows
