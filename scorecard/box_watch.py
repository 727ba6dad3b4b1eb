"""Watches the processes of a box from outside, and kills them at a limit."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from scorecard.box import GIB, Box, BoxEnded, BoxLimits
from scorecard.supervise import descendants

_POLL_SECONDS = (0.01, 0.25)


def watch(child: int, box: Box) -> BoxEnded:
    """Wait until ``child`` ends, or kill it with all below it at the first limit that they pass."""
    begin, pause = time.monotonic(), _POLL_SECONDS[0]
    passed: str | None = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return BoxEnded(code=os.waitstatus_to_exitcode(status), limit=passed)
        passed = passed or _passed(child, box, time.monotonic() - begin)
        if passed:
            for process in (child, *descendants(child)):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.5, _POLL_SECONDS[1])


def _passed(child: int, box: Box, seconds: float) -> str | None:
    limits: BoxLimits = box.limits
    if seconds > limits.wall_seconds:
        return f"the time limit of {limits.wall_seconds:g} s"
    family = descendants(child)
    if (used := sum(map(_memory_bytes, family))) > limits.memory_bytes:
        return f"the memory limit of {limits.memory_bytes / GIB:.2f} GiB (used {used / GIB:.2f} GiB)"
    if sum(map(_cpu_seconds, family)) > limits.cpu_seconds:
        return f"the limit of {limits.cpu_seconds:g} CPU seconds"
    if sum(map(_threads, family)) > limits.processes:
        return f"the limit of {limits.processes} processes"
    if sum(_size_bytes(Path(folder)) for folder in box.writable.values()) > limits.scratch_bytes:
        return f"the limit of {limits.scratch_bytes:,} bytes on disk"
    return None


def _memory_bytes(pid: int) -> int:
    """Memory of one process; what it shares counts in parts (PSS) where the kernel tells."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
            return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024
    return 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc(5)); empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    """Of the process and of its children that it has collected."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _threads(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[17]) if fields else 0


def _size_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 - many files
    return total
