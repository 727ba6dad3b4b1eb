"""scorecard.sources: which files are taken, and what is refused by name or by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources_servers import model_files, safetensors_bytes, spec, write_model

from scorecard.errors import VerificationError
from scorecard.sources import FileEntry, fetch
from scorecard.sources.contents import check_name, check_safetensors, select
from scorecard.sources.manifest import canonical_sha256

WRONG = "0" * 64


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return write_model(tmp_path / "origin")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, "has only pickles .pytorch_model.bin.*allow_pickle: true"),
        ({"config.json": b"{}"}, "holds no weights"),
        ({"a.safetensors": pickle.dumps({"a": 1}) * 9}, "not a safetensors file"),
        ({**model_files(), "vocab.json": pickle.dumps({"a": 1})}, "vocab.json: is a pickle"),
        ({"model.safetensors": safetensors_bytes()[:-1]}, "cut short: fetch it again"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"),
        ({"model.safetensors": b""}, "cut short"),
        (
            {**model_files(), "model.safetensors.index.json": b'{"weight_map": {"w": "m-2.safetensors"}}'},
            "names 1 files that are not there .m-2.safetensors",
        ),
    ],
)
def test_what_is_not_safetensors_is_refused(
    tmp_path: Path, models: Path, files: dict[str, bytes], message: str
) -> None:
    source = write_model(tmp_path / "odd", files)
    with pytest.raises(VerificationError, match=message):
        fetch(spec(f"path:{source}"), models)
    assert not (models / "tiny").exists()


def test_a_torch_zip_is_found_by_content(origin: Path, models: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, origin / "vocab.txt")
    with pytest.raises(VerificationError, match=r"vocab\.txt: is a pickle"):
        fetch(spec(f"path:{origin}"), models)
    assert "vocab.txt" in fetch(spec(f"path:{origin}", allow_pickle=True), models).files


def test_pickles_come_only_when_allowed_and_needed(tmp_path: Path, origin: Path, models: Path) -> None:
    only = write_model(tmp_path / "only", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    assert "pytorch_model.bin" in fetch(spec(f"path:{only}", allow_pickle=True), models).files
    (origin / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" not in fetch(spec(f"path:{origin}", allow_pickle=True), models).files


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.binary(), st.integers()), min_size=1))
def test_canonical_sha256_depends_on_names_and_bytes_only(data: dict[str, tuple[bytes, int]]) -> None:
    data = {n.encode("utf-8", "ignore").decode(): v for n, v in data.items()}
    files = {n: FileEntry(len(b), hashlib.sha256(b).hexdigest(), t) for n, (b, t) in data.items()}
    backwards = {n: dataclasses.replace(files[n], mtime_ns=0) for n in sorted(files, reverse=True)}
    assert canonical_sha256(files) == canonical_sha256(backwards)
    assert canonical_sha256(files) != canonical_sha256({**files, "other\0": FileEntry(0, WRONG, 0)})


@given(st.text())
def test_a_checked_name_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name, "here")
    except VerificationError:
        return
    path = PurePosixPath("/root/folder") / name
    assert path.parts[:3] == ("/", "root", "folder")
    assert ".." not in path.parts
    assert path != PurePosixPath("/root/folder")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_safetensors_file_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for candidate in (data, len(data).to_bytes(8, "little") + data):
        path.write_bytes(candidate)
        try:
            check_safetensors(path, "here")
        except VerificationError:
            continue
        assert isinstance(json.loads(candidate[8 : 8 + int.from_bytes(candidate[:8], "little")]), dict)


@given(st.integers(0, 107))
def test_every_cut_of_a_safetensors_file_is_found(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    whole = safetensors_bytes(32)
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole)
    check_safetensors(path, "here")
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(VerificationError):
        check_safetensors(path, "here")


@given(st.sets(st.sampled_from(["a.safetensors", "b.bin", "c.json", "d.py", "README.md", "e.pt"])))
def test_select_never_takes_pickles_unasked(names: set[str]) -> None:
    try:
        chosen = select(names, spec("path:x"))
    except VerificationError:
        assert "a.safetensors" not in names
    else:
        assert set(chosen) <= {"a.safetensors", "c.json"}
