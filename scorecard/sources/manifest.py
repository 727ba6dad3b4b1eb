"""What a fetched model consists of: size, sha256 and time of every file, and one hash over them all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scorecard.errors import VerificationError
from scorecard.spec import from_json, to_json


@dataclass(frozen=True)
class FileEntry:
    """One file. ``mtime_ns`` is nanoseconds since the epoch; it only serves to notice later changes."""

    size_bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """What is known about one published folder; kept as JSON outside of it.

    ``request`` identifies what was asked for (source and flags) without repeating it, since a source
    may be a signed URL. ``origin_files`` maps each file of a local source to "size mtime_ns".
    """

    request: str
    sha256: str
    files: Mapping[str, FileEntry]
    origin: str | None = None
    origin_files: Mapping[str, str] | None = None
    revision: str | None = None
    download_sha256: str | None = None
    schema: int = 1


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def walk(folder: Path) -> Iterator[str]:
    """The relative POSIX path of every file below ``folder``, links included, sorted."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [n for n in folders if (Path(root) / n).is_symlink()]
        found += [(Path(root) / n).relative_to(folder).as_posix() for n in names + links]
    yield from sorted(found)


def hash_file(path: Path) -> FileEntry:
    # The time is taken first: a write during hashing then shows as a change at the next look.
    stat = path.stat()
    return FileEntry(stat.st_size, sha256_file(path), stat.st_mtime_ns)


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """An entry for each regular file. Raises VerificationError for a link or a special file."""
    entries = {}
    for name in walk(folder):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise VerificationError(f"{path}: is a link or a special file; put a regular file there")
        entries[name] = hash_file(path)
    return entries


def canonical_sha256(files: Mapping[str, FileEntry]) -> str:
    """sha256 of the UTF-8 lines ``<sha256>  <size>  <path>\\n``, sorted by path: independent of times."""
    lines = [f"{files[name].sha256}  {files[name].size_bytes}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def manifest_sha256(path: Path) -> str:
    """The hash of a model folder as ``sha256:`` in models.yaml wants it; all files below ``path`` count."""
    return canonical_sha256(hash_folder(path))


def read_manifest(path: Path) -> Manifest | None:
    """The manifest, or None where there is none that this version can read: the model is then fetched."""
    try:
        return from_json(Manifest, json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest at ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(to_json(manifest), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
