"""A folder takes another one's place whole or not at all, and only where nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runners import custom
from scorecard import placing
from scorecard.errors import ManifestError
from scorecard.machine import ROOT
from scorecard.store import sha256_file


def frozen(folder: Path) -> Path:
    """A folder with a manifest of its two files."""
    (folder / "compression").mkdir(parents=True)
    files = {"build.sh": "true\n", "compression/compress.py": "pass\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    code = {n: {"sha256": sha256_file(folder / n), "size_bytes": 5} for n in files}
    claims = {"size_bytes": 1, "mean_accuracy": 1, "mean_accuracy_stderr": 0}
    claims |= {"score": 1, "score_low": 1, "score_high": 1}
    manifest = {"schema": 1, "case": "c", "model": {}, "config": {}, "evaluation": {"tasks": ["t"]}}
    manifest |= {"claims": claims, "lm_eval": "0", "code": code}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def check(folder: Path, force: bool = False) -> None:
    own = list(custom.code(folder)) if folder.is_dir() else []
    placing.check_replaceable(folder, [p for p in own if p.name != "manifest.json"], force=force)


def test_nothing_an_empty_folder_and_a_frozen_one_may_be_replaced(tmp_path: Path) -> None:
    check(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty")
    made = frozen(tmp_path / "made")
    (made / "output_model").mkdir()
    (made / "output_model" / "model.safetensors").write_text("of a run")
    check(made)


def change(folder: Path) -> None:
    (folder / "build.sh").write_text("mine\n")


def add(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine\n")


def take_away(folder: Path) -> None:
    (folder / "build.sh").unlink()


@pytest.mark.parametrize("how", [change, add, take_away])
def test_a_changed_frozen_folder_stays(tmp_path: Path, how: object) -> None:
    made = frozen(tmp_path / "made")
    how(made)  # type: ignore[operator]
    with pytest.raises(ManifestError, match=r"(build\.sh|notes\.txt) was changed since it was frozen; move"):
        check(made)
    check(made, force=True)


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_a_folder_of_one_s_own_stays_unless_git_has_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "build.sh").write_text("mine\n")
    with pytest.raises(ManifestError, match="not one that was frozen, and git does not have all of it"):
        check(own)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "mine")
    check(own)
    (own / "more.txt").write_text("not in git\n")
    with pytest.raises(ManifestError, match="git does not have all of it"):
        check(own)


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError), placing.beside(folder) as made:
        (made / "a folder that is not there" / "new").write_text("new")
    assert [p.name for p in tmp_path.rglob("*")] == ["user", "old"]


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_folder_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(placing, "_exchange", lambda first, second: False)
    folder = tmp_path / "user"
    for text in ("first", "second"):
        with placing.beside(folder) as made:
            (made / text).write_text(text)
        assert [p.name for p in tmp_path.rglob("*")] == ["user", text]


KILLED = """
import sys, time
from pathlib import Path
from scorecard import placing
with placing.beside(Path(sys.argv[1])) as made:
    for number in range(200):
        (made / f"{number}").write_text("x" * 1000)
    print("filled", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_killed_process_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "old").write_text("old")
    command = [sys.executable, "-c", KILLED, str(folder), "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "filled\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name for p in folder.iterdir()] == ["old"]
    with placing.beside(folder) as made:
        (made / "new").write_text("new")
    assert [p.name for p in tmp_path.rglob("*")] == ["user", "new"]  # what the killed one left is gone


@pytest.mark.slow
def test_killed_at_any_time_the_folder_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "old").write_text("old")
    for tenth in range(20):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), "0"], cwd=ROOT)
        time.sleep(0.2 + 0.02 * tenth)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        names = {p.name for p in folder.iterdir()}
        assert names in ({"old"}, {str(n) for n in range(200)})
