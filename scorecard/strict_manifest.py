"""A manifest that a stranger wrote: every value has the type and range that scorecard.manifest says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scorecard.errors import ManifestError, SubmissionError
from scorecard.manifest import NAME, SCHEMA, FileEntry, Manifest
from scorecard.plain import plain
from scorecard.spec import EvalSpec, from_json
from scorecard.unpack import check_name

MOST_BYTES = 16 << 20
MOST_TASKS, MOST_SHOTS, MOST_LENGTH, LARGEST = 500, 64, 1 << 20, 1 << 53
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TASK = re.compile(r"\w[\w.+-]{0,99}")


def read_strictly(folder: Path) -> Manifest:
    """The manifest in ``folder``. Raises ManifestError, in one line, for all that it cannot be."""
    path = folder / NAME
    if not path.is_file():
        raise ManifestError(f"{NAME}: there is none; freeze with 'scorecard freeze'")
    if path.stat().st_size > MOST_BYTES:
        raise ManifestError(f"{NAME}: has more than {MOST_BYTES:,} bytes; freeze again")
    try:
        data = json.loads(path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise ManifestError(f"{NAME}: is nested too deeply; freeze again") from None
    except ValueError as error:
        raise ManifestError(f"{NAME}: is not JSON ({plain(error, 100)}); freeze again") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ManifestError(f"{NAME}: schema is not {SCHEMA}; freeze again with this version")
    _typed(Manifest, data, "")
    manifest = from_json(Manifest, data)
    for what in _faults(manifest):
        raise ManifestError(f"{NAME}: {what}; freeze again")
    return manifest


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _typed(hint: Any, value: Any, where: str) -> None:
    """Raises ManifestError where ``value``, plain JSON, is not of the type ``hint``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if origin in (typing.Union, types.UnionType):
        if value is not None or type(None) not in inner:
            _typed(next(kind for kind in inner if kind is not type(None)), value, where)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _typed_fields(hint, value, where)
    elif origin is tuple:
        for place, part in enumerate(_of(list, value, where)):
            _typed(inner[0], part, f"{where}[{place}]")
    elif origin is not None:
        for key, part in _of(dict, value, where).items():
            _typed(inner[1], part, f"{where}.{plain(key, 80)}")
    else:
        _of((int, float) if hint is float else hint, value, where)
        if isinstance(value, bool) is not (hint is bool) or _too_large(value):
            raise ManifestError(f"{NAME}: {where.strip('.')}: {plain(value, 80)} cannot be; freeze again")


def _typed_fields(kind: type[Any], value: Any, where: str) -> None:
    given, hints = _of(dict, value, where), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in given:
            _typed(hints[field.name], given[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ManifestError(f"{NAME}: {f'{where}.{field.name}'.strip('.')} is missing; freeze again")
    for name in given.keys() - hints.keys():
        raise ManifestError(f"{NAME}: {f'{where}.{plain(name, 80)}'.strip('.')} is unknown; freeze again")


def _of(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ManifestError(f"{NAME}: {where.strip('.')}: is no {wanted}; freeze again")
    return value


def _too_large(value: Any) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return not (abs(value) <= LARGEST) or not math.isfinite(value)
    return False


def _faults(manifest: Manifest) -> Iterator[str]:
    """What is of the right type and still cannot be."""
    for group in ("original", "artifact", "code"):
        yield from _file_faults(group, getattr(manifest, group))
    if not manifest.artifact:
        yield "artifact: names no file"
    for name in ("artifact_folder", "documents", "tasks_folder", "requirements"):
        value = getattr(manifest, name)
        if value is not None and not _plain_path(value):
            yield f"{name}: {plain(value, 80)} is no path in the folder"
    if manifest.claims.size_bytes < 0:
        yield f"claims.size_bytes: {manifest.claims.size_bytes} is below 0"
    yield from _task_faults(manifest)
    yield from _setting_faults(manifest.evaluation)


def _task_faults(manifest: Manifest) -> Iterator[str]:
    for names in (manifest.claims.tasks, manifest.evaluation.tasks):
        if not 1 <= len(names) <= MOST_TASKS:
            yield f"claims.tasks, evaluation.tasks: there must be 1 to {MOST_TASKS}"
        for name in names:
            if not _TASK.fullmatch(name):
                yield f"tasks: {plain(name, 80)} is no name of a task"


def _setting_faults(asked: EvalSpec) -> Iterator[str]:
    ranges = {"num_fewshot": MOST_SHOTS, "limit": LARGEST, "batch_size": 4096, "max_length": MOST_LENGTH}
    for name, most in ranges.items():
        value = getattr(asked, name)
        if value is not None and not (0 if name == "num_fewshot" else 1) <= value <= most:
            yield f"evaluation.{name}: {value} is out of range"
    if not 0 <= asked.seed < 1 << 32:
        yield f"evaluation.seed: {asked.seed} is out of range"


def _file_faults(group: str, entries: Mapping[str, FileEntry]) -> Iterator[str]:
    for name, entry in entries.items():
        if not _plain_path(name):
            yield f"{group}: {plain(name, 80)} is no path in the folder"
        if entry.size_bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            yield f"{group}.{plain(name, 80)}: is no size and sha256"


def _plain_path(name: str) -> bool:
    try:
        check_name(name)
    except SubmissionError:
        return False
    return True
