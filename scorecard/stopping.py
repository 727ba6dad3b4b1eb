"""End a task as soon as the comparison with the baseline is decided: see ``scorecard.sequential``.

Every request of the task is built, as ever, so that each prompt is the one that the baseline was given; only
as many are scored as the decision takes. lm-eval sees a task with these documents and no others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard import sequential
from scorecard.shuffled import wrapped
from scorecard.spec import EarlyStop

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Results = dict[str, Any]  # what lm_eval.evaluate gives for one task
Answers = dict[int, float]  # document -> 1 right, 0 wrong
Marked = tuple[str, Answers]  # a metric, and what it says


@dataclass(frozen=True)
class Baseline:
    """The baseline's scores of one task: the ``cluster`` of each document, and the answers by metric."""

    clusters: dict[int, int]
    answers: dict[str, Answers]

    @staticmethod
    def read(path: Path, task: str) -> Baseline:
        """From a ``documents.parquet``."""
        import pyarrow.parquet as pq

        found = Baseline({}, {})
        for row in pq.read_table(path, filters=[("task", "=", task)]).to_pylist():
            found.clusters[row["doc"]] = row["cluster"]
            found.answers.setdefault(row["metric"], {})[row["doc"]] = row["value"]
        return found


def run(
    task: Task,
    score: Callable[[], Results],
    right: Callable[[Results], Marked | None],
    baseline: Baseline,
    spec: EarlyStop,
    seed: int,
) -> tuple[Results, dict[str, Any] | None]:
    """The results of ``task`` over its first documents, and how it ended: ``{"verdict", "documents", "of"}``.

    ``score`` runs lm-eval on the task, ``right`` reads from its results which documents were right (``None``
    where the task has no right and wrong: such a task is run whole, and ends in ``None``). Documents come in
    the order of ``sequential.order``.
    """
    documents = sorted(baseline.clusters)
    if not documents:
        return score(), None
    clusters = [baseline.clusters[document] for document in documents]
    order = sequential.order(str(task.task_name), clusters, seed)
    chosen: list[int] = []
    for part in sequential.looks(order, clusters, spec.every):
        chosen += [documents[place] for place in part]
        results = _scored(task, chosen, score)
        marked = right(results)
        if marked is None:
            return _scored(task, documents, score), None
        verdict = _verdict(marked, baseline, spec)
        if verdict:
            break
    return results, {"verdict": verdict, "documents": len(chosen), "of": len(documents)}


def _scored(task: Task, documents: Sequence[int], score: Callable[[], Results]) -> Results:
    with _only(task, documents):
        results = score()
    for counts in results["n-samples"].values():  # lm-eval counts those that it would have without us
        counts["effective"] = len(documents)
    return results


def _verdict(marked: Marked, baseline: Baseline, spec: EarlyStop) -> sequential.Verdict | None:
    import numpy as np

    metric, answers = marked
    values = np.array([[answers[document], baseline.answers[metric][document]] for document in answers])
    groups = np.array([baseline.clusters[document] for document in answers])
    if len(set(groups.tolist())) < len(groups):  # a share of clusters is no share of documents
        spec = dataclasses.replace(spec, margin=None)
    return sequential.decided(*sequential.tally(values, groups), spec)


@contextlib.contextmanager
def remembering(lm: Any) -> Iterator[None]:
    """While this lasts ``lm`` answers each request object once, and later from memory."""
    with wrapped(lm, _remembered):
        yield


def _remembered(method: Callable[[Sequence[Any]], list[Any]]) -> Callable[[Sequence[Any]], list[Any]]:
    known: dict[int, tuple[Any, list[Any]]] = {}  # the request is kept, so that its id stays its own

    def call(requests: Sequence[Any]) -> list[Any]:
        # A request that lm-eval repeats stands several times in the list, and is answered as often.
        new = [request for request in requests if id(request) not in known]
        for request, answer in zip(new, method(new) if new else [], strict=True):
            known.setdefault(id(request), (request, []))[1].append(answer)
        given = {key: iter(answers) for key, (_, answers) in known.items()}
        return [next(given[id(request)]) for request in requests]

    return call


@contextlib.contextmanager
def _only(task: Any, documents: Sequence[int]) -> Iterator[None]:
    """While this lasts the task has these documents alone; its requests are built once and kept."""
    wanted = set(documents)
    build, iterate = task.build_all_requests, task.doc_iterator

    def build_some(**settings: Any) -> None:
        if not hasattr(task, "_scorecard_requests"):
            task.doc_iterator = iterate
            build(**settings)
            task.doc_iterator = iterate_some
            task._scorecard_requests = task._instances
        task._instances = [r for r in task._scorecard_requests if r.doc_id in wanted]
        for request in task._instances:
            request.resps, request.filtered_resps = [], {}

    def iterate_some(**settings: Any) -> Iterator[tuple[int, Any]]:
        return ((document, doc) for document, doc in iterate(**settings) if document in wanted)

    task.build_all_requests, task.doc_iterator = build_some, iterate_some
    try:
        yield
    finally:
        del task.build_all_requests, task.doc_iterator
