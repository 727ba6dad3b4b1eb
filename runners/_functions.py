"""Functions of the user's own, named ``file.py:function`` in models.yaml."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scorecard.errors import SpecError, nearest


def function_file(reference: str) -> Path | None:
    """The file of ``file.py:function``, ``None`` for a text that names no function. Raises SpecError."""
    found = re.fullmatch(r"(.*\.py):([A-Za-z_]\w*)", reference)
    if found is None:
        return None
    if not (path := Path(found[1])).is_file():
        raise SpecError(f"{reference}: no file {path}; write the path of a Python file")
    return path


def function(reference: str, where: str) -> Callable[..., Any]:
    """The function that ``file.py:function`` names; its file is imported once, with its folder importable.

    Raises SpecError at ``where`` for a file that has no such function.
    """
    path = function_file(reference)
    if path is None:
        raise SpecError(f"{where}: '{reference}' names no function; write FILE.py:FUNCTION")
    name = f"user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.path.insert(0, str(path.resolve().parent))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    wanted = reference.rpartition(":")[2]
    found = getattr(sys.modules[name], wanted, None)
    if not callable(found):
        known = [n for n, value in vars(sys.modules[name]).items() if inspect.isfunction(value)]
        raise SpecError(f"{where}: {path.name} has no function '{wanted}'; {nearest(wanted, known)}")
    return found  # type: ignore[no-any-return]


def call(reference: str, where: str, **arguments: Any) -> Any:
    """Call the function with those of ``arguments`` that it takes."""
    called = function(reference, where)
    parameters = inspect.signature(called).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return called(**arguments)
    return called(**{name: value for name, value in arguments.items() if name in parameters})
