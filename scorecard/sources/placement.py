"""Bring a local file into the models folder, without a second copy of its bytes where that is safe."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

LINK_FROM_BYTES = 64 * 2**20
_FICLONE = 0x40049409  # linux/fs.h; other systems answer with an error, and the file is linked or copied


def place(source: Path, target: Path) -> None:
    """Make ``target`` a file with the bytes and the modification time of ``source``.

    In this order: a *reflink* (btrfs, xfs, …: shares the blocks, and a later edit of one leaves the other
    alone); for large files a *hard link*, because a second copy of 16 GB costs minutes and disk; else a
    *copy*. A symbolic link is never made: it would break when the original is hidden or moved. A hard
    link lets an edit of the original show through; ``fetch`` notices that by size and time, and hashes
    the model anew. Files below 64 MiB are worth their own copy.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    if _reflink(source, target) or _hardlink(source, target):
        return
    shutil.copyfile(source, target)
    _finish(source, target)


def _finish(source: Path, target: Path) -> None:
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    stat = source.stat()
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _reflink(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as original, target.open("wb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
    except OSError:  # not supported here, or another file system; a real fault shows again in the copy
        target.unlink(missing_ok=True)
        return False
    _finish(source, target)
    return True


def _hardlink(source: Path, target: Path) -> bool:
    if source.stat().st_size < LINK_FROM_BYTES:
        return False
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        return False
    return True
