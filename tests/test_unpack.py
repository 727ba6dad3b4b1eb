"""Zips that are not what they seem; each is refused with its line, and nothing is written outside."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scorecard.errors import SubmissionError
from scorecard.unpack import UnpackLimits, unpack

LIMITS = UnpackLimits(files=50, total_bytes=4 << 20, file_bytes=2 << 20, ratio=50)


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return stream.getvalue()


def named(name: str) -> bytes:
    """A zip with an entry of this name, written as it is by other tools than zipfile."""
    placeholder = "p" * len(name.encode())
    return zipped((placeholder, b"data")).replace(placeholder.encode(), name.encode())


def of_kind(kind: int, data: bytes = b"/etc/passwd") -> bytes:
    info = zipfile.ZipInfo("user/entry")
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    return zipped((info, data))


def with_extra(extra: bytes) -> bytes:
    info = zipfile.ZipInfo("user/entry")
    info.extra = extra
    return zipped((info, b"data"))


def patched(data: bytes, magic: bytes, offset: int, value: bytes) -> bytes:
    """``value`` at ``offset`` of the first record that begins with ``magic``."""
    at = data.index(magic) + offset
    return data[:at] + value + data[at + len(value) :]


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
PLAIN = zipped(("user/a", b"first"), ("user/b", b"second"))


def encrypted() -> bytes:
    return patched(patched(PLAIN, LOCAL, 6, b"\1\0"), CENTRAL, 8, b"\1\0")


def overlapping() -> bytes:
    """Both names of the table lead to the data of the first, as in the smallest bombs."""
    second = PLAIN.index(CENTRAL, PLAIN.index(CENTRAL) + 1)
    return PLAIN[: second + 42] + struct.pack("<I", 0) + PLAIN[second + 46 :]


def hidden_before() -> bytes:
    """Bytes between two entries that no table mentions; offsets are mended."""
    second, central = PLAIN.index(LOCAL, 4), PLAIN.index(CENTRAL)
    moved = PLAIN[:second] + b"HIDDEN" + PLAIN[second:]
    table = moved.index(CENTRAL, central)
    at = moved.index(CENTRAL, table + 1)
    moved = moved[: at + 42] + struct.pack("<I", second + 6) + moved[at + 46 :]
    end = moved.index(b"PK\5\6")
    return moved[: end + 16] + struct.pack("<I", central + 6) + moved[end + 20 :]


def another_size() -> bytes:
    """The table says 4 bytes, the packed data hold a MiB."""
    data = zipped(("user/a", bytes(1 << 20)), method=zipfile.ZIP_DEFLATED)
    for magic, offset in ((LOCAL, 22), (CENTRAL, 24)):
        data = patched(data, magic, offset, struct.pack("<I", 4))
    return data


def many_folders() -> bytes:
    return zipped(*((f"user/{n}/", b"") for n in range(60)))


def nested() -> bytes:
    """A zip of zips of zips: only the outer one is ever unpacked, and its entries are counted."""
    inner = zipped(*((f"{n}", b"x") for n in range(60)))
    return zipped(*((f"user/{n}.zip", inner) for n in range(60)))


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip slip": (lambda: named("user/../../escaped"), r"user/\.\./\.\./escaped: leaves the folder"),
    "absolute path": (lambda: named("/tmp/escaped"), "/tmp/escaped: is an absolute path"),
    "drive letter": (lambda: named("C:/escaped"), "C:/escaped: has a backslash or a drive"),
    "backslash": (lambda: named("user\\..\\escaped"), "has a backslash or a drive"),
    "dot in path": (lambda: named("user/./a"), "is no plain name"),
    "empty part": (lambda: named("user//a"), "is no plain name"),
    "control character": (lambda: named("user/a\x1b[2J"), r"user/a\\x1b\[2J: is no plain name"),
    "NUL in name": (lambda: named("user/a\0.txt"), r"is no plain name"),
    "reserved name": (lambda: named("user/con.txt"), "not every system can store"),
    "long name": (lambda: named("user/" + "a" * 300), "too long"),
    "deep path": (lambda: named("d/" * 30 + "a"), "too long or too deep"),
    "same name twice": (lambda: PLAIN.replace(b"user/b", b"user/a"), "user/a: is there twice"),
    "names differ in case": (
        lambda: zipped(("user/a.py", b"1"), ("user/A.py", b"2")),
        r"user/A\.py: differs from user/a\.py in case only",
    ),
    "file as folder": (lambda: zipped(("user/a", b"1"), ("user/a/b", b"2")), "user/a/b: lies in a file"),
    "symbolic link": (lambda: of_kind(stat.S_IFLNK), "user/entry: is a symbolic link"),
    "hard link": (lambda: with_extra(struct.pack("<HH", 13, 14) + b"x" * 14), "is a hard link"),
    "device": (lambda: of_kind(stat.S_IFCHR), "is a device, a pipe or a socket"),
    "pipe": (lambda: of_kind(stat.S_IFIFO), "is a device, a pipe or a socket"),
    "folder with content": (lambda: zipped(("user/a/", b"content")), "is a folder with content"),
    "encrypted": (encrypted, "user/a: is encrypted"),
    "unknown method": (
        lambda: zipped(("user/a", b"1" * 100), method=zipfile.ZIP_LZMA),
        "user/a: is packed with method 14",
    ),
    "overlapping entries": (overlapping, "overlaps another entry"),
    "hidden bytes between": (hidden_before, "user/b: has hidden bytes before it"),
    "hidden bytes in front": (lambda: b"#!/bin/sh\n" + PLAIN, "hidden bytes before it"),
    "hidden bytes behind": (lambda: PLAIN + b"HIDDEN", "hidden bytes after"),
    "other name in local header": (
        lambda: PLAIN.replace(b"user/a", b"user/x", 1),
        r"user/a: is called otherwise",
    ),
    "other size in local header": (
        lambda: patched(PLAIN, LOCAL, 22, b"\7"),
        "user/a: has another size in its local header",
    ),
    "cut off": (lambda: PLAIN[:-10], "is broken"),
    "wrong checksum": (lambda: PLAIN.replace(b"first", b"xxxxx"), "is broken"),
    "no zip": (lambda: b"not a zip at all", "is broken"),
    "empty": (lambda: zipped(), "holds nothing"),
    "flat bomb": (
        lambda: zipped(("user/a", bytes(1900 << 10)), method=zipfile.ZIP_DEFLATED),
        "user/a: grows more than 50 times",
    ),
    "large file": (lambda: zipped(("user/a", bytes(3 << 20))), "user/a: has more than 2,097,152 bytes"),
    "many large files": (
        lambda: zipped(*((f"user/{n}", bytes(1500 << 10)) for n in range(3))),
        "unpacks to more than 4,194,304 bytes",
    ),
    "many files": (many_folders, "holds 60 entries, more than 50"),
    "nested bomb": (nested, "holds 60 entries, more than 50"),
    "more than the header says": (another_size, "unpacks to more than its header says|is broken"),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_its_line_and_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    make, line = CASES[name]
    archive, folder = tmp_path / "hostile.zip", tmp_path / "below" / "unpacked"
    archive.write_bytes(make())
    folder.mkdir(parents=True)
    with pytest.raises(SubmissionError, match=line) as error:
        unpack(archive, folder, LIMITS)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(folder)]
    assert outside == [archive]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= LIMITS.total_bytes


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_plain_zip_comes_out_as_it_went_in(method: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "a.zip").write_bytes(
        zipped(("user.py", b"x"), ("user/", b""), ("user/größe.bin", data), method=method)
    )
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == ["user.py", "user/größe.bin"]
    assert (tmp_path / "out" / "user" / "größe.bin").read_bytes() == data


def test_limits_are_options(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(("user/a", bytes(1900 << 10)), method=zipfile.ZIP_DEFLATED))
    (tmp_path / "out").mkdir()
    assert unpack(archive, tmp_path / "out", UnpackLimits(ratio=5000)) == ["user/a"]
