"""Start a command in a box (scorecard.box) and learn how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scorecard.box import Box, BoxEnded, BoxLimits
from scorecard.machine import ROOT
from scorecard.spec import from_json, to_json

GRACE_SECONDS = 5.0


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

    def end(self) -> BoxEnded:
        """Kill what still runs; how the box ended by itself, if it did within the grace."""
        if self._ended is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
            self.process.kill()  # the box dies with its launcher
            self.process.wait()
            with self._report as report:
                text = report.read()
            self._ended = from_json(BoxEnded, json.loads(text)) if text else BoxEnded()
        return self._ended


@contextmanager
def empty_root() -> Iterator[Path]:
    """An empty folder to build a box in."""
    with tempfile.TemporaryDirectory(prefix="scorecard-box-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


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
        boxed = Boxed(box)
        _, told = boxed.process.communicate()
        ended = boxed.end()
    if ended.error is None and ended.code == 0:
        return None
    return ended.error or told.decode(errors="replace").strip()[-200:] or f"it ended with {ended.code}"
