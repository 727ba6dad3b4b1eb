"""Memory of this process, as the kernel and the CUDA allocator count it, in bytes.

``ru_maxrss`` is not used: a child inherits its parent's peak. ``VmHWM`` of /proc/self/status belongs to
this process alone and can be reset between phases (``clear_refs``, see proc_pid_clear_refs(5)).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_STATUS = {
    "VmHWM": "peak_bytes",
    "VmRSS": "resident_bytes",
    "RssAnon": "anonymous_bytes",
    "RssFile": "file_bytes",
}


def host_memory() -> dict[str, int | None]:
    """``peak_bytes`` since the last reset, ``resident_bytes`` now and its ``anonymous_bytes`` and
    ``file_bytes`` parts; each ``None`` where the system does not tell (not Linux).
    """
    values: dict[str, int | None] = dict.fromkeys(_STATUS.values())
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in _STATUS:
                values[_STATUS[name]] = int(value.split()[0]) * 1024
    return values


def peak_host_bytes() -> int | None:
    """Highest resident memory of this process since ``reset_peaks``, or since it started."""
    return host_memory()["peak_bytes"]


def peak_cuda_bytes() -> int | None:
    """Most memory that tensors took on all visible GPUs since ``reset_peaks``; ``None`` without CUDA.

    It is the sum of each device's own peak, so for several devices it is an upper bound.
    """
    devices = _cuda_devices()
    if not devices:
        return None
    import torch

    return sum(torch.cuda.max_memory_allocated(device) for device in devices)


def reset_peaks() -> None:
    """Start a new phase: peaks are counted from what is in memory now."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        Path("/proc/self/clear_refs").write_text("5")
    devices = _cuda_devices()
    if devices:
        import torch

        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)


def _cuda_devices() -> range:
    """Visible GPUs; none before torch is imported, which then has allocated nothing."""
    if "torch" not in sys.modules:
        return range(0)
    import torch

    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
