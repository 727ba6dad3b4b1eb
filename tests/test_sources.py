"""scorecard.sources: local sources, publication, races and crashes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from sources_servers import model_files, safetensors_bytes, spec, write_model

from scorecard.errors import SourceError, SpecError, VerificationError
from scorecard.sources import default_models_dir, fetch, local, manifest_sha256, placement

WRONG = "0" * 64


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return write_model(tmp_path / "origin")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_path_is_fetched_and_the_second_call_touches_nothing(origin: Path, models: Path) -> None:
    model = spec(f"path:{origin}")
    first = fetch(model, models)
    assert first.path == models / "tiny" / "llama@1"
    assert contents(first.path) == model_files()
    assert first.origin == origin
    before = first.path.stat().st_ino
    second = fetch(model, models, offline=True)
    assert second.path.stat().st_ino == before
    assert dataclasses.replace(second, seconds=0.0) == dataclasses.replace(first, seconds=0.0)
    assert not list((models / ".partial").rglob("*.safetensors"))


def test_sha256_is_that_of_the_documented_lines(origin: Path, models: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {name}\n" for name, data in model_files().items()
    )
    expected = hashlib.sha256(lines.encode()).hexdigest()
    fetched = fetch(spec(f"path:{origin}", sha256=expected.upper()), models)
    assert fetched.sha256 == expected == manifest_sha256(fetched.path)


def test_wrong_sha256_publishes_nothing_and_names_both(origin: Path, models: Path) -> None:
    with pytest.raises(VerificationError, match=rf"has sha256 {manifest_sha256(origin)}.*says {WRONG}"):
        fetch(spec(f"path:{origin}", sha256=WRONG), models)
    assert not (models / "tiny").exists()


def test_a_hash_added_later_is_checked_against_what_is_there(origin: Path, models: Path) -> None:
    fetched = fetch(spec(f"path:{origin}"), models)
    inode = fetched.path.stat().st_ino
    fetch(spec(f"path:{origin}", sha256=fetched.sha256), models)
    assert fetched.path.stat().st_ino == inode
    with pytest.raises(VerificationError):
        fetch(spec(f"path:{origin}", sha256=WRONG), models)


def test_documents_code_copies_and_hidden_files_stay_out(origin: Path, models: Path) -> None:
    extra = ("README.md", "LICENSE.txt", "run.py", "pytorch_model.bin", "original/params.json", ".git/x.json")
    for name in (*extra, "consolidated.safetensors", "pytorch_model.bin.index.json", "merges.txt"):
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes(b"x")
    assert set(fetch(spec(f"path:{origin}"), models).files) == {*model_files(), "merges.txt"}
    trusted = fetch(spec(f"path:{origin}", trust_remote_code=True), models)
    assert set(trusted.files) == {*model_files(), "merges.txt", "run.py"}


def test_embedded_is_a_folder_of_the_repository(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "EMBEDDED", tmp_path / "embedded")
    write_model(tmp_path / "embedded" / "tiny-llama")
    fetched = fetch(spec("embedded:tiny-llama"), models, offline=True)
    assert contents(fetched.path) == model_files()
    with pytest.raises(SourceError, match="did you mean 'tiny-llama'"):
        fetch(dataclasses.replace(spec("embedded:tiny-lama"), version="2"), models)


@pytest.mark.parametrize("large", [False, True])
def test_an_edit_of_the_original_is_noticed(
    origin: Path, models: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(placement, "LINK_FROM_BYTES", 0 if large else 2**30)
    model = spec(f"path:{origin}")
    first = fetch(model, models)
    edited = safetensors_bytes(fill=7)
    with (origin / "model.safetensors").open("r+b") as stream:
        stream.write(edited)
    os.utime(origin / "model.safetensors", ns=(1, 1))
    second = fetch(model, models)
    assert second.sha256 != first.sha256
    assert (second.path / "model.safetensors").read_bytes() == edited
    with pytest.raises(VerificationError):
        fetch(spec(f"path:{origin}", sha256=first.sha256), models)


def test_large_files_are_linked_or_cloned_small_ones_copied(
    origin: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_reflink", lambda source, target: False)
    monkeypatch.setattr(placement, "LINK_FROM_BYTES", len(safetensors_bytes()))
    path = fetch(spec(f"path:{origin}"), models).path
    assert (path / "model.safetensors").samefile(origin / "model.safetensors")
    assert not (path / "config.json").samefile(origin / "config.json")
    assert (path / "config.json").stat().st_mtime_ns == (origin / "config.json").stat().st_mtime_ns


@pytest.mark.parametrize("damage", ["edit", "delete", "add", "truncate"])
def test_a_damaged_models_folder_is_made_anew(origin: Path, models: Path, damage: str) -> None:
    model = spec(f"path:{origin}")
    path = fetch(model, models).path
    target = path / "model.safetensors"
    if damage == "edit":
        target.write_bytes(safetensors_bytes(fill=9))
    elif damage == "delete":
        target.unlink()
    elif damage == "add":
        (path / "extra.json").write_text("{}")
    else:
        os.truncate(target, 10)
    assert contents(fetch(model, models).path) == model_files()


def test_verify_finds_an_edit_that_kept_size_and_time(origin: Path, models: Path) -> None:
    model = spec(f"path:{origin}")
    target = fetch(model, models).path / "model.safetensors"
    times = target.stat()
    target.write_bytes(safetensors_bytes(fill=9))
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    fetch(model, models)
    assert target.read_bytes() == safetensors_bytes(fill=9)
    fetch(model, models, verify=True)
    assert target.read_bytes() == safetensors_bytes()


def test_a_models_dir_copied_without_times_is_hashed_once_and_kept(origin: Path, models: Path) -> None:
    fetched = fetch(spec(f"path:{origin}"), models)
    inode = fetched.path.stat().st_ino
    os.utime(fetched.path / "config.json", ns=(5, 5))
    again = fetch(spec(f"path:{origin}"), models)
    assert again.path.stat().st_ino == inode
    assert again.files["config.json"].mtime_ns == 5


def test_a_folder_put_there_by_hand_needs_its_hash(origin: Path, models: Path) -> None:
    write_model(models / "tiny" / "llama@1")
    model = spec("s3://no-such-bucket/x")
    with pytest.raises(VerificationError, match=rf"not fetched by this program.*{manifest_sha256(origin)}"):
        fetch(model, models)
    pinned = dataclasses.replace(model, sha256=manifest_sha256(origin))
    assert contents(fetch(pinned, models, offline=True).path) == model_files()


def test_an_original_that_is_gone_is_missed_unless_pinned(origin: Path, models: Path) -> None:
    model = spec(f"path:{origin}")
    fetched = fetch(model, models)
    shutil.rmtree(origin)
    with pytest.raises(SourceError, match="there is no folder"):
        fetch(model, models)
    assert fetch(dataclasses.replace(model, sha256=fetched.sha256), models).path == fetched.path


def test_a_changed_source_replaces_the_folder(origin: Path, models: Path, tmp_path: Path) -> None:
    fetch(spec(f"path:{origin}"), models)
    other = write_model(tmp_path / "other", {"model.safetensors": safetensors_bytes(5)})
    assert set(fetch(spec(f"path:{other}"), models).files) == {"model.safetensors"}


def test_links_inside_are_followed_and_links_out_refused(origin: Path, models: Path, tmp_path: Path) -> None:
    (origin / "blob.json").write_text("{}")
    (origin / "special_tokens_map.json").symlink_to("blob.json")
    copied = fetch(spec(f"path:{origin}"), models).path / "special_tokens_map.json"
    assert not copied.is_symlink()
    (tmp_path / "secret.json").write_text("{}")
    (origin / "chat.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(VerificationError, match=r"chat\.json is a link out of"):
        fetch(spec(f"path:{origin}"), models)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("path:/no/such/folder", SourceError, "there is no folder /no/such/folder"),
        ("pth:/x", SpecError, "did you mean 'path'"),
        ("just-a-name", SpecError, "write embedded:NAME"),
        ("hf:only-a-name", SpecError, "write hf:org/name@revision"),
        ("s3:///x", SpecError, "s3://bucket/prefix"),
    ],
)
def test_a_wrong_source_is_one_line(models: Path, source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        fetch(spec(source), models)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("tiny.llama@1: ")


def test_a_name_cannot_leave_the_models_dir(origin: Path, models: Path) -> None:
    with pytest.raises(SpecError, match="is no folder name"):
        fetch(dataclasses.replace(spec(f"path:{origin}"), name="../../x"), models)


def test_default_models_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCORECARD_MODELS_DIR", str(tmp_path))
    assert default_models_dir() == tmp_path
    monkeypatch.delenv("SCORECARD_MODELS_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_models_dir() == tmp_path / ".scorecard-models"
