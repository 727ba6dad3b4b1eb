"""The lock files of ``environments/``: exact pins, the hashes that the index gives, and the key they make.

A lock is a requirements file, one ``name==version`` a line with its ``--hash`` lines after it. Local versions
(``+cpu``) are not part of a pin: any build of that version will do, so those distributions have no hashes.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import sys
import sysconfig
from collections import defaultdict
from dataclasses import dataclass

from scorecard.errors import SpecError, nearest
from scorecard.machine import ROOT

FOLDER = ROOT / "environments"
_HASH = re.compile(r"--hash=(\S+)")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\+]+)(\s*;[^\\]*)?")


@dataclass(frozen=True)
class Lock:
    """``hashed`` and ``plain`` are the text of the requirements with and without hashes."""

    name: str
    pins: dict[str, str]
    hashed: str
    plain: str
    sha256: str

    @property
    def key(self) -> str:
        """What an environment made from this lock depends on: the pins, and the Python that runs it."""
        parts = [self.sha256, platform.python_version(), sysconfig.get_platform(), base_python()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def has_lm_eval(self) -> bool:
        """Whether the evaluation can run inside this environment; else its model is served over a pipe."""
        return "lm-eval" in self.pins


def base_python() -> str:
    """The interpreter that environments are made from: the one outside of any virtual environment."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def normalised(name: str) -> str:
    """A distribution's name as the packaging specifications compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names() -> list[str]:
    """The environments that this checkout has locks of."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


@functools.cache
def read(name: str) -> Lock:
    """The lock called ``name``. Raises SpecError for an unknown one, or a line that is no exact pin."""
    path = FOLDER / f"{name}.txt"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        raise SpecError(f"environment '{name}' has no lock in environments/; {nearest(name, names())}")
    return parse(name, path.read_text(encoding="utf-8"), f"environments/{path.name}")


def parse(name: str, text: str, where: str) -> Lock:
    """The lock that ``text`` is. Raises SpecError at ``where`` for a line that is no exact pin."""
    pins: dict[str, str] = {}
    hashed: list[str] = []
    plain: list[str] = []
    for entry in _entries(text):
        found = _PIN.match(entry)
        if not found:
            raise SpecError(f"{where}: '{entry.split()[0]}' is no exact pin; write name==version")
        pins[normalised(found[1])] = found[2]
        (hashed if "--hash=" in entry else plain).append(entry)
    sha256 = hashlib.sha256("\n".join(_entries(text)).encode()).hexdigest()
    return Lock(name, pins, "\n".join(hashed), "\n".join(plain), sha256)


def strange(lock: Lock) -> list[str]:
    """The distributions of ``lock`` that the locks here do not have with the same version and hashes."""
    ours = _hashes("\n".join(read(name).hashed for name in names()))
    return [name for (name, version), own in _hashes(lock.hashed).items() if not own <= ours[name, version]]


def _hashes(hashed: str) -> defaultdict[tuple[str, str], set[str]]:
    """Hashes by name and version."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for line in hashed.splitlines():
        match = _PIN.match(line)
        if match:
            found[normalised(match[1]), match[2]] |= set(_HASH.findall(line))
    return found


def _entries(text: str) -> list[str]:
    """Requirements, each with its hashes on one line; without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return ["".join(part).strip() for part in _joined(lines)]


def _joined(lines: list[str]) -> list[list[str]]:
    entries: list[list[str]] = []
    goes_on = False
    for line in lines:
        part = line.strip().removesuffix("\\").strip() + " "
        if goes_on:
            entries[-1].append(part)
        else:
            entries.append([part])
        goes_on = line.rstrip().endswith("\\")
    return entries
