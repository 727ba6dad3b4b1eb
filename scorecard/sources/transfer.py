"""Download one file so that an interruption, even ``kill -9``, costs nothing: the part file is continued."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from scorecard.errors import SourceError

ATTEMPTS = 4  # in a row, without one new byte
PAUSE_SECONDS = 0.5  # doubles with each of them
CHUNK_BYTES = 2**20


class Dropped(Exception):
    """The connection ended; it is worth asking for the rest."""


class Restart(Dropped):
    """What lies at the source is no longer what the part file was made from."""


@dataclass(frozen=True)
class Reply:
    """A server's answer: bytes from ``start`` on, of ``total`` (None: unknown), of the version ``tag``."""

    start: int
    total: int | None
    tag: str | None
    chunks: Iterator[bytes]


Open = Callable[[int, str | None], Reply]


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def tag_of(target: Path) -> Path:
    return target.with_name(target.name + ".tag")


def download(open_at: Open, target: Path, where: str) -> None:
    """Fill ``target`` from ``open_at(offset, tag)``.

    ``open_at`` raises Dropped for what may pass and SourceError for what will not. Raises SourceError when
    the server stops sending; what has arrived is kept for the next call.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failures = part_of(target), 0
    while True:
        before = _size(part)
        try:
            _append(open_at, target, where)
            break
        except Restart as problem:
            part.unlink(missing_ok=True)
            reason = str(problem)
        except Dropped as problem:
            reason = str(problem)
        failures = 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(
                f"{where}: the download stops after {_size(part)} bytes ({reason}); "
                "check the network and run again, it goes on from there"
            )
        time.sleep(PAUSE_SECONDS * 2**failures)
    part.replace(target)


def _append(open_at: Open, target: Path, where: str) -> None:
    part, tag = part_of(target), tag_of(target)
    have = _size(part)
    reply = open_at(have, tag.read_text() if have and tag.exists() else None)
    if reply.start not in (0, have):
        raise Restart(f"the server sent bytes from {reply.start}, not from {have}")
    if reply.start == 0:
        part.unlink(missing_ok=True)
        tag.write_text(reply.tag or "")
    if reply.total is not None:
        require_space(target.parent, reply.total - reply.start, where)
    # Unbuffered: what has arrived is on disk when the process is killed.
    with part.open("ab", buffering=0) as stream:
        for chunk in reply.chunks:
            _write_all(stream, chunk)
        os.fsync(stream.fileno())
    size = _size(part)
    if reply.total is not None and size > reply.total:
        raise Restart(f"the server sent {size} bytes of {reply.total}")
    if reply.total is not None and size < reply.total:
        raise Dropped(f"the server closed at {size} of {reply.total} bytes")


def _write_all(stream: FileIO, chunk: bytes) -> None:
    """A raw write may take only a part, as on a disk that is filling up; a gap would be silent."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def require_space(folder: Path, wanted_bytes: int, where: str) -> None:
    """Raises SourceError before a download that cannot fit."""
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        raise SourceError(
            f"{where}: needs {wanted_bytes} bytes, {folder} has {free} free; "
            "free some space, or set SCORECARD_MODELS_DIR to a larger disk"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
