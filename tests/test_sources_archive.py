"""scorecard.sources: archives are unpacked without being trusted."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sources_servers import model_files, spec

from scorecard.errors import VerificationError
from scorecard.sources import archive

Pack = Callable[[dict[str, bytes]], bytes]


def unpack(tmp_path: Path, name: str, data: bytes) -> Path:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "out").mkdir(exist_ok=True)
    archive.extract(tmp_path / name, tmp_path / "out", spec("https://host/" + name))
    return tmp_path / "out"


def tar_of(files: dict[str, bytes], mode: str = "w:gz", *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(info, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("m.zip", zip_of),
        ("m.tar", lambda files: tar_of(files, "w")),
        ("m.tar.gz", tar_of),
        ("m.tgz", tar_of),
        ("m.tar.xz", lambda files: tar_of(files, "w:xz")),
    ],
)
@pytest.mark.parametrize("around", ["", "llama/"])
def test_archives(tmp_path: Path, name: str, pack: Pack, around: str) -> None:
    files = {**model_files(), "README.md": b"hello", "pytorch_model.bin": b"x"}
    unpacked = unpack(tmp_path, name, pack({around + n: d for n, d in files.items()}))
    assert {p.name: p.read_bytes() for p in unpacked.iterdir()} == model_files()


def tar_with(kind: bytes, target: str) -> bytes:
    """A model in a .tar with one more member, ``x.json``, that is not a regular file."""
    info = tarfile.TarInfo("x.json")
    info.type, info.linkname = kind, target
    return tar_of(model_files(), "w", info)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", tar_of({**model_files(), "../evil.json": b"{}"}, "w"), "unsafe file name '../evil.json'"),
        ("a.tar", tar_of({**model_files(), "/etc/evil": b"x"}, "w"), "unsafe file name '/etc/evil'"),
        ("a.zip", zip_of({**model_files(), "a/../../evil.json": b"{}"}), "unsafe file name"),
        ("a.zip", zip_of({**model_files(), "C:\\evil.json": b"{}"}), "unsafe file name"),
        ("a.zip", zip_of({"config.json": b"/etc/passwd"}, stat.S_IFLNK | 0o777), "config.json is a link"),
        ("a.tar", tar_with(tarfile.SYMTYPE, "/etc/passwd"), "x.json is a link"),
        ("a.tar", tar_with(tarfile.LNKTYPE, "config.json"), "x.json is a link"),
        ("a.tar", tar_with(tarfile.CHRTYPE, ""), "x.json is a link"),
        ("a.tar", tar_with(tarfile.FIFOTYPE, ""), "x.json is a link"),
        ("a.tar.gz", tar_of(model_files())[:150], "archive is broken"),
        ("a.zip", b"PK not a zip", "archive is broken"),
        ("a.tar.gz", tar_of({"pytorch_model.bin": b"x"}), "only pickles"),
    ],
)
def test_unsafe_archives_are_refused_whole(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        unpack(tmp_path, name, data)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Pack
) -> None:
    monkeypatch.setattr(archive, "SMALL_BYTES", 2**20)
    name = "bomb.zip" if pack is zip_of else "bomb.tar.gz"
    with pytest.raises(VerificationError, match="unpacks to more than 1048576 bytes"):
        unpack(tmp_path, name, pack({**model_files(), "zeros.json": bytes(4 * 2**20)}))
    monkeypatch.setattr(archive, "MAX_FILES", 2)
    with pytest.raises(VerificationError, match="or 2 files"):
        unpack(tmp_path, name, pack(model_files()))
    assert not list((tmp_path / "out").iterdir())
