"""Unpack a submission of a stranger: nothing of it is believed, and nothing is written outside the folder.

All names are checked before the first byte is written. Sizes are counted while they are unpacked; what the
headers say is only compared. A zip has two tables of contents, the local headers and the central directory
(PKWARE APPNOTE 4.3); programs differ in which one they read, so both must agree and nothing may lie between.
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from scorecard.errors import SubmissionError
from scorecard.plain import plain

GIB = 2**30
_CHUNK_BYTES = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC, _ENCRYPTED, _DESCRIPTOR, _UTF8 = b"PK\3\4", 1, 8, 0x800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LINK_EXTRA = 0x000D  # of PKWARE's UNIX: a device number, or the name that a link leads to
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)
_LONGEST_NAME, _LONGEST_PART, _DEEPEST = 1000, 200, 20
_END_BYTES = 22  # of the record that ends a zip without a comment
_ZIP64_END_BYTES = 76


@dataclass(frozen=True)
class UnpackLimits:
    """The most that a zip may hold; ``ratio`` is unpacked to packed bytes, of the whole and of each file
    of more than a MiB."""

    files: int = 2000
    total_bytes: int = 64 * GIB
    file_bytes: int = 32 * GIB
    ratio: float = 100.0


def unpack(archive: Path, folder: Path, limits: UnpackLimits | None = None) -> list[str]:
    """Write the files of ``archive`` below ``folder``, an empty one; returns their names, sorted.

    Raises SubmissionError for whatever is not a plain zip of plain files within the limits.
    """
    limits = limits or UnpackLimits()
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as zipped:
            infos = zipped.infolist()
            _check_count(infos, limits)
            _check_names(infos)
            for info in infos:
                _check_entry(info)
            _check_layout(file, infos, zipped.start_dir, archive.stat().st_size, zipped.comment)
            _check_sizes(infos, limits)
            _write(zipped, infos, folder, limits)
    except FileNotFoundError:
        raise SubmissionError(f"{archive}: there is none; write the path of a zip file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error) as error:
        raise SubmissionError(f"{archive.name}: is broken ({plain(error)}); pack it again") from None
    except (OSError, UnicodeError, ValueError, RuntimeError) as error:
        raise SubmissionError(f"{archive.name}: cannot be unpacked ({plain(error)}); pack it again") from None
    return sorted(info.filename for info in infos if not info.is_dir())


def _refuse(name: str, what: str) -> SubmissionError:
    return SubmissionError(f"{plain(name, 120)}: {what}")


def _check_count(infos: Sequence[zipfile.ZipInfo], limits: UnpackLimits) -> None:
    if len(infos) > limits.files:
        raise SubmissionError(f"holds {len(infos)} entries, more than {limits.files}; see --max-files")
    if not infos:
        raise SubmissionError("holds nothing; pack the frozen folder with 'scorecard submit'")


def check_name(name: str) -> None:
    """Raises SubmissionError unless ``name`` is a plain relative path on every operating system."""
    parts = name.split("/")
    if name.startswith("/"):
        raise _refuse(name, "is an absolute path; pack relative ones")
    if "\\" in name or ":" in name:
        raise _refuse(name, "has a backslash or a drive in its name; write '/' and plain names")
    if ".." in parts:
        raise _refuse(name, "leaves the folder with '..'; pack what lies in it")
    if not name.isprintable() or "." in parts or "" in parts:
        raise _refuse(name, "is no plain name; rename it")
    if len(name) > _LONGEST_NAME or max(map(len, parts)) > _LONGEST_PART or len(parts) > _DEEPEST:
        raise _refuse(name, "is too long or too deep; shorten it")
    if any(part.partition(".")[0].lower() in _RESERVED or part[-1] in ". " for part in parts):
        raise _refuse(name, "is a name that not every system can store; rename it")


def _check_names(infos: Sequence[zipfile.ZipInfo]) -> None:
    seen: dict[str, str] = {}
    files: set[str] = set()
    for info in infos:
        if info.orig_filename != info.filename:  # zipfile cuts at a NUL
            raise _refuse(info.orig_filename, "is no plain name; rename it")
        name = info.filename.removesuffix("/")
        check_name(name)
        folded = unicodedata.normalize("NFKC", name).casefold()
        if folded in seen:
            twice = (
                "is there twice"
                if seen[folded] == name
                else f"differs from {plain(seen[folded])} in case only"
            )
            raise _refuse(name, f"{twice}; pack each file once")
        seen[folded] = name
        if not info.is_dir():
            files.add(folded)
    for folded, name in seen.items():
        if any(str(parent) in files for parent in PurePosixPath(folded).parents):
            raise _refuse(name, "lies in a file; pack each file once")


def _check_entry(info: zipfile.ZipInfo) -> None:
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise _refuse(name, "is a symbolic link; pack the file itself")
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        raise _refuse(name, "is a device, a pipe or a socket; pack regular files only")
    if _LINK_EXTRA in _extra_kinds(info.extra):
        raise _refuse(name, "is a hard link; pack the file itself")
    if info.flag_bits & _ENCRYPTED:
        raise _refuse(name, "is encrypted; pack it without a password")
    if info.compress_type not in _METHODS:
        raise _refuse(name, f"is packed with method {info.compress_type}; store or deflate it")
    if info.is_dir() and (info.file_size or info.compress_size > 2):
        raise _refuse(name, "is a folder with content; pack each file once")


def _extra_kinds(extra: bytes) -> set[int]:
    """The kinds of a header's extra fields (APPNOTE 4.5)."""
    kinds, at = set(), 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        kinds.add(kind)
        at += 4 + length
    return kinds


def _check_layout(
    file: IO[bytes], infos: Sequence[zipfile.ZipInfo], start_dir: int, size: int, comment: bytes
) -> None:
    """Entries lie one after the other from the first byte to the central directory, and it ends the file."""
    at = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < at:
            raise _refuse(info.filename, "overlaps another entry; pack it again")
        if info.header_offset > at:
            raise _refuse(info.filename, "has hidden bytes before it; pack it again")
        at = _end_of_entry(file, info)
    if at != start_dir:
        raise SubmissionError("hidden bytes before the table of contents; pack it again")
    directory = sum(46 + len(i.orig_filename.encode()) + len(i.extra) + len(i.comment) for i in infos)
    after = size - start_dir - directory
    if comment or after not in (_END_BYTES, _END_BYTES + _ZIP64_END_BYTES):
        raise SubmissionError("a comment or hidden bytes after the table of contents; pack it again")


def _end_of_entry(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the next entry begins; the local header must say what the central directory says."""
    file.seek(info.header_offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(_LOCAL_MAGIC):
        raise _refuse(info.filename, "has no local header; pack it again")
    _, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL.unpack(head)
    name = file.read(name_length)
    file.seek(extra_length, 1)
    if (
        name.decode("utf-8" if flags & _UTF8 else "cp437") != info.orig_filename
        or method != info.compress_type
    ):
        raise _refuse(info.filename, "is called otherwise in its local header; pack it again")
    if flags & _DESCRIPTOR:
        raise _refuse(info.filename, "has its size behind its data; pack it with 'scorecard submit'")
    large = 0xFFFFFFFF in (packed, unpacked)
    if not large and (crc, packed, unpacked) != (info.CRC, info.compress_size, info.file_size):
        raise _refuse(info.filename, "has another size in its local header; pack it again")
    return file.tell() + info.compress_size


def _check_sizes(infos: Sequence[zipfile.ZipInfo], limits: UnpackLimits) -> None:
    """What the headers claim; ``_copy`` counts what is really there."""
    packed = 0
    for info in infos:
        packed += info.compress_size
        if info.file_size > limits.file_bytes:
            raise _refuse(info.filename, f"has more than {limits.file_bytes:,} bytes; see --max-file-bytes")
        if info.file_size > max(_CHUNK_BYTES, limits.ratio * info.compress_size):
            raise _refuse(info.filename, f"grows more than {limits.ratio:g} times; see --max-ratio")
    total = sum(info.file_size for info in infos)
    if total > limits.total_bytes:
        raise SubmissionError(f"unpacks to more than {limits.total_bytes:,} bytes; see --max-bytes")
    if total > max(_CHUNK_BYTES, limits.ratio * packed):
        raise SubmissionError(f"grows more than {limits.ratio:g} times; see --max-ratio")


def _write(
    zipped: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo], folder: Path, limits: UnpackLimits
) -> None:
    left = limits.total_bytes
    for info in infos:
        target = folder / info.filename
        if info.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        left -= _copy(zipped, info, target, min(left, limits.file_bytes))


def _copy(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, most: int) -> int:
    written = 0
    with zipped.open(info) as stream, target.open("xb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > min(info.file_size, most):
                raise _refuse(info.filename, "unpacks to more than its header says; pack it again")
            file.write(chunk)
    if written != info.file_size:
        raise _refuse(info.filename, "is cut short; pack it again")
    return written
