"""Score a submission whose code is not believed: lm-eval, its tasks and their answers stay in this process,
and ``user.py`` in its box sees requests in an order that nobody can know beforehand."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard.box import Box, BoxLimits
from scorecard.box_python import environment, places, prefixes
from scorecard.boxed_lm import BoxedConnection, boxed_lm
from scorecard.claims import Measured
from scorecard.errors import SubmissionError
from scorecard.machine import ROOT
from scorecard.plain import plain
from scorecard.sandbox import Boxed, empty_root
from scorecard.spec import EvalSpec
from scorecard.tasks import HELDOUT

MOST_ROWS = 2_000_000
_BENCH, _CODE, _ARTIFACT, _CLAIMS = "/bench", "/submission", "/artifact", "/claims"
_FILES = ("__init__.py", "lm_server.py", "box_server.py", "user_class.py")
_START = (
    "import sys; sys.path.insert(0, {!r}); from scorecard.box_server import BoxServer, main; main(BoxServer)"
)


@dataclass(frozen=True)
class BoxSettings:
    """How a box is made: the interpreter in it, its limits, whether it is one (``--unsafe``: no), and the
    threads that it computes with, ``None`` for one per core."""

    python: Path
    limits: BoxLimits
    isolated: bool
    threads: int | None = None


@contextmanager
def _server(settings: BoxSettings, seen: Mapping[str, Path]) -> Iterator[tuple[BoxedConnection, Any]]:
    """A server in a box that sees ``seen``, by path inside, and a function that tells where a path is."""
    needed = places(prefixes(settings.python))
    bench = {f"{_BENCH}/scorecard/{name}": ROOT / "scorecard" / name for name in _FILES}
    mine = {inside: str(path) for inside, path in {**bench, **seen}.items()}
    start = _START.format(_BENCH if settings.isolated else str(ROOT))
    with empty_root() as root:
        box = Box(
            command=(str(settings.python), "-I", "-B", "-c", start),
            root=str(root),
            readable={**needed.readable, **mine},
            links=needed.links,
            environment=environment(settings.python, None if settings.isolated else root, settings.threads),
            limits=settings.limits,
            isolated=settings.isolated,
        )
        connection = BoxedConnection(Boxed(box))
        try:
            yield connection, (lambda inside: inside if settings.isolated else mine[inside])
        finally:
            connection.close()


def score(
    settings: BoxSettings, code: Path, artifact: Path, spec: EvalSpec, *, documents: Path, tie_nats: float
) -> tuple[dict[str, Any], dict[str, Measured]]:
    """The ``evaluate`` record's result, and each task as the claims want it.

    Raises SubmissionError where the code does not answer as it should; SpecError and DataUnavailable for
    tasks that this machine does not have.
    """
    from scorecard.evaluate import evaluate

    with _server(settings, {_CODE: code, _ARTIFACT: artifact}) as (connection, where):
        given = {
            "pretrained": where(_ARTIFACT),
            "batch_size": spec.batch_size,
            "max_length": spec.max_length,
            "add_bos_token": spec.add_bos_token,
            "dtype": None if spec.dtype == "auto" else spec.dtype,
        }
        arguments = {name: value for name, value in given.items() if value is not None}
        lm = boxed_lm(connection, where(_CODE), arguments, spec.seed)
        result = evaluate(lm, spec, reference=None, write_reference=None, documents=documents)
    return result, _measured(result, documents, lm.seen, tie_nats)


def trusted_spec(asked: EvalSpec, task_paths: Sequence[str]) -> EvalSpec:
    """What of the submission's settings may be used here: no path, no text to read, no rule for stopping.

    Requests are shuffled, so that a model that knows a task's order (the right choice first) gains nothing.
    """
    kept = (
        *("tasks", "num_fewshot", "limit", "batch_size", "max_length", "apply_chat_template"),
        *("fewshot_as_multiturn", "system_instruction", "add_bos_token", "seed", "dtype"),
    )
    values = {name: getattr(asked, name) for name in kept}
    shuffle = secrets.randbits(32)
    return EvalSpec(**values, task_paths=tuple(task_paths), bootstrap_iters=0, shuffle=shuffle)


def _measured(
    result: Mapping[str, Any], documents: Path, seen: Mapping[tuple[str, int], Any], tie_nats: float
) -> dict[str, Measured]:
    import pandas as pd

    frame = pd.read_parquet(documents)
    found = {}
    for name, task in result["tasks"].items():
        rows = frame[(frame["task"] == name) & (frame["metric"] == task["metric"])]
        values = dict(zip(rows["doc"].tolist(), rows["value"].tolist(), strict=True))
        chosen = {doc: choices for (of, doc), choices in seen.items() if of == name}
        found[name] = Measured(
            metric=task["metric"],
            value=task["value"],
            stderr=task["stderr"],
            accuracy=task["accuracy"],
            documents=values,
            n=task["n"],
            ties=_ties(chosen, task["metric"], tie_nats),
            num_fewshot=task.get("num_fewshot"),
        )
    return found


def _ties(
    chosen: Mapping[int, Mapping[int, tuple[float, int]]], metric: str, tie_nats: float
) -> set[int] | None:
    """Documents whose best two choices are at most ``tie_nats`` apart; for acc_norm per character of the
    longer one. ``None`` for metrics that do not come from the best of several choices."""
    if metric not in ("acc", "acc_norm") or not chosen or any(len(c) < 2 for c in chosen.values()):
        return None
    found = set()
    for doc, choices in chosen.items():
        divide = metric == "acc_norm"
        ranked = sorted(
            ((value / max(1, length) if divide else value, max(1, length) if divide else 1))
            for value, length in choices.values()
        )
        (second, one), (best, other) = ranked[-2:]
        if (best - second) * max(one, other) <= tie_nats:
            found.add(doc)
    return found


def claimed_documents(settings: BoxSettings, path: Path) -> dict[tuple[str, str], dict[int, float]]:
    """Value by document of each (task, metric) in a submission's documents.parquet, read in a box."""
    inside = f"{_CLAIMS}/documents.parquet"
    with _server(settings, {inside: path}) as (connection, where):
        columns = connection.call("documents", path=where(inside), most=MOST_ROWS)
    try:
        rows = list(zip(*(columns[name] for name in ("task", "doc", "metric", "value")), strict=True))
        found: dict[tuple[str, str], dict[int, float]] = {}
        for task, doc, metric, value in rows:
            if task == HELDOUT:
                continue
            if not _is_row(task, doc, metric, value) or doc in found.setdefault((task, metric), {}):
                raise ValueError(plain((task, doc, metric, value), 100))
            found[task, metric][doc] = float(value)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SubmissionError(f"{path.name}: is no table of documents ({plain(error, 100)})") from None
    return found


def _is_row(task: Any, doc: Any, metric: Any, value: Any) -> bool:
    numbers = isinstance(doc, int) and isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(task, str) and isinstance(metric, str) and numbers
