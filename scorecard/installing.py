"""Put the distributions of a lock into a fresh virtual environment: with uv where it works, else with pip.

uv links files from its cache, so that a second environment with the same torch takes neither time nor disk;
what pip copies is shared afterwards, by hard links to one copy of each large file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scorecard import locks
from scorecard.locks import Lock, base_python

SHARED_BYTES = 1 << 16  # files from this size on are worth a link: they are 95 % of an environment
Say = Callable[[str], None]


class InstallError(Exception):
    """An installer failed; the message is one line."""


@dataclass(frozen=True)
class Shared:
    """``own_bytes`` is the part of ``size_bytes`` that would be freed with the environment."""

    size_bytes: int
    own_bytes: int


def install(lock: Lock, folder: Path, say: Say, *, stranger: bool = False) -> str:
    """Make a virtual environment in ``folder`` that holds the lock; returns what did it, ``uv`` or ``pip``.

    The closure is locked, so dependencies are not looked at; only a distribution without hashes (torch) may
    bring the ones that its build wants (the CUDA libraries). Raises InstallError.

    For the lock of a stranger none of the distributions' code is run: nothing is built from source but what
    our own locks have with the same hashes, and the installer never starts the new Python, which would obey
    the ``.pth`` files in it.
    """
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if uv:
        try:
            _with_uv(uv, lock, folder, say, stranger)
        except InstallError as error:
            say(f"environment {lock.name}: uv failed ({error}), trying pip")
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return "uv"
    _with_pip(lock, folder, say, stranger)
    return "pip"


def _with_uv(uv: str, lock: Lock, folder: Path, say: Say, stranger: bool) -> None:
    env = uv_environment()
    say(f"environment {lock.name}: installing {len(lock.pins)} distributions with uv")
    run([uv, "venv", "--quiet", "--no-project", "--python", base_python(), str(folder)], env)
    pip = [uv, "pip", "install", "--quiet", "--python"]
    if stranger:
        _both_steps(lock, [*pip, base_python(), *_into(folder)], env, _only_wheels(lock))
    else:
        _both_steps(lock, [*pip, str(folder / "bin" / "python")], env)


def _with_pip(lock: Lock, folder: Path, say: Say, stranger: bool) -> None:
    say(f"environment {lock.name}: installing {len(lock.pins)} distributions with pip (a minute or two)")
    settings = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    if stranger:
        run([base_python(), "-m", "venv", "--without-pip", str(folder)], quiet())
        pip = [base_python(), "-m", "pip", "install", *_into(folder)]
        _both_steps(lock, [*pip, *settings], quiet(), _only_wheels(lock))
    else:
        run([base_python(), "-m", "venv", str(folder)], quiet())
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
        _both_steps(lock, [*pip, *settings], quiet())


def _into(folder: Path) -> list[str]:
    """Arguments for an installer that runs outside of the environment in ``folder``."""
    return ["--target", str(next(folder.glob("lib/python*/site-packages")))]


def _only_wheels(lock: Lock) -> tuple[list[str], list[str]]:
    """Arguments of both steps: none of a stranger's distributions may be built."""
    strange = [argument for name in locks.strange(lock) for argument in ("--only-binary", name)]
    return ["--only-binary", ":all:"], strange


def _both_steps(
    lock: Lock,
    install: Sequence[str],
    env: Mapping[str, str],
    more: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> None:
    with tempfile.TemporaryDirectory(prefix="scorecard-lock-") as scratch:
        hashed, plain, every = (Path(scratch, name) for name in ("hashed.txt", "plain.txt", "all.txt"))
        hashed.write_text(lock.hashed)
        plain.write_text(lock.plain)
        every.write_text("".join(f"{name}=={version}\n" for name, version in lock.pins.items()))
        if lock.plain:  # first: what is built from source may look at it
            run([*install, *more[0], "-r", str(plain), "-c", str(every)], env)
        if lock.hashed:
            run([*install, *more[1], "--no-deps", "--require-hashes", "-r", str(hashed)], env)


def run(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Raises InstallError with the last line that ``command`` printed if it fails."""
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(command, env=env, stdin=null, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise InstallError(f"{Path(command[0]).name}: {last_line(done.stderr or done.stdout)}")


def last_line(text: str) -> str:
    """The line of an installer's output that says most: the last error, else the last line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|ERROR|×|Caused by|\w*Error)\b", line)]
    return (errors or lines or ["it ended without a word"])[-1][:300]


def quiet() -> dict[str, str]:
    """The caller's environment without what would let its own packages in."""
    mine = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**mine, "PYTHONNOUSERSITE": "1"}


def uv_environment() -> dict[str, str]:
    """uv does not read pip's settings: hand it the places where pip looks for distributions."""
    names = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX"}
    places = {}
    for key, value in pip_settings():
        if key in names:  # uv takes links with commas, indexes with spaces
            places[names[key]] = ("," if key == "find-links" else " ").join(value.replace("\\n", " ").split())
    # As pip does: the best of all indexes, not the first that has the name; the certificates of the system.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1", **places}
    return {**settings, **quiet()}


def pip_settings() -> Iterator[tuple[str, str]]:
    """pip's own settings as ``pip config list`` shows them: (``find-links``, value), …"""
    command = [base_python(), "-m", "pip", "config", "list"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet()).stdout
    yield from re.findall(r"^\S+\.([a-z-]+)='(.*)'$", shown, re.MULTILINE)


def move(folder: Path, target: Path) -> None:
    """Write ``target`` wherever the scripts of an environment name the folder they were made in."""
    old, new = os.fsencode(folder), os.fsencode(target)
    for path in [*folder.glob("bin/*"), folder / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > SHARED_BYTES:
            continue
        content = path.read_bytes()
        if old in content:
            mode = path.stat().st_mode
            path.unlink()  # it may be a link to an installer's cache
            path.write_bytes(content.replace(old, new))
            path.chmod(mode)


def share(folder: Path, pool: Path) -> Shared:
    """Link every large file that no installer has linked to one copy in ``pool``, named by its sha256."""
    total = own = 0
    for path in _files(folder):
        status = path.stat()
        total += status.st_size
        if status.st_nlink > 1:
            continue
        if status.st_size < SHARED_BYTES or not _link(path, pool):
            own += status.st_size
    return Shared(total, own)


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(place, name)).is_file() and not path.is_symlink())


def _link(path: Path, pool: Path) -> bool:
    """Whether the pool had the file already; it has it afterwards."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    mode = "x" if os.access(path, os.X_OK) else "f"  # links share their mode
    copy = pool / sha256[:2] / f"{sha256}-{mode}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, copy)
    except FileExistsError:
        beside = path.with_name(f".{path.name}.link")
        os.link(copy, beside)
        beside.replace(path)
        return True
    except OSError:  # another file system, or one without links: the copy stays
        return False
    return False


def forget(pool: Path) -> None:
    """Remove from the pool what no environment uses any more."""
    for path in _files(pool) if pool.is_dir() else ():
        if path.stat().st_nlink == 1:
            path.unlink()
