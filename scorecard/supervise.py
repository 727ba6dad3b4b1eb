"""Run a function in a child process under limits, and leave nothing behind.

The supervisor stays small. It notes the tree's memory, kills the tree at a limit, when it is told to stop,
and when its own parent dies (``PR_SET_PDEATHSIG``); processes whose parent died first come back to it
(``PR_SET_CHILD_SUBREAPER``), so that it can kill those too. Elsewhere than on Linux the last two are absent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scorecard.spec import Limit

_PDEATHSIG, _SUBREAPER = 1, 36
_POLL_SECONDS = (0.005, 0.2)
_GIB = 2**30


@dataclass(frozen=True)
class Ended:
    """How the child ended: exit ``code`` (negative: signal), the limit it passed, the tree's peak memory."""

    code: int
    limit: str | None
    peak_bytes: int | None


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes below this one whose parent dies become its own children."""
    _prctl(_SUBREAPER, 1)


def run(function: Callable[[], int], limit: Limit) -> Ended:
    """Fork, run ``function`` in the child (its result is the exit code), watch it until it ends.

    Call it from a process without threads.
    """
    parent = os.getppid()
    adopt_orphans()
    _prctl(_PDEATHSIG, signal.SIGTERM)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        _become_child(function, supervisor)
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _stop)
        if os.getppid() != parent:
            _stop(signal.SIGTERM, None)
        return _watch(child, limit)
    finally:
        clear()


def _become_child(function: Callable[[], int], supervisor: int) -> None:
    """Ends the process; nothing of the supervisor runs in the child."""
    code = 70
    try:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            code = function()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    clear()
    os._exit(128 + number)


def _watch(child: int, limit: Limit) -> Ended:
    begin, pause, peak = time.monotonic(), _POLL_SECONDS[0], 0
    passed: str | None = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return Ended(os.waitstatus_to_exitcode(status), passed, peak or None)
        used = tree_memory_bytes(child)
        peak = max(peak, used or 0)
        passed = passed or _passed(limit, time.monotonic() - begin, used)
        if passed:
            _kill(descendants(os.getpid()))
        time.sleep(pause)
        pause = min(pause * 1.5, _POLL_SECONDS[1])


def _passed(limit: Limit, seconds: float, used: int | None) -> str | None:
    if limit.time_seconds is not None and seconds > limit.time_seconds:
        return f"passed the time limit of {limit.time_seconds:g} s"
    if limit.memory_gib is not None and used is not None and used > limit.memory_gib * _GIB:
        return f"passed the memory limit of {limit.memory_gib:g} GiB (used {used / _GIB:.2f} GiB)"
    return None


def tree_memory_bytes(pid: int) -> int | None:
    """Resident bytes of a process and all below it; pages they share are counted once (PSS)."""
    family = [pid, *descendants(pid)]
    if len(family) == 1:
        return _field_bytes(Path(f"/proc/{pid}/status"), "VmRSS:")
    sizes = [_field_bytes(Path(f"/proc/{p}/smaps_rollup"), "Pss:") for p in family]
    return sum(s for s in sizes if s is not None) or None


def _field_bytes(path: Path, name: str) -> int | None:
    try:
        line = next(x for x in path.read_text().splitlines() if x.startswith(name))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def descendants(pid: int) -> list[int]:
    """Every living process below ``pid``, parents first."""
    below: list[int] = []
    for thread in _listing(Path(f"/proc/{pid}/task")):
        with suppress(OSError):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            for child in map(int, children):
                below += [child, *descendants(child)]
    return below


def _listing(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir()]
    except OSError:
        return []


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def clear() -> None:
    """Kill and collect everything below this process, until nothing is left."""
    while below := descendants(os.getpid()):
        _kill(below)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def peak_memory_bytes() -> int | None:
    """The calling process's own peak resident memory (``VmHWM``)."""
    return _field_bytes(Path("/proc/self/status"), "VmHWM:")
