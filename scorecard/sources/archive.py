"""Unpack a model from a .zip or .tar archive without trusting it.

Nothing is written that is not a regular file of the model; names are checked before the first byte; an
archive with a link, a device or an unsafe name is refused whole.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from scorecard.errors import VerificationError
from scorecard.sources.contents import check_name, select
from scorecard.sources.transfer import require_space
from scorecard.spec import ModelSpec

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_FILES = 10_000
# Weights barely compress (below 2 to 1), so an archive that grows tenfold is not a model.
MAX_GROWTH = 10
SMALL_BYTES = 2**30
_CHUNK_BYTES = 2**20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def extract(archive: Path, folder: Path, model: ModelSpec) -> None:
    """Write the model's files into ``folder``; one folder around everything is dropped.

    Raises VerificationError for an archive that is broken, unsafe or far too large when unpacked.
    """
    where = f"{model.id}: {archive.name}"
    limit = max(SMALL_BYTES, MAX_GROWTH * archive.stat().st_size)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                _write(_checked(_zip_members(zipped, where), limit, where), folder, model, where)
        else:
            with tarfile.open(archive) as tarred:
                _write(_checked(_tar_members(tarred, where), limit, where), folder, model, where)
    except _BROKEN as error:
        raise VerificationError(f"{where}: the archive is broken ({error}); make it again") from None


def _zip_members(zipped: zipfile.ZipFile, where: str) -> Iterator[_Member]:
    for info in zipped.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            check_name(info.filename.rstrip("/"), where)
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _not_a_file(info.filename, where)
        if info.flag_bits & 1:
            raise VerificationError(f"{where}: {info.filename} is encrypted; pack it without a password")
        yield _Member(info.filename, info.file_size, lambda info=info: zipped.open(info))  # type: ignore[misc]


def _tar_members(tarred: tarfile.TarFile, where: str) -> Iterator[_Member]:
    for info in tarred:
        name = info.name.removeprefix("./")
        if info.isdir():
            if name not in ("", "."):
                check_name(name, where)
            continue
        if not info.isreg() or info.issparse():
            raise _not_a_file(info.name, where)
        yield _Member(name, info.size, lambda info=info: tarred.extractfile(info))  # type: ignore[misc]


def _not_a_file(name: str, where: str) -> VerificationError:
    return VerificationError(f"{where}: {name} is a link, a device or sparse; pack regular files only")


def _checked(members: Iterator[_Member], limit: int, where: str) -> list[_Member]:
    """All members, their names safe and unique, their sizes within ``limit``, in the archive's order."""
    found: dict[str, _Member] = {}
    total = 0
    for member in members:
        check_name(member.name, where)
        total += member.size
        if total > limit or len(found) >= MAX_FILES:
            raise VerificationError(
                f"{where}: unpacks to more than {limit} bytes or {MAX_FILES} files; pack the model only"
            )
        if member.name in found:
            raise VerificationError(f"{where}: holds {member.name} twice; pack each file once")
        found[member.name] = member
    return list(found.values())


def _write(members: list[_Member], folder: Path, model: ModelSpec, where: str) -> None:
    chosen = set(select([m.name for m in members], model))
    require_space(folder, sum(m.size for m in members if m.name in chosen), where)
    tops = {PurePosixPath(name).parts[0] for name in chosen}
    around = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in chosen) else ""
    for member in members:
        if member.name in chosen:
            _copy(member, folder / member.name.removeprefix(around), where)


def _copy(member: _Member, target: Path, where: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    stream, written = member.open(), 0
    if stream is None:
        raise _not_a_file(member.name, where)
    with stream, target.open("wb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            written += len(chunk)
            file.write(chunk)
    if written != member.size:
        raise VerificationError(f"{where}: {member.name} is cut short; make the archive again")
