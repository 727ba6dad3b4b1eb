"""What a box for code of strangers holds and how much it may take: plain data, handed over as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30

SCRATCH = "/scratch"
IDENTITY = 1000  # user and group inside
NOBODY = 65534  # outside, where root runs the box


@dataclass(frozen=True)
class BoxLimits:
    """The most that everything in the box may take together; ``processes`` counts threads too,
    ``file_bytes`` is of one file, ``scratch_bytes`` of all files that it writes."""

    wall_seconds: float = 3600.0
    cpu_seconds: float = 14400.0
    memory_bytes: int = 16 * GIB
    processes: int = 256
    open_files: int = 1024
    file_bytes: int = 8 * GIB
    scratch_bytes: int = GIB


@dataclass(frozen=True)
class Box:
    """``readable`` and ``writable`` map a path inside to one outside; nothing else of the host is there.

    ``root`` is an empty folder of the host to build in. Without ``isolated`` the command runs on the host,
    where only the limits hold; paths inside are then paths of the host.
    """

    command: tuple[str, ...]
    root: str
    readable: Mapping[str, str] = field(default_factory=dict)
    writable: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: BoxLimits = BoxLimits()
    network: bool = False
    isolated: bool = True


@dataclass(frozen=True)
class BoxEnded:
    """``limit`` is the limit that was passed, ``error`` why the box could not be made."""

    code: int | None = None
    limit: str | None = None
    error: str | None = None
