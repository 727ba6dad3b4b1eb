"""A content-addressed store of finished stages.

    ROOT/objects/ab/<key>/record.json + files     finished; a record that is there is done
    ROOT/partial/<key>.<pid>-<random>/            in work; whoever holds the key's lock clears what was left
    ROOT/failures/<key>.json                      why a stage last failed; a rerun tries again
    ROOT/locks/<key>.lock                         saves work, never needed for correctness
    ROOT/events.jsonl                             append-only: what happened when

Publishing is: write everything, hash it, fsync files and folders, write ``record.json`` last, rename once.
Whoever loses a race for the rename throws its copy away.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scorecard.errors import ScorecardError
from scorecard.spec import Record, from_json, to_json

RECORD = "record.json"


def stage_key(inputs: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything that can change a stage's result."""
    text = json.dumps(to_json(inputs), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(root: Path) -> dict[str, str]:
    """sha256 of every regular file below ``root``, by its path relative to it, sorted."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(root)): sha256_file(p) for p in files}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def write_atomic(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    write_atomic_text(path, json.dumps(to_json(data), indent=1, sort_keys=True))


def write_atomic_text(path: Path, text: str) -> None:
    """``write_atomic`` for any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Store:
    """Finished stages on disk, safe under any number of processes and kills."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name in ("objects", "partial", "failures", "locks"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def get(self, key: str, *, verify: bool = False) -> Record | None:
        """The record of a finished stage, ``None`` if there is none or its files are not whole.

        With ``verify`` every file is hashed again; an object that fails is put aside, so that it is rebuilt.
        """
        folder = self.path(key)
        try:
            record = from_json(Record, json.loads((folder / RECORD).read_text()))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError):
            self._discard(folder, "record.json cannot be read")
            return None
        fault = _fault(folder, record, verify)
        if fault:
            self._discard(folder, fault)
            return None
        return record

    def _discard(self, folder: Path, why: str) -> None:
        self.event("discarded", key=folder.name, reason=why)
        aside = self.root / "partial" / f"{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, poll_seconds: float = 0.05) -> Iterator[None]:
        """Hold the lock ``name``; a holder that dies lets go of it."""
        from filelock import FileLock

        with FileLock(self.root / "locks" / f"{name}.lock", poll_interval=poll_seconds):
            yield

    @contextmanager
    def partial(self, key: str) -> Iterator[Path]:
        """A fresh folder to work in, removed afterwards unless published. Call it under the key's lock."""
        for leftover in (self.root / "partial").glob(f"{key}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = self.root / "partial" / f"{key}.{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, record: Record) -> Record:
        """Make ``folder`` the object of ``record.key``. Raises ScorecardError when the disk is full."""
        try:
            record = dataclasses.replace(record, files=sha256_tree(folder))
            write_atomic(folder / RECORD, record)
            fsync_tree(folder)
            target = self.path(record.key)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
            _fsync(target.parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return self.get(record.key) or record
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ScorecardError(f"{self.root}: no space left; free some and run again") from error
            raise
        (self.root / "failures" / f"{record.key}.json").unlink(missing_ok=True)
        return record

    def fail(self, record: Record) -> None:
        """Remember why a stage failed, for reports; it is not an object, so a rerun tries again."""
        write_atomic(self.root / "failures" / f"{record.key}.json", record)

    def failure(self, key: str) -> Record | None:
        try:
            return from_json(Record, json.loads((self.root / "failures" / f"{key}.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def event(self, what: str, **fields: Any) -> None:
        """Append one line to events.jsonl; a single write, so that lines of several processes never mix."""
        line = json.dumps({"time": now(), "event": what, "pid": os.getpid(), **to_json(fields)}) + "\n"
        fd = os.open(self.root / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def _fault(folder: Path, record: Record, verify: bool) -> str | None:
    for name, sha in record.files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if verify and sha256_file(folder / name) != sha:
            return f"{name} has changed"
    return None


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(root: Path) -> None:
    """Have every file and folder below ``root`` on disk."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))
