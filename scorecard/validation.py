"""Check a tree of plain values against a section of models.yaml; the first problem becomes one line."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scorecard.errors import SpecError, nearest
from scorecard.yaml_text import one_line, show

M = TypeVar("M", bound=BaseModel)

_WANTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def validate(section: type[M], tree: Any, where: str) -> M:
    """``tree`` as ``section``. Raises SpecError that begins with ``where`` and the path of the key."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(_step(part) for part in first["loc"] if part != "[key]").removeprefix(".")
        prefix = f"{where}: {path}" if path else where
        raise SpecError(one_line(f"{prefix}: {_problem(dict(first))}")) from None


def _step(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[$\w.@-]{1,100}", part) else f"[{show(part)}]"


def _problem(error: dict[str, Any]) -> str:
    """What is wrong and what to write, from one of pydantic's errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return f"is missing; write '{error['loc'][-1]}: …'"
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        return f"{show(value)} is not possible; {nearest(str(value), choices)}"
    if kind in _WANTED:
        return f"{show(value)} is of the wrong type; write {_WANTED[kind]}"
    if kind in _BOUNDS:
        return f"{show(value)} is out of range; write a number of {_BOUNDS[kind].format(**context)}"
    if kind in ("too_short", "string_too_short"):
        return "is empty; write something or leave the key out"
    return f"{show(value)} is not possible; {error['msg'][0].lower()}{error['msg'][1:]}"
