"""The class that a user.py gives its model by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def taken(kind: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` without ``dtype`` where the constructor of ``kind`` has no place for it: a class that
    decides by itself in which type it computes may be written without."""
    names = inspect.signature(kind).parameters
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values())
    return {name: value for name, value in arguments.items() if name != "dtype" or free or name in names}
