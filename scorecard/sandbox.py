"""Start a command in a box (scorecard.box) and learn how it ended."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scorecard.box import Box, BoxEnded, BoxLimits
from scorecard.machine import ROOT
from scorecard.spec import from_json, to_json

GRACE_SECONDS, KEPT_BYTES = 5.0, 4000


class Boxed:
    """A running box: ``process`` is its launcher, with the command's standard streams as pipes."""

    def __init__(self, box: Box) -> None:
        reader, writer = os.pipe()
        launcher = [sys.executable, "-P", "-B", "-m", "scorecard.box_launcher"]
        self.process = subprocess.Popen(
            [*launcher, json.dumps(to_json(box)), str(writer)],
            env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        self._report = os.fdopen(reader, "rb")
        self._ended: BoxEnded | None = None

    def wait(self) -> tuple[str, BoxEnded]:
        """The last of what it printed, once it has ended; its input is empty."""
        assert self.process.stdin
        self.process.stdin.close()
        tails = [_Tail(stream) for stream in (self.process.stdout, self.process.stderr) if stream]
        self.process.wait()  # the launcher's limits see to it
        printed = "\n".join(tail.text() for tail in tails)
        return printed, self.end()

    def end(self, grace_seconds: float = GRACE_SECONDS) -> BoxEnded:
        """Kill what still runs; how the box ended by itself, if it did within the grace."""
        if self._ended is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_seconds)
            self.process.kill()  # the box dies with its launcher
            self.process.wait()
            with self._report as report:
                text = report.read()
            self._ended = from_json(BoxEnded, json.loads(text)) if text else BoxEnded()
        return self._ended


class _Tail:
    """Reads a stream to its end in a thread and keeps only its last characters."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream as stream:
            while data := os.read(stream.fileno(), 65536):
                self._kept = (self._kept + data)[-KEPT_BYTES:]

    def text(self) -> str:
        self._thread.join(GRACE_SECONDS)
        return self._kept.decode(errors="replace")


@contextmanager
def empty_root() -> Iterator[Path]:
    """An empty folder to build a box in."""
    with tempfile.TemporaryDirectory(prefix="scorecard-box-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@functools.cache
def why_not() -> str | None:
    """Why no box can be made on this machine, ``None`` where one can; tried with a real one."""
    if not sys.platform.startswith("linux"):
        return "only Linux has namespaces"
    from scorecard.box_python import environment, places, prefixes

    python = Path(sys.executable)
    needed = places(prefixes(python))
    with empty_root() as root:
        box = Box(
            command=(str(python), "-I", "-S", "-c", "pass"),
            root=str(root),
            readable=needed.readable,
            links=needed.links,
            environment=environment(python),
            limits=BoxLimits(wall_seconds=60),
        )
        told, ended = Boxed(box).wait()
    if ended.error is None and ended.code == 0:
        return None
    return ended.error or told.strip()[-200:] or f"it ended with {ended.code}"
