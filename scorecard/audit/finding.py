"""What the audit has to say, and how it names many layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Finding:
    """``error``: the artifact is not what it claims to be; ``warning``: worth a look."""

    level: Literal["error", "warning"]
    what: str


Findings = Iterator[Finding]


class Named(Protocol):
    @property
    def name(self) -> str: ...


def some(items: Sequence[Named] | Sequence[str]) -> str:
    """The first of several, and how many there are."""
    first = items[0]
    name = first if isinstance(first, str) else first.name
    return name if len(items) == 1 else f"{name} and {len(items) - 1} more"
