"""A folder put in the place of another one, whole or not at all, and only where nothing of value is lost."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorecard.errors import ManifestError
from scorecard.manifest import NAME, read_manifest
from scorecard.store import fsync_tree, sha256_file

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h, renameat2(2)


def check_replaceable(folder: Path, own: list[Path], *, force: bool) -> None:
    """Raises ManifestError for a folder with files that are nowhere else.

    It may be replaced when it is empty, when it is a frozen one as it was written (``own`` are its files but
    for what a run has made), or when git has all of it. ``force`` replaces any.
    """
    if force or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    mend = "move it away, name another --folder, or write --force"
    if not folder.is_dir() or folder.is_symlink():
        raise ManifestError(f"{folder}: is no folder; {mend}")
    if (folder / NAME).is_file():
        different = _different(folder, own)
        if different is None or _in_git(folder):
            return
        raise ManifestError(f"{folder}: {different} was changed since it was frozen; {mend}")
    if not _in_git(folder):
        raise ManifestError(f"{folder}: is not one that was frozen, and git does not have all of it; {mend}")


def _different(folder: Path, own: list[Path]) -> str | None:
    """The first file that is not as the manifest says."""
    code = read_manifest(folder).code
    found = {path.relative_to(folder).as_posix(): path for path in own} | {NAME: folder / NAME}
    for name in sorted({*code, *found} - {NAME}):
        if name not in code or name not in found or sha256_file(found[name]) != code[name].sha256:
            return name
    return None


def _in_git(folder: Path) -> bool:
    """Whether git tracks the folder and every file of it that it does not ignore, unchanged."""
    command = ["git", "-C", str(folder)]
    try:
        tracked = _said([*command, "ls-files", "--", "."])
        return bool(tracked) and not _said([*command, "status", "--porcelain", "--", "."])
    except (OSError, subprocess.CalledProcessError):
        return False


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip()


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, to be filled; it takes its place when the block ends without an error.

    The two change names in one step where the kernel can do that (renameat2 with RENAME_EXCHANGE, Linux); a
    process that is killed leaves the old folder, and a hidden one that the next call removes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.freeze-*"):
        shutil.rmtree(left, ignore_errors=True)
    made = folder.parent / f".{folder.name}.freeze-{os.getpid()}-{secrets.token_hex(4)}"
    made.mkdir()
    try:
        yield made
        fsync_tree(made)
        _put(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _put(made: Path, folder: Path) -> None:
    if folder.exists() and not _exchange(made, folder):
        aside = made.with_name(f"{made.name}.old")
        folder.rename(aside)
        made.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    elif not folder.exists():
        made.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Give each folder the other's name; ``False`` where this system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
