"""The files of an artifact: regular files with all of their bytes inside one folder, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from scorecard.errors import ArtifactError


def regular_files(root: Path) -> list[Path]:
    """All files below a folder, in the order of their paths. Raises ArtifactError for what is refused."""
    return sorted(_walk(root, root, root.stat().st_dev))


def _walk(root: Path, folder: Path, device: int) -> Iterator[Path]:
    for path in folder.iterdir():
        status, where = path.lstat(), path.relative_to(root)
        if stat.S_ISLNK(status.st_mode):
            raise ArtifactError(f"{where}: is a symbolic link; write the file itself into $OUTPUT_MODEL")
        if status.st_dev != device:
            raise ArtifactError(f"{where}: lies on another file system; write the file into $OUTPUT_MODEL")
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root, path, device)
        else:
            _check_regular(path, where, status)
            yield path


def _check_regular(path: Path, where: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{where}: is not a regular file (pipe, socket or device); remove it")
    if status.st_nlink > 1:
        raise ArtifactError(f"{where}: is a hard link ({status.st_nlink} names for one file); write a copy")
    if _is_sparse(path, status):
        raise ArtifactError(f"{where}: is a sparse file; write its bytes out ('cp --sparse=never')")
    attributes = [a for a in _attributes(path) if a.startswith("user.")]
    if attributes:
        raise ArtifactError(
            f"{where}: has the extended attribute '{attributes[0]}', which no size counts; remove it"
        )


def _is_sparse(path: Path, status: os.stat_result) -> bool:
    """Fewer blocks than bytes *and* a hole: a compressing file system has the first alone."""
    if getattr(status, "st_blocks", status.st_size) * 512 >= status.st_size or not hasattr(os, "SEEK_HOLE"):
        return False
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size


def _attributes(path: Path) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False) if hasattr(os, "listxattr") else []
    except OSError:  # this file system has no attributes
        return []
