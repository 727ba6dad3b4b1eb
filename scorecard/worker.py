"""Inside the fresh process: one stage of one case, from ``request.json`` to ``outcome.json``.

    python -m scorecard.worker REQUEST.json

The stage itself runs in a child under ``supervise``, with its output in ``worker.log``; results travel in
files only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from scorecard import supervise
from scorecard.errors import DataUnavailable, RunnerUnavailable, ScorecardError
from scorecard.request import LOG, OUTCOME, Outcome, Request, read_request, tail
from scorecard.store import write_atomic
from scorecard.work import STAGES

RESULT = "result.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the request named on the command line; exit code 0 when its stage is ok, else 1."""
    path = Path((sys.argv[1:] if arguments is None else arguments)[0])
    request = read_request(path)
    folder = Path(request.folder)
    with tempfile.TemporaryDirectory(prefix="scorecard-", ignore_cleanup_errors=True) as scratch:
        ended = supervise.run(lambda: _child(request, folder, Path(scratch)), request.limit)
    outcome = _outcome(request, folder, ended)
    write_atomic(folder / OUTCOME, outcome)
    return 0 if outcome.status == "ok" else 1


def _outcome(request: Request, folder: Path, ended: supervise.Ended) -> Outcome:
    log = tail(folder)
    try:
        left = json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        how = f"killed by signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
        return Outcome("failed", reason=ended.limit or f"the worker died ({how})", log_tail=log)
    (folder / RESULT).unlink()
    if left["status"] != "ok":
        return Outcome(left["status"], reason=left["reason"], log_tail=log)
    result = left["result"]
    if request.stage == "compress" and ended.peak_bytes:  # the tools a backend starts count too
        result["peak_host_memory_bytes"] = max(result["peak_host_memory_bytes"] or 0, ended.peak_bytes)
    return Outcome("ok", result)


def _child(request: Request, folder: Path, scratch: Path) -> int:
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = {"status": "ok", "result": STAGES[request.stage](request, folder, scratch)}
    except (RunnerUnavailable, DataUnavailable) as error:
        result = {"status": "skipped", "reason": _line(error)}
    except ScorecardError as error:
        result = {"status": "failed", "reason": _line(error)}
    except Exception as error:  # noqa: BLE001 - the boundary: a backend may raise anything, and the run goes on
        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}
    write_atomic(_out(folder, scratch) / RESULT, result)
    return 0 if result["status"] == "ok" else 1


def _line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _out(folder: Path, scratch: Path) -> Path:
    """Where results go: under isolation ``folder`` is covered and bound to ``scratch/out``."""
    bound = scratch / "out"
    return bound if bound.is_dir() else folder


if __name__ == "__main__":
    sys.exit(main())
