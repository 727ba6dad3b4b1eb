"""The requirements of a submission: exact pins, with hashes or without, and nothing else that an installer
would obey."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from scorecard.errors import SubmissionError
from scorecard.locks import Lock, normalised
from scorecard.plain import plain

MOST_BYTES, MOST_PINS, _LONGEST = 4 << 20, 1000, 20_000
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"[0-9][A-Za-z0-9.!_]*"
_MARKER = r"(?:\s*;[\w\s.'\"<>=!()-]*)?"
_HASH = r"--hash=sha256:[0-9a-f]{64}"
_LINE = re.compile(rf"({_NAME})==({_VERSION})({_MARKER})((?:\s+{_HASH})*)")


def read_requirements(path: Path) -> Lock:
    """A lock of the pins; those without a hash (any build of torch will do) are its ``plain`` ones.

    Raises SubmissionError naming the first line that is not ``name==version`` with or without
    ``--hash=sha256:…``: options, URLs, paths and unpinned names would let it install anything.
    """
    where = path.name
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise SubmissionError(f"{where}: is missing or too long; freeze again")
    try:
        text = path.read_bytes().decode("ascii")
    except UnicodeDecodeError:
        raise SubmissionError(f"{where}: is not ASCII; freeze again") from None
    pins: dict[str, str] = {}
    hashed: list[str] = []
    bare: list[str] = []
    for number, entry in _entries(text):
        found = _LINE.fullmatch(" ".join(entry.split())) if len(entry) <= _LONGEST else None
        if not found:
            shown = plain(entry.split(" --hash", maxsplit=1)[0], 80)
            raise SubmissionError(f"{where}:{number}: '{shown}' is no name==version; pin it")
        if pins.setdefault(normalised(found[1]), found[2]) != found[2]:
            raise SubmissionError(f"{where}:{number}: {plain(found[1])} is pinned twice; pin it once")
        pin = f"{found[1]}=={found[2]}{found[3]}"
        if found[4]:
            hashed.append(f"{pin} {' '.join(found[4].split())}")
        else:
            bare.append(pin)
    if not 1 <= len(pins) <= MOST_PINS:
        raise SubmissionError(f"{where}: holds {len(pins)} pins, not 1 to {MOST_PINS}; freeze again")
    text = "\n".join([*hashed, *bare])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Lock("submission", pins, "\n".join(hashed), "\n".join(bare), sha256)


def _entries(text: str) -> list[tuple[int, str]]:
    """Requirements with the number of their first line; continued lines joined, comments gone."""
    entries: list[tuple[int, str]] = []
    goes_on = False
    for number, line in enumerate(text.splitlines(), 1):
        part = line.strip()
        if not goes_on and (not part or part.startswith("#")):
            continue
        body = re.sub(r"\s+#.*$", "", part).removesuffix("\\").strip()
        if goes_on:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {body}")
        else:
            entries.append((number, body))
        goes_on = part.endswith("\\")
    return entries
