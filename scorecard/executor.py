"""How a worker is started. One unit of work is one command, so that any scheduler can run it.

<python> -m scorecard.worker REQUEST.json     leaves ``outcome.json`` in the request's folder

A request that says ``preload`` may instead be forked from a process that has done a worker's imports already
(``scorecard.preload``): the same work in a process of its own, four seconds of a core sooner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from scorecard import isolation, machine
from scorecard.machine import ROOT
from scorecard.preloaded import Preloaded
from scorecard.request import LOG, REQUEST, Outcome, Request, read_outcome
from scorecard.store import write_atomic

GRACE_SECONDS = 5.0
_PRELOADED_BYTES = 2**30  # twice what one takes once it has imported everything
_Kind = tuple[str, int, bool]


class ProcessExecutor:
    """Runs each request in a process of its own, of the interpreter that it names.

    ``preload=False`` starts every process anew.
    """

    def __init__(self, *, preload: bool = True) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._preloaded: dict[_Kind, Preloaded] = {}
        self._preload = preload and hasattr(os, "fork")
        self._asked = 0
        self._guard = threading.Lock()
        self._closed = False

    def run(self, request: Request) -> Outcome:
        """Start a worker and wait for it. A worker that vanishes is a failed outcome, never an exception."""
        folder = Path(request.folder)
        write_atomic(folder / REQUEST, request)
        code = self._forked(folder, request) if self._preload and request.preload else None
        if code is None:
            code = self._fresh(folder, request)
        if code is None:
            return Outcome("failed", reason="stopped before it began")
        return read_outcome(folder, code)

    def _forked(self, folder: Path, request: Request) -> int | None:
        """The exit code of a worker from a preloaded process; ``None`` when none could be had."""
        kind = (request.python or sys.executable, request.threads, bool(request.hidden))
        with self._guard:
            if self._closed:
                return None
            self._make_room(kind)
            if kind not in self._preloaded:
                environment = worker_environment(request.threads, kind[0])
                if request.hidden:  # libraries read these when they are imported
                    environment = isolation.offline(environment)
                self._preloaded[kind] = Preloaded(kind[0], environment, ROOT)
            found = self._preloaded[kind]
            self._asked += 1
            found.used = self._asked
        return found.run(folder / REQUEST)

    def _make_room(self, kind: _Kind) -> None:
        """End the process that was not needed for longest, when memory is short."""
        available = machine.memory_bytes("MemAvailable") or 0
        idle = {k: p for k, p in self._preloaded.items() if p.idle and k != kind}
        if kind in self._preloaded or not idle or available > 4 * _PRELOADED_BYTES:
            return
        oldest = min(idle, key=lambda k: idle[k].used)
        self._preloaded.pop(oldest).wait(0)

    def _fresh(self, folder: Path, request: Request) -> int | None:
        process = self._start(folder, request)
        if process is None:
            return None
        try:
            return process.wait()
        finally:
            with self._guard:
                self._running.discard(process)

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
            running, preloaded = list(self._running), list(self._preloaded.values())
        for parent in preloaded:
            parent.terminate()
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for parent in preloaded:
            parent.wait(GRACE_SECONDS)


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
