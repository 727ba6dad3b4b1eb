"""One locked interpreter for each set of backends that can live together, built on first use.

    <environments folder>/<name>-<key>/            a virtual environment; environment.json is written last
    <environments folder>/partial/<name>-<key>.*   one that is being made; renamed when it is whole

The key is a hash of the lock and of this Python, so that a changed lock makes a new environment and an old
one stays for whoever still runs from it. All checkouts of a user share them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard import installing, locks
from scorecard.errors import RunnerUnavailable, ScorecardError
from scorecard.locks import Lock
from scorecard.store import now, write_atomic

ABOUT = "environment.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """An environment on disk. ``about``: installer, seconds to build, size_bytes, own_bytes (what no other
    environment and no cache shares), distributions, built_at."""

    name: str
    folder: Path
    about: dict[str, Any]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def root() -> Path:
    """Where environments are kept: ``$SCORECARD_ENVIRONMENTS_DIR``, else below the user's cache folder."""
    given = os.environ.get("SCORECARD_ENVIRONMENTS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).resolve() if given else Path(cache) / "scorecard" / "environments"


def find(name: str) -> Environment | None:
    """The environment of this checkout's lock called ``name``, ``None`` where it is not built."""
    return _open(name, root() / f"{name}-{locks.read(name).key}")


def _open(name: str, folder: Path) -> Environment | None:
    try:
        about = json.loads((folder / ABOUT).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    found = Environment(name, folder, about)
    return found if os.access(found.python, os.X_OK) else None  # the Python it was made from may be gone


def ensure(name: str, *, offline: bool = False, say: Say | None = None) -> Environment:
    """The environment called ``name``, built if it is not there.

    Raises RunnerUnavailable, with the command that mends it, when it cannot be.
    """
    found = find(name)
    if found:
        return found
    mend = f"run 'python3 local.py scorecard env build {name}'"
    if offline:
        raise RunnerUnavailable(
            f"needs the environment '{name}', which is not built and --offline is set; {mend}"
        )
    try:
        return build(name, say=say)
    except installing.InstallError as error:
        raise RunnerUnavailable(
            f"needs the environment '{name}', which cannot be built: {error}; {mend}"
        ) from None


def build(name: str, *, anew: bool = False, say: Say | None = None) -> Environment:
    """Build the environment called ``name`` unless it is there, or also then if ``anew``.

    Of several builders one works and the others wait for it. Raises InstallError with the last line of the
    installer that failed; what it has already downloaded stays in the installer's own cache.
    """
    return from_lock(locks.read(name), anew=anew, say=say)


def from_lock(
    lock: Lock, *, anew: bool = False, stranger: bool = False, say: Say | None = None
) -> Environment:
    """``build`` for any lock; of a ``stranger`` as scorecard.installing says."""
    name, target = lock.name, root() / f"{lock.name}-{lock.key}"
    with _one_builder(target.name):
        found = None if anew else _open(name, target)
        if found:
            return found
        _clear(target.name)
        partial = root() / "partial" / f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            about = _make(lock, partial, target, say or (lambda line: None), stranger)
            if target.exists():
                _remove_folder(target)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Environment(name, target, about)


@contextmanager
def _one_builder(name: str) -> Iterator[None]:
    from filelock import FileLock

    for folder in ("locks", "partial"):
        (root() / folder).mkdir(parents=True, exist_ok=True)
    with FileLock(root() / "locks" / f"{name}.lock", poll_interval=0.2):
        yield


def _clear(name: str) -> None:
    """What killed builders left; under the lock nobody else is building this one."""
    for leftover in (root() / "partial").glob(f"{name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make(lock: Lock, partial: Path, target: Path, say: Say, stranger: bool) -> dict[str, Any]:
    begin = time.monotonic()
    installer = installing.install(lock, partial, say, stranger=stranger)
    wrong = faults(lock, partial)
    if wrong:
        raise installing.InstallError(f"the installer left {wrong[0]}")
    installing.move(partial, target)
    shared = installing.share(partial, root() / "files")
    about = {
        "name": lock.name,
        "lock_sha256": lock.sha256,
        "installer": installer,
        "distributions": len(lock.pins),
        "seconds": time.monotonic() - begin,
        "size_bytes": shared.size_bytes,
        "own_bytes": shared.own_bytes,
        "built_at": now(),
    }
    write_atomic(partial / ABOUT, about)
    return about


def faults(lock: Lock, folder: Path) -> list[str]:
    """Where the distributions in an environment are not those of its lock, a line each."""
    import importlib.metadata

    places = [str(path) for path in sorted(folder.glob("lib*/python*/site-packages"))]
    found = {
        locks.normalised(d.metadata["Name"]): d.version.partition("+")[0]
        for d in importlib.metadata.distributions(path=places)
    }
    return [
        f"{name} {found.get(name, 'missing')}, not {version}"
        for name, version in sorted(lock.pins.items())
        if found.get(name) != version
    ]


def check(name: str) -> list[str]:
    """What is wrong with a built environment, a line each: its pins, and whether its Python starts."""
    environment = find(name)
    if environment is None:
        return [f"not built; run 'python3 local.py scorecard env build {name}'"]
    command = [str(environment.python), "-c", "import torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=installing.quiet())
    started = [] if done.returncode == 0 else [f"its Python fails: {installing.last_line(done.stderr)}"]
    return [*faults(locks.read(name), environment.folder), *started]


def remove(name: str) -> list[Path]:
    """Remove every environment called ``name``, also those of older locks; says which folders are gone."""
    gone = []
    for folder in sorted(root().glob(f"{name}-*")):
        with _one_builder(folder.name):
            _remove_folder(folder)
            gone.append(folder)
    installing.forget(root() / "files")
    return gone


def _remove_folder(folder: Path) -> None:
    """Out of the way first, so that nobody finds half of it."""
    aside = root() / "partial" / f"{folder.name}.removed-{secrets.token_hex(4)}"
    try:
        folder.rename(aside)
    except OSError as error:
        raise ScorecardError(f"{folder}: {error.strerror}; remove it by hand") from None
    shutil.rmtree(aside, ignore_errors=True)


def line(name: str) -> str | None:
    """A built environment in one line: its size and the time it took; ``None`` where it is not built."""
    found = find(name)
    if found is None:
        return None
    about = found.about
    return (
        f"{name}: {about['distributions']} distributions, {about['size_bytes'] / 2**30:.2f} GiB of which "
        f"{about['own_bytes'] / 2**30:.2f} GiB not shared, built with {about['installer']} "
        f"in {about['seconds']:.0f} s"
    )


def versions(name: str, wanted: list[str]) -> dict[str, str]:
    """Versions of distributions in an environment, from its lock alone; a missing one is left out."""
    pins = locks.read(name).pins
    return {n: pins[locks.normalised(n)] for n in sorted(set(wanted)) if locks.normalised(n) in pins}
