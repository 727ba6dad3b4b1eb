"""What of the host a Python interpreter needs to run, by path; nothing of the user's is among it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scorecard.box import SCRATCH
from scorecard.errors import SpecError

_SYSTEM = ("bin", "lib", "lib32", "lib64")
_BELOW_USR = ("bin", "lib", "lib32", "lib64", "libexec", "include", "share/zoneinfo")
_ETC = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/usr/share/ca-certificates")
_PASSED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_ASK = "import sys; print(sys.base_prefix)"


@dataclass(frozen=True)
class Places:
    """``readable``: paths that are the same inside and outside; ``links``: symbolic links to make."""

    readable: dict[str, str]
    links: dict[str, str]


def places(prefixes: tuple[Path, Path], *, network: bool = False) -> Places:
    """For an interpreter with these ``sys.prefix`` and ``sys.base_prefix``."""
    readable, links = {}, {}
    for path in (Path("/", name) for name in _SYSTEM):
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            readable[str(path)] = str(path)
    wanted = [Path("/usr", name) for name in _BELOW_USR]
    wanted += [Path(name) for name in (*_ETC, *(_NETWORK if network else ()))]
    wanted += [part for prefix in dict.fromkeys(prefixes) for part in _of_prefix(prefix)]
    readable |= {str(path): str(path) for path in wanted if path.exists()}
    return Places(readable, links)


def _of_prefix(prefix: Path) -> Iterator[Path]:
    if prefix == Path("/usr"):
        return
    if prefix == Path("/usr/local"):  # a Python of a container image: not what else lies there
        yield from (prefix / "bin", prefix / "lib")
    else:
        yield prefix


def prefixes(python: Path) -> tuple[Path, Path]:
    """``sys.prefix`` and ``sys.base_prefix`` of an interpreter, without starting what is installed in it.

    Raises SpecError where ``python`` is none.
    """
    folder, found = python.parent.parent, None
    with suppress(OSError):
        lines = (folder / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        found = next((line.partition("=")[2].strip() for line in lines if line.startswith("home")), None)
    base = Path(found, python.resolve().name) if found else python
    try:
        done = subprocess.run([str(base), "-I", "-S", "-c", _ASK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SpecError(f"--python {python}: does not run ({error}); name a Python interpreter") from None
    base_prefix = Path(done.stdout.strip())
    return (folder if found else base_prefix), base_prefix


def environment(python: Path, home: Path | None = None, threads: int | None = None) -> dict[str, str]:
    """All that the box has of an environment: nothing of the caller's but thread counts and the GPU.

    ``home`` is the folder to write in where there is no box, ``threads`` what holds unless the caller's
    OMP_NUM_THREADS says otherwise.
    """
    default = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    passed = default | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    fixed = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(home or SCRATCH),
        "TMPDIR": str(home or "/tmp"),
        "LANG": "C.UTF-8",
        "USER": "box",
        "LOGNAME": "box",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**passed, **fixed, **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")}
