"""Hashes that say whether a task is the same task, on any machine and from any folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def config_sha256(task: Task) -> str:
    """Hash of a task's configuration: prompts, metrics, filters, and the source of every function in it."""
    return _sha256(_canonical({"class": type(task), "config": dict(_fields(task.config))}))


def documents_sha256(*parts: Iterable[Any]) -> str:
    """Hash of documents in order: those that are scored, then those that few-shot examples come from."""
    digest = hashlib.sha256()
    for part in parts:
        for document in part:
            digest.update(json.dumps(document, sort_keys=True, default=_canonical).encode())
            digest.update(b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Set fields of a dataclass, without copying what is in them."""
    pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return [(name, content) for name, content in pairs if content is not None]


def _canonical(value: Any) -> Any:
    """Plain JSON that does not depend on where files lie or at which address an object is."""
    if isinstance(value, str):
        return _without_folder(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(dict(_fields(value)))
    if isinstance(value, Mapping):
        return {str(key): _canonical(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(content) for content in value]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, functools.partial):
        return {"function": _canonical(value.func), "with": _canonical([value.args, value.keywords])}
    return _source(value) if callable(value) else f"{type(value).__qualname__} {value}"


def _without_folder(text: str) -> str:
    """A path of this machine becomes its last part; the data behind it are hashed on their own."""
    looks_like_path = text.startswith("/") and 1 < len(text) < 4096 and "\n" not in text
    return Path(text).name if looks_like_path and Path(text).exists() else text


def _source(function: Any) -> dict[str, str]:
    """What a function does: its name and the Python files that it may call."""
    plain = inspect.unwrap(function)
    plain = plain if inspect.isroutine(plain) or inspect.isclass(plain) else type(plain)
    name: str = plain.__qualname__
    try:
        file = Path(inspect.getsourcefile(plain) or "")
    except TypeError:  # built in
        return {"name": name}
    return {"name": name, "files_sha256": _files_sha256(file)}


@functools.cache
def _files_sha256(file: Path) -> str:
    """Hash of a file; outside a package, of all Python files beside it, since they are what it imports."""
    alone = (file.parent / "__init__.py").exists() or "site-packages" in file.parts
    files = [file] if alone else sorted(file.parent.glob("*.py"))
    return _sha256({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()})
