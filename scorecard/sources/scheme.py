"""What every scheme is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scorecard.spec import ModelSpec


@dataclass(frozen=True)
class Request:
    """Fill ``files`` with the model's files. ``reference`` is the source without its scheme.

    ``downloads`` is for part files; both folders outlive an interrupted process.
    """

    model: ModelSpec
    reference: str
    files: Path
    downloads: Path
    offline: bool = False

    @property
    def where(self) -> str:
        return self.model.id


@dataclass(frozen=True)
class Brought:
    """Where the files came from: a local folder and the state of its files, a revision, a download's hash.

    ``hashed`` maps a file to the one it was placed from, where that is named by its sha256.
    """

    origin: Path | None = None
    origin_files: Mapping[str, str] | None = None
    revision: str | None = None
    download_sha256: str | None = None
    hashed: Mapping[str, Path] = field(default_factory=dict)
