"""What an executor asks of a worker, and what it gets back: two JSON files in one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard.spec import Case, EvalSpec, Limit, Stage, Status, from_json

REQUEST, OUTCOME, LOG = "request.json", "outcome.json", "worker.log"


@dataclass(frozen=True)
class Request:
    """Everything a worker needs; paths are absolute, ``None`` is what its stage must not see.

    ``hidden`` folders are made unreachable in the stages that only read the artifact. ``python`` is the
    interpreter of the worker (``None``: the scorecard's own), ``served_by`` another one, in which the model
    is loaded because lm-eval cannot live there. ``reference`` is the folder of the baseline's evaluate
    record. ``preload``: the worker will import torch and transformers.
    """

    stage: Stage
    folder: str
    evaluation: EvalSpec
    case: Case | None = None
    baseline: Case | None = None
    model_dir: str | None = None
    artifact: str | None = None
    baseline_artifact: str | None = None
    baseline_bytes: int | None = None
    reference: str | None = None
    writes_reference: bool = False
    hidden: tuple[str, ...] = ()
    limit: Limit = field(default_factory=Limit)
    threads: int = 1
    offline: bool = False
    python: str | None = None
    served_by: str | None = None
    preload: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a worker ended; ``reason`` is one line, ``log_tail`` the last lines it printed."""

    status: Status
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    log_tail: tuple[str, ...] = ()


def read_request(path: Path) -> Request:
    return from_json(Request, json.loads(path.read_text()))


def read_outcome(folder: Path, code: int) -> Outcome:
    """The outcome that a worker left, or what is known of one that left none."""
    try:
        return from_json(Outcome, json.loads((folder / OUTCOME).read_text()))
    except FileNotFoundError:
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome("failed", reason=f"the worker ended without a result ({ended})", log_tail=tail(folder))


def tail(folder: Path, lines: int = 20, limit_bytes: int = 16_384) -> tuple[str, ...]:
    """The last lines of a worker's log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip())[-lines:]
