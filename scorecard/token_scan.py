"""Secrets and paths of one machine in text files, by file and line; a secret itself is never shown."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_TEXT_BYTES = 32 << 20
ENTROPY_BITS = 3.9  # per character; 24 random letters and digits have 4.3 ± 0.1
MIXED = 0.4  # of neighbours are of two kinds; 0.62 of random letters and digits, 0.3 in NamesLikeThis2
_KNOWN = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abpr]-[A-Za-z0-9-]{10,}",
    "a package index token": r"\b(pypi-AgE|npm_|dckr_pat_)[A-Za-z0-9_-]{20,}",
    "a web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_KINDS = (str.isupper, str.islower, str.isdigit)
_PATTERNS = {what: re.compile(pattern) for what, pattern in _KNOWN.items()}
_CANDIDATE = re.compile(r"[A-Za-z0-9+/_=-]{24,200}")
_PATH = re.compile(r"(?<![\w.])(/(home|Users|root|mnt|workspace)/[\w.-]+|[A-Za-z]:\\Users\\\w+)")


@dataclass(frozen=True)
class Found:
    """``what`` is in line ``line`` of ``file``."""

    file: str
    line: int
    what: str


def scan(path: Path, name: str, *, entropy: bool) -> Iterator[Found]:
    """All that a file should not hold; with ``entropy`` also what only looks random, and absolute paths."""
    text = _text(path)
    for number, line in enumerate(text.splitlines(), 1):
        known = next((what for what, pattern in _PATTERNS.items() if pattern.search(line)), None)
        if known:
            yield Found(name, number, known)
        elif entropy and any(looks_random(part) for part in _CANDIDATE.findall(line)):
            yield Found(name, number, "something that looks like a secret")
        elif entropy and _PATH.search(line):
            yield Found(name, number, "an absolute path of one machine")


def _text(path: Path) -> str:
    """The content of a text file, nothing of others."""
    if path.stat().st_size > MOST_TEXT_BYTES:
        return ""
    raw = path.read_bytes()
    try:
        return "" if b"\0" in raw else raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def looks_random(text: str) -> bool:
    """Capitals, small letters and digits, mixed as in a key; hashes in hex and names of classes are not."""
    kinds = [next((kind for kind in _KINDS if kind(letter)), None) for letter in text]
    changes = sum(one is not other for one, other in itertools.pairwise(kinds))
    mixed = set(_KINDS) <= set(kinds) and changes >= MIXED * (len(text) - 1)
    return mixed and _entropy_bits(text) >= ENTROPY_BITS


def _entropy_bits(text: str) -> float:
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
