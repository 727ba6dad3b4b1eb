"""scorecard.sources: full disks, crashes, kills and races of real processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from sources_servers import fetch_here, model_files, spec, write_model

from scorecard.errors import SourceError
from scorecard.sources import fetch, manifest_sha256, placement


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return write_model(tmp_path / "origin")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_disk_that_is_full_is_one_line_and_mends(
    origin: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:5])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(placement, "_reflink", lambda source, target: False)
        with pytest.raises(SourceError, match="No space left on device; free some space"):
            fetch(spec(f"path:{origin}"), models)
    assert not (models / "tiny").exists()
    assert contents(fetch(spec(f"path:{origin}"), models).path) == model_files()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    models = tmp_path / "disk"
    models.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(models)], check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        source = write_model(tmp_path / "large", model_files(3 * 2**20))
        with pytest.raises(SourceError, match="No space left on device"):
            fetch(spec(f"path:{source}"), models)
        assert not (models / "tiny").exists()
    finally:
        subprocess.run(["umount", str(models)], check=True)


def test_a_models_dir_that_is_a_file(origin: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="SCORECARD_MODELS_DIR"):
        fetch(spec(f"path:{origin}"), tmp_path / "file")


@pytest.mark.parametrize("moment", ["write_manifest", "rename"])
def test_a_crash_at_publication_leaves_all_or_nothing(
    origin: Path, models: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    fetch(spec(f"path:{origin}"), models)
    (origin / "config.json").write_text('{"new": 1}')
    with monkeypatch.context() as patch:
        if moment == "write_manifest":
            patch.setattr("scorecard.sources.folder.write_manifest", die)
        else:
            patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            fetch(spec(f"path:{origin}"), models)
    assert contents(fetch(spec(f"path:{origin}"), models).path)["config.json"] == b'{"new": 1}'


def test_four_processes_at_once_make_one_folder(origin: Path, models: Path) -> None:
    model = spec(f"path:{origin}")
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(fetch_here, [model] * 4, [models] * 4))
    assert len({r.sha256 for r in results}) == 1
    assert contents(results[0].path) == model_files()


def test_kill_in_the_middle_of_a_local_fetch(tmp_path: Path, models: Path) -> None:
    source = write_model(tmp_path / "large", model_files(60 * 2**20))  # copied: below the size for links
    model, context = spec(f"path:{source}"), multiprocessing.get_context("spawn")
    process = context.Process(target=fetch_here, args=(model, models))
    process.start()
    give_up = time.monotonic() + 30
    while not list(models.glob(".partial/tiny/*/files/*")) and time.monotonic() < give_up:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not (models / "tiny").exists()
    assert fetch(model, models).sha256 == manifest_sha256(source)
    assert not list((models / ".partial").rglob("*.safetensors"))
