"""Locked environments: what a lock is, and that one is built once, whole or not at all.

The distributions are small wheels written here, installed by the real uv and the real pip.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from runners import base
from scorecard import env_command, environments, installing, locks
from scorecard.__main__ import main
from scorecard.errors import RunnerUnavailable, SpecError

installs = pytest.mark.backend  # makes an environment in earnest
ROOT = Path(__file__).resolve().parents[1]
LARGE = b"weights " * (installing.SHARED_BYTES // 8)


def write_wheel(folder: Path, name: str, version: str, more: Mapping[str, str] | None = None) -> str:
    """A wheel with one module, one large file and ``more``; returns its sha256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{name}_large.bin", LARGE)
        for path_inside, text in (more or {}).items():
            wheel.writestr(path_inside, text)
        info = f"{name}-{version}.dist-info/"
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two locks, ``small`` (a hashed and a plain line) and ``other``, and only the wheels written here."""
    wheels, folder = tmp_path / "wheels", tmp_path / "environments"
    wheels.mkdir()
    folder.mkdir()
    sha256 = write_wheel(wheels, "alpha", "1.0")
    write_wheel(wheels, "beta", "2.0")
    (folder / "small.txt").write_text(f"# a comment\nalpha==1.0 \\\n    --hash=sha256:{sha256}\nbeta==2.0\n")
    (folder / "other.txt").write_text("beta==2.0\n")
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "SCORECARD_ENVIRONMENTS_DIR": str(tmp_path / "built"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(locks, "FOLDER", folder)
    locks.read.cache_clear()
    yield tmp_path
    locks.read.cache_clear()


def version(environment: environments.Environment, module: str) -> str:
    code = f"import {module}; print({module}.VERSION)"
    done = subprocess.run(
        [environment.python, "-c", code], capture_output=True, text=True, check=True, env=installing.quiet()
    )
    return done.stdout.strip()


def without_uv(monkeypatch):
    monkeypatch.setattr(installing.shutil, "which", lambda *arguments, **named: None)


@installs
@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_an_environment_holds_its_lock(place, monkeypatch, installer):
    if installer == "pip":
        without_uv(monkeypatch)
    assert environments.find("small") is None
    made = environments.ensure("small")
    assert made.about["installer"] == installer
    assert (version(made, "alpha"), version(made, "beta")) == ("1.0", "2.0")
    assert environments.faults(locks.read("small"), made.folder) == []
    assert environments.find("small") == made
    assert not list((environments.root() / "partial").iterdir())
    scripts = [p for p in (made.folder / "bin").iterdir() if p.is_file() and not p.is_symlink()]
    assert all(b"/partial/" not in p.read_bytes() for p in [*scripts, made.folder / "pyvenv.cfg"])


@installs
@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_nothing_of_a_stranger_s_lock_runs(place, monkeypatch, installer):
    """A ``.pth`` file is obeyed by each start of the Python that it is installed into."""
    if installer == "pip":
        without_uv(monkeypatch)
    canary = place / "canary"
    obeyed = {"beta.pth": f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n"}
    write_wheel(place / "wheels", "beta", "2.0", obeyed)
    made = environments.from_lock(locks.read("small"), stranger=True)
    assert made.about["installer"] == installer
    assert not canary.exists()
    assert (version(made, "alpha"), version(made, "beta")) == ("1.0", "2.0")
    assert canary.exists()


@installs
@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_stranger_s_source_is_not_built(place, monkeypatch, installer):
    if installer == "pip":
        without_uv(monkeypatch)
    canary, path = place / "canary", place / "wheels" / "gamma-1.0.tar.gz"
    setup = f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n".encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("setup.py", setup), ("PKG-INFO", b"Name: gamma\nVersion: 1.0\n")):
            entry = tarfile.TarInfo(f"gamma-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    lock = locks.parse("stranger", f"gamma==1.0 --hash=sha256:{sha256}\n", "requirements.txt")
    with pytest.raises(installing.InstallError):
        environments.from_lock(lock, stranger=True)
    assert not canary.exists()


def test_what_our_own_locks_have_is_not_strange(place):
    text = (place / "environments" / "small.txt").read_text()
    own = locks.parse("own", text, "requirements.txt")
    assert locks.strange(own) == []
    known = own.hashed.split()[1]
    other = locks.parse("other", f"alpha==1.0 {known} --hash=sha256:{'0' * 64}\n", "requirements.txt")
    newer = locks.parse("newer", f"alpha==1.1 {known}\n", "requirements.txt")
    assert locks.strange(other) == locks.strange(newer) == ["alpha"]


@installs
def test_a_second_environment_shares_its_large_files(place, monkeypatch):
    without_uv(monkeypatch)
    environments.ensure("small")
    other = environments.ensure("other")
    large = next(other.folder.rglob("beta_large.bin"))
    assert large.read_bytes() == LARGE
    assert large.stat().st_nlink == 4  # here, twice in the other one (alpha's is the same), and in the pool
    assert other.about["size_bytes"] - other.about["own_bytes"] >= len(LARGE)
    assert environments.remove("small")
    assert environments.remove("other")
    assert not [p for p in (environments.root() / "files").rglob("*") if p.is_file()]


@installs
def test_a_wrong_hash_is_refused_by_both_installers(place):
    (place / "environments" / "small.txt").write_text(f"alpha==1.0 --hash=sha256:{'0' * 64}\n")
    locks.read.cache_clear()
    with pytest.raises(RunnerUnavailable, match=r"'small', which cannot be built: .*; run 'python3 local.py"):
        environments.ensure("small")
    assert not list((environments.root() / "partial").iterdir())
    assert environments.find("small") is None


def test_offline_builds_nothing(place):
    with pytest.raises(RunnerUnavailable, match=r"not built and --offline is set; run .* env build small'"):
        environments.ensure("small", offline=True)


@installs
def test_another_lock_is_another_environment(place):
    first = environments.ensure("other")
    write_wheel(place / "wheels", "beta", "3.0")
    (place / "environments" / "other.txt").write_text("beta==3.0\n")
    locks.read.cache_clear()
    assert environments.find("other") is None
    assert version(environments.ensure("other"), "beta") == "3.0"
    assert version(first, "beta") == "2.0"


@installs
def test_of_several_builders_one_works(place):
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=environments.ensure, args=("small",)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    built = environments.find("small")
    assert built is not None
    assert len(list(environments.root().glob("small-*"))) == 1
    assert environments.ensure("small").about == built.about


@installs
def test_a_killed_builder_leaves_nothing_that_counts(place):
    def stall():
        environments.installing.install = lambda lock, folder, *_, **__: (folder.mkdir(), time.sleep(60))
        environments.build("small")

    builder = multiprocessing.get_context("fork").Process(target=stall)
    builder.start()
    partial = environments.root() / "partial"
    deadline = time.monotonic() + 20
    while not (partial.is_dir() and list(partial.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(20)
    assert len(list(partial.iterdir())) == 1
    assert environments.find("small") is None
    assert version(environments.ensure("small"), "alpha") == "1.0"
    assert not list(partial.iterdir())


@installs
def test_what_was_changed_by_hand_is_found(place):
    made = environments.ensure("small")
    info = next(made.folder.rglob("alpha-1.0.dist-info"))
    info.rename(info.with_name("alpha-9.dist-info"))
    metadata = info.with_name("alpha-9.dist-info") / "METADATA"
    text = metadata.read_text()
    metadata.unlink()
    metadata.write_text(text.replace("1.0", "9"))
    assert environments.faults(locks.read("small"), made.folder) == ["alpha 9, not 1.0"]


@installs
def test_an_environment_whose_python_is_gone_is_built_again(place):
    made = environments.ensure("small")
    made.python.unlink()
    assert environments.find("small") is None
    assert version(environments.ensure("small"), "alpha") == "1.0"


def test_a_lock_is_read_as_installers_read_it(place):
    lock = locks.read("small")
    assert lock.pins == {"alpha": "1.0", "beta": "2.0"}
    assert "alpha" in lock.hashed
    assert "beta" not in lock.hashed
    assert lock.plain == "beta==2.0"
    assert not lock.has_lm_eval


@pytest.mark.parametrize("line", ["alpha", "alpha>=1", "-r other.txt", "alpha @ file:///x"])
def test_only_exact_pins_are_a_lock(place, line):
    (place / "environments" / "small.txt").write_text(line + "\n")
    locks.read.cache_clear()
    with pytest.raises(SpecError, match="is no exact pin; write name==version"):
        locks.read("small")


def test_an_unknown_environment_names_the_nearest(place, capsys):
    with pytest.raises(SpecError, match="did you mean 'small'"):
        locks.read("smal")
    assert main(["env", "build", "smal"]) == 4
    assert "did you mean 'small'" in capsys.readouterr().err


@installs
def test_by_hand(place, capsys):
    assert main(["env", "list"]) == 0
    assert "not built (2 distributions)" in capsys.readouterr().out
    assert main(["env", "build", "small"]) == 0
    assert "2 distributions" in capsys.readouterr().out
    assert main(["env", "remove", "small"]) == 0
    assert main(["env", "check", "small"]) == 1
    assert "not built; run" in capsys.readouterr().out
    assert main(["env", "remove"]) == 4


def test_a_local_version_and_the_hashes_of_torch_are_dropped():
    resolved = (
        "torch==2.13.0+cpu \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "torchao==0.18.0 \\\n    --hash=sha256:cc\nother==1.0+cu130 \\\n    --hash=sha256:dd\n"
    )
    assert env_command.any_build(resolved) == (
        "torch==2.13.0\ntorchao==0.18.0 \\\n    --hash=sha256:cc\nother==1.0\n"
    )


@pytest.mark.parametrize("name", base.names())
def test_every_runner_finds_what_it_needs_in_its_environment(name):
    runner = base.get(name)
    if runner.environment == base.CORE:
        return
    lock = locks.read(runner.environment)
    for requirement in runner.requires:
        package, _, wanted = requirement.partition("==")
        assert lock.pins[locks.normalised(package)] == wanted
    assert lock.pins["torch"]


def test_the_locks_are_of_the_versions_that_the_scorecard_evaluates_with():
    own = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and line[0].isalnum()
    )
    for name in locks.names():
        pins = locks.read(name).pins
        for package in ("torch", "lm-eval"):
            assert pins.get(package, own[package]) == own[package], name


@installs
def test_the_worker_of_an_environment_sees_no_other_packages(place, monkeypatch):
    from scorecard.executor import worker_environment

    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    made = environments.ensure("small")
    environment = worker_environment(1, str(made.python))
    assert environment["PYTHONPATH"] == str(ROOT)
    code = "import json, sys; print(json.dumps(sys.path))"
    done = subprocess.run(
        [made.python, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    foreign = [p for p in json.loads(done.stdout) if "site-packages" in p and str(made.folder) not in p]
    assert foreign == []
    assert worker_environment(1, sys.executable)["PYTHONPATH"].endswith("/somewhere")
