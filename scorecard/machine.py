"""What this machine is; read without importing any heavy package, so that a controller may ask too."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def gpus() -> tuple[dict[str, Any], ...]:
    """The visible NVIDIA GPUs as the driver reports them: name, memory_bytes, driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    fields = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line]
    return tuple({"name": n, "memory_bytes": int(float(m) * 2**20), "driver": d} for n, m, d in fields)


def device() -> str:
    """``cuda`` where a GPU answers, else ``cpu``."""
    return "cuda" if gpus() else "cpu"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _proc_value(path: str, name: str) -> str | None:
    """The value of the first ``name : value`` line of a /proc file, ``None`` where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def memory_bytes(name: str = "MemTotal") -> int | None:
    """Host memory from /proc/meminfo (``MemTotal``, ``MemAvailable``); ``None`` where unknown."""
    value = _proc_value("/proc/meminfo", name)
    return int(value.split()[0]) * 1024 if value else None


@functools.cache
def describe() -> dict[str, Any]:
    """The machine part of every record."""
    return {
        "cpu": _proc_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": list(gpus()),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def packages(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions, without their local part; a missing one is left out."""
    found = {}
    for name in sorted(set(names)):
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
