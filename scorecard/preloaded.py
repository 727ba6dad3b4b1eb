"""The other end of ``scorecard.preload``: ask a preloaded process for workers, and wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

Pid = int


class Preloaded:
    """One preloaded process. ``run`` may be called from several threads at once."""

    def __init__(self, python: str, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-P", "-m", "scorecard.preload"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._guard = threading.Lock()
        self._workers: dict[str, Pid | None] = {}
        self._codes: dict[str, Future[int | None]] = {}
        self._ready: Future[bool] = Future()
        self.used = 0  # when it was last asked, as the executor counts
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def idle(self) -> bool:
        return not self._codes

    def run(self, request: Path) -> int | None:
        """The exit code of a worker for ``request``; ``None`` when no worker can be had here."""
        if not self._ready.result():
            return None
        name, code = str(request), Future[int | None]()
        with self._guard:
            self._codes[name], self._workers[name] = code, None
            try:
                self._write({"request": name})
            except OSError:  # it has ended: the reader may be through with its last round already
                del self._codes[name], self._workers[name]
                return None
        return code.result()

    def _write(self, message: Mapping[str, str]) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            raise BrokenPipeError
        self._process.stdin.write((json.dumps(message) + "\n").encode())
        self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            message = json.loads(line)
            if "ready" in message:
                self._ready.set_result(message["ready"] is None)
            elif "started" in message:
                self._workers[message["started"]] = message["pid"]
            else:
                self._end(message["ended"], message["code"])
        self._process.wait()
        if not self._ready.done():
            self._ready.set_result(False)
        with self._guard, contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        for name in list(self._codes):  # their workers were told to stop when this process died
            self._end(name, -signal.SIGTERM)

    def _end(self, name: str, code: int) -> None:
        with self._guard:
            self._workers.pop(name, None)
            waiting = self._codes.pop(name, None)
        if waiting:
            waiting.set_result(code)

    def terminate(self) -> None:
        """Ask all workers to stop, and the process to end after them."""
        self._signal_workers(signal.SIGTERM)
        with self._guard, contextlib.suppress(OSError):
            if self._process.stdin and self.idle:
                self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait until all have ended; after ``seconds`` end them by force."""
        codes = list(self._codes.values())
        for code in codes:
            with contextlib.suppress(TimeoutError):
                code.result(seconds)
        self._signal_workers(signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _signal_workers(self, number: signal.Signals) -> None:
        for pid in [pid for pid in self._workers.values() if pid]:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)
