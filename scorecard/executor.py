"""How a worker is started. One unit of work is one command, so that any scheduler can run it.

<python> -m scorecard.worker REQUEST.json     leaves ``outcome.json`` in the request's folder
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from scorecard.machine import ROOT
from scorecard.request import LOG, REQUEST, Outcome, Request, read_outcome
from scorecard.store import write_atomic

GRACE_SECONDS = 5.0


class ProcessExecutor:
    """Runs each request in a fresh process of the interpreter that it names."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._closed = False

    def run(self, request: Request) -> Outcome:
        """Start a worker and wait for it. A worker that vanishes is a failed outcome, never an exception."""
        folder = Path(request.folder)
        write_atomic(folder / REQUEST, request)
        process = self._start(folder, request)
        if process is None:
            return Outcome("failed", reason="stopped before it began")
        try:
            code = process.wait()
        finally:
            with self._guard:
                self._running.discard(process)
        return read_outcome(folder, code)

    def _start(self, folder: Path, request: Request) -> subprocess.Popen[bytes] | None:
        python = request.python or sys.executable
        command = [python, "-P", "-m", "scorecard.worker", str(folder / REQUEST)]
        with self._guard:
            if self._closed:
                return None
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=worker_environment(request.threads, python),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(folder / LOG).open("ab"),
                start_new_session=True,
            )
            self._running.add(process)
            return process

    def close(self) -> None:
        """Stop all workers and everything they started; nothing can be started afterwards."""
        with self._guard:
            self._closed = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def worker_environment(threads: int, python: str) -> dict[str, str]:
    """The caller's environment with this checkout importable and every thread pool bounded.

    A locked environment gets no other package than its own: not the caller's ``PYTHONPATH``, nor the home's.
    """
    own = python == sys.executable
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH") if own else None]))
    sealed = {} if own else {"PYTHONNOUSERSITE": "1", "VIRTUAL_ENV": str(Path(python).parents[1])}
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    search = os.pathsep.join(filter(None, [str(Path(python).parent), os.environ.get("PATH")]))
    return {**os.environ, "PYTHONPATH": path, "PATH": search, **pools, **quiet, **sealed}
