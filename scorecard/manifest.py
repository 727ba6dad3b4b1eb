"""``manifest.json`` of a frozen folder: what is claimed, from what it was made, and how to make it again.

A frozen folder is self-contained; this file is the only thing that ties it to the case that it came from.
docs/freezing.md describes every key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard.errors import ManifestError
from scorecard.spec import EvalSpec, from_json

NAME = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class TaskClaim:
    """One task's result: ``metric`` as lm-eval names it, over ``n`` documents; ``documents_sha256`` is of
    the task's documents and ``config_sha256`` that of its settings, ``None`` where they were not recorded."""

    metric: str
    value: float | None
    stderr: float | None
    n: int
    version: str | None = None
    accuracy: bool = True
    chance: float | None = None
    num_fewshot: int | None = None
    documents_sha256: str | None = None
    config_sha256: str | None = None


@dataclass(frozen=True)
class Claims:
    """What ``verify`` checks. Accuracies are shares, sizes bytes, ``score`` is mean accuracy per GiB of the
    model's files with its 95 % interval."""

    size_bytes: int
    mean_accuracy: float | None
    mean_accuracy_stderr: float | None
    score: float | None
    score_low: float | None
    score_high: float | None
    tasks: Mapping[str, TaskClaim] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything that a frozen folder says of itself.

    ``original`` are the files of the model that was compressed, ``artifact`` those of the compressed model,
    below ``artifact_folder``; ``code`` all other files of the folder but this one. ``documents`` is a file of
    the folder with per-document results (documents.parquet), ``None`` where there are none. ``requirements``
    is a file of the folder with pins and hashes. ``packages`` are the versions that made the artifact.
    ``sums`` are ``code_bytes``, ``model_bytes`` and ``total_bytes`` for readers; the files themselves count.
    """

    case: str
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    evaluation: EvalSpec
    claims: Claims
    lm_eval: str
    original: Mapping[str, FileEntry] = field(default_factory=dict)
    artifact: Mapping[str, FileEntry] = field(default_factory=dict)
    code: Mapping[str, FileEntry] = field(default_factory=dict)
    artifact_folder: str = "output_model"
    documents: str | None = None
    tasks_folder: str | None = None
    requirements: str = "requirements.txt"
    calibration: Mapping[str, Any] | None = None
    calibration_sha256: str | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, int] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def code_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.code.values())

    @property
    def model_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.artifact.values())


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``. Raises ManifestError where there is none or it is not one."""
    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is none; run 'scorecard freeze CASE' first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: is not JSON ({error}); freeze again") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ManifestError(f"{path}: schema is not {SCHEMA}; freeze again with this version")
    try:
        return from_json(Manifest, data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ManifestError(f"{path}: {error}; freeze again") from None
