"""What ``submit`` refuses to pack, and that equal folders give equal zips."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import stat
import string
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_frozen
from hypothesis import given
from hypothesis import strategies as st

from scorecard.__main__ import main
from scorecard.errors import ScorecardError
from scorecard.submission import REQUIRED, submit
from scorecard.token_scan import looks_random, scan
from scorecard.unpack import unpack

# Put together here, so that no scanner takes this file for one that leaks them.
TOKENS = {
    "a Hugging Face token": "hf" + "_" + "a" * 34,
    "an AWS key": "AK" + "IA" + "ABCDEFGHIJKLMNOP",
    "a GitHub token": "gh" + "p_" + "a" * 36,
    "an API key": "s" + "k-" + "a" * 30,
    "a Google key": "AI" + "za" + "a" * 35,
    "a GitLab token": "gl" + "pat-" + "a" * 20,
    "a Slack token": "xo" + "xb-" + "1" * 12,
    "a package index token": "py" + "pi-AgE" + "a" * 30,
    "a web token": "ey" + "J" + "a" * 20 + "." + "ey" + "J" + "a" * 20,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A frozen folder with claims that nobody measured."""
    return small_frozen.unmeasured(tmp_path / "user")


def again(folder: Path) -> None:
    """The manifest made to agree with the files that are there."""
    small_frozen.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))


def refused(folder: Path) -> str:
    target = folder.parent / "a.zip"
    with pytest.raises(ScorecardError) as error:
        submit(folder, target)
    left = sorted(path.name for path in folder.parent.iterdir() if "zip" in path.name)
    assert left == []
    assert str(error.value).isprintable()
    return str(error.value)


def test_what_is_packed_comes_out_again(frozen: Path, tmp_path: Path) -> None:
    made = submit(frozen, tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    names = unpack(tmp_path / "a.zip", tmp_path / "out")
    inside = sorted(f"user/{p.relative_to(frozen).as_posix()}" for p in frozen.rglob("*") if p.is_file())
    assert names == sorted(["user.py", *inside])
    assert made.files == len(inside)
    for name in inside:
        assert (tmp_path / "out" / name).read_bytes() == (frozen.parent / name).read_bytes()


# -- refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_file_that_is_missing(name: str, frozen: Path) -> None:
    (frozen / name).unlink()
    if name != "manifest.json":
        again(frozen)
    assert refused(frozen).startswith(f"{name}: ")


def test_one_of_two_project_files_will_do(frozen: Path, tmp_path: Path) -> None:
    (frozen / "pyproject.toml").rename(frozen / "setup.py")
    again(frozen)
    submit(frozen, tmp_path / "a.zip")
    (frozen / "setup.py").unlink()
    (tmp_path / "a.zip").unlink()
    again(frozen)
    assert refused(frozen) == "pyproject.toml or setup.py: is missing; freeze again"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_any_name(protocol: int, frozen: Path) -> None:
    (frozen / "output_model" / "model.safetensors").write_bytes(pickle.dumps(Evil(), protocol))
    again(frozen)
    assert refused(frozen) == (
        "output_model/model.safetensors: begins as a pickle does; use safetensors or JSON"
    )


def with_objects(path: Path) -> None:
    import numpy as np

    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)


def with_objects_zipped(path: Path) -> None:
    import numpy as np

    np.savez(path, a=np.array([Evil()], dtype=object))


def of_torch(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("name", "write", "line"),
    [
        ("weights.bin", of_torch, "was written by torch.save and holds a pickle"),
        ("weights.npy", with_objects, "is a numpy array of objects, which is a pickle"),
        ("weights.npz", with_objects_zipped, "is a zip with numpy objects in it (a.npy)"),
        ("weights.pt", lambda path: path.write_bytes(b"x"), "is named like a pickle ('.pt')"),
        ("weights.PKL", lambda path: path.write_bytes(b"x"), "is named like a pickle ('.PKL')"),
    ],
)
def test_what_holds_a_pickle(name: str, write: Callable[[Path], Any], line: str, frozen: Path) -> None:
    write(frozen / "output_model" / name)
    again(frozen)
    assert refused(frozen) == f"output_model/{name}: {line}; use safetensors or JSON"


def symbolic(folder: Path) -> None:
    (folder / "link.py").symlink_to("/etc/passwd")


def of_a_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def hard(folder: Path) -> None:
    (folder.parent / "elsewhere").write_text("x")
    (folder / "hard.py").hardlink_to(folder.parent / "elsewhere")


def sparse(folder: Path) -> None:
    with (folder / "output_model" / "sparse").open("wb") as file:
        file.truncate(1 << 20)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (symbolic, "link.py: is a symbolic link"),
        (of_a_folder, "more: is a symbolic link"),
        (hard, "hard.py: is a hard link"),
        (sparse, "output_model/sparse: is a sparse file"),
        (pipe, "pipe: is not a regular file"),
    ],
)
def test_only_plain_files_of_the_folder_are_packed(
    make: Callable[[Path], None], line: str, frozen: Path
) -> None:
    make(frozen)
    assert refused(frozen).startswith(line)


def test_a_manifest_that_leads_outside(frozen: Path) -> None:
    path = frozen / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["code"]["../secret"] = manifest["code"]["user.py"]
    path.write_text(json.dumps(manifest))
    assert refused(frozen) == "manifest.json: code: ../secret is no path in the folder; freeze again"
    manifest = json.loads(path.read_text()) | {"artifact_folder": "/etc"}
    path.write_text(json.dumps(manifest))
    assert refused(frozen).startswith("manifest.json: ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: (f / "user.py").write_text("pass\n"), "user.py: its size is not the manifest's"),
        (
            lambda f: (f / "output_model" / "weights.json").write_text('{"salt": "b"}'),
            "output_model/weights.json: its sha256 is not the manifest's",
        ),
        (lambda f: (f / "more.txt").write_text("x"), "more.txt: is not in the manifest"),
        (
            lambda f: (f / "output_model" / "weights.json").unlink(),
            "output_model/weights.json: is in the manifest and not in the folder",
        ),
    ],
)
def test_the_files_are_those_of_the_manifest(change: Callable[[Path], Any], line: str, frozen: Path) -> None:
    change(frozen)
    assert refused(frozen).startswith(line)


def test_a_name_that_not_every_system_can_store(frozen: Path) -> None:
    (frozen / "a:b.txt").write_text("x")
    again(frozen)
    assert refused(frozen).startswith("manifest.json: code: a:b.txt is no path in the folder")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("--index-url https://example.org", "requirements.txt:1: '--index-url https://example.org' is no"),
        ("torch>=2", "requirements.txt:1: 'torch>=2' is no name==version"),
        ("a @ https://example.org/a.whl", "requirements.txt:1: "),
        ("-e .", "requirements.txt:1: '-e .' is no"),
        ("# nothing", "requirements.txt: holds 0 pins"),
        ("a==1\na==2", "requirements.txt:2: a is pinned twice"),
        ("a==1 --hash=md5:0", "requirements.txt:1: 'a==1' is no name==version"),
    ],
)
def test_requirements_are_exact_pins(text: str, line: str, frozen: Path) -> None:
    (frozen / "requirements.txt").write_text(text)
    again(frozen)
    assert refused(frozen).startswith(line)


def test_pins_without_a_hash_are_taken(frozen: Path, tmp_path: Path) -> None:
    """torch: any build of its version will do."""
    (frozen / "requirements.txt").write_text(f"torch==2.13.0\na==1 \\\n    --hash={small_frozen.ZERO_HASH}\n")
    again(frozen)
    submit(frozen, tmp_path / "a.zip")


# -- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", TOKENS)
@pytest.mark.parametrize("place", ["user.py", "output_model/config.json"])
def test_a_known_token_is_found_and_not_shown(what: str, place: str, frozen: Path) -> None:
    path = frozen / place
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\nkey = {TOKENS[what]}\n")
    again(frozen)
    told, line = refused(frozen), len(path.read_text().splitlines())
    assert told == f"{place}:{line}: holds {what}; remove it, or write --allow {place}:{line} if it is none"
    assert TOKENS[what] not in told


def test_a_token_in_the_manifest_is_found(frozen: Path) -> None:
    manifest = json.loads((frozen / "manifest.json").read_text())
    manifest["model"]["source"] = f"https://example.org/?token={TOKENS['a Hugging Face token']}"
    (frozen / "manifest.json").write_text(json.dumps(manifest))
    assert refused(frozen).startswith("manifest.json:1: holds a Hugging Face token")


def test_what_looks_random_is_found_in_code_alone(frozen: Path, tmp_path: Path) -> None:
    secret = "Zk3v9QxT1LrB7nWc5YhD2mFs8PgJ4aUe6RtK0oXi"
    (frozen / "output_model" / "vocab.txt").write_text(secret)
    again(frozen)
    submit(frozen, tmp_path / "a.zip")
    (tmp_path / "a.zip").unlink()
    (frozen / "settings.py").write_text(f"\nPASSWORD = '{secret}'\n")
    again(frozen)
    told = refused(frozen)
    assert told.startswith("settings.py:2: holds something that looks like a secret")
    assert secret not in told
    submit(frozen, tmp_path / "a.zip", ["settings.py:2"])


@pytest.mark.parametrize("path", ["/home/me/models", "/Users/me/models", "/root/models", "C:\\Users\\me"])
def test_an_absolute_path_of_one_machine(path: str, frozen: Path) -> None:
    (frozen / "settings.py").write_text(f"FOLDER = r'{path}'\n")
    again(frozen)
    assert refused(frozen).startswith("settings.py:1: holds an absolute path of one machine")


@given(st.integers(24, 60), st.integers())
def test_random_keys_look_random(length: int, seed: int) -> None:
    letters, generator = string.ascii_letters + string.digits, random.Random(seed)
    keys = ["".join(generator.choices(letters, k=length)) for _ in range(40)]
    assert sum(map(looks_random, keys)) >= 30


@pytest.mark.parametrize(
    "text",
    [
        "d41d8cd98f00b204e9800998ecf8427e" * 2,  # a hash
        "model.layers.0.self_attn.q_proj.weight_scale",
        "LlamaForCausalLMWithPrefixTokens1234",
        "transformers_modules_configuration_llama_2",
        "Qwen2VLForConditionalGenerationWithVision",
    ],
)
def test_names_and_hashes_do_not(text: str) -> None:
    assert not looks_random(text)


def test_our_own_code_holds_nothing_that_looks_like_a_secret() -> None:
    """What is cut out of it is frozen and then submitted."""
    from scorecard.machine import ROOT

    paths: Iterator[Path] = (
        p for name in ("runners", "scorecard", "user") for p in (ROOT / name).rglob("*.py")
    )
    found = [f for p in paths for f in scan(p, p.relative_to(ROOT).as_posix(), entropy=True)]
    assert [f for f in found if f.file != "scorecard/token_scan.py"] == []


# -- reproducible ------------------------------------------------------------------------------------


def test_the_same_folder_gives_the_same_bytes(frozen: Path, tmp_path: Path) -> None:
    first = submit(frozen, tmp_path / "first.zip")
    copy = tmp_path / "copy"
    shutil.copytree(frozen, copy)
    for path in sorted(copy.rglob("*"), reverse=True):
        os.utime(path, (time.time() - 10**8, time.time() + 10**6))
        path.chmod(0o700 if path.is_dir() else 0o600)
    old = os.umask(0o077)
    try:
        second = submit(copy, tmp_path / "second.zip")
    finally:
        os.umask(old)
    assert first.sha256 == second.sha256
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as zipped:
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in zipped.infolist()}
        assert {info.date_time for info in zipped.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert zipped.namelist() == sorted(zipped.namelist())
    assert modes["user/build.sh"] == 0o755
    assert modes["user/user.py"] == 0o644


def test_what_a_run_leaves_is_not_packed(frozen: Path, tmp_path: Path) -> None:
    first = submit(frozen, tmp_path / "first.zip")
    left = ("__pycache__/user.cpython-311.pyc", ".cache/token", "build/lib/user.py", "a.egg-info/PKG")
    for name in (*left, "results/results.json", "results/documents.parquet"):
        (frozen / name).parent.mkdir(parents=True, exist_ok=True)
        (frozen / name).write_text("left")
    assert submit(frozen, tmp_path / "second.zip").sha256 == first.sha256


# -- the command -------------------------------------------------------------------------------------


def test_the_command(frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(tmp_path / "team-a.zip"), "--folder", str(frozen)]) == 0
    printed = capsys.readouterr().out
    assert "team-a.zip: 9 files, sha256 " in printed
    assert "model 13 bytes, code " in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a.tar"], "a.tar: is no name of a zip; write FILE.zip"),
        (["a.zip", "--folder", "nowhere"], "nowhere: there is no such folder; freeze a case first"),
        (["user/a.zip", "--folder", "user"], "user/a.zip: lies in the folder that is packed"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, frozen: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(frozen.parent)
    assert main(["submit", *arguments]) == 4
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert len(told.strip().splitlines()) == 1
