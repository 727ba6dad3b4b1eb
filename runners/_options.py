"""The options of a runner: a mapping from models.yaml checked against a dataclass, before any work starts."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from scorecard.errors import SpecError, nearest


def parse(options: Mapping[str, Any], kind: type[Any], runner: str, where: str) -> Any:
    """``kind(**options)``. Raises SpecError naming the key, and the nearest one for an unknown key.

    What options say together is checked by ``kind.__post_init__``, which raises a ValueError that reads
    ``option: what is wrong; what to write instead``.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key, value in options.items():
        if key not in fields:
            raise SpecError(f"{where}: unknown option '{key}' for runner '{runner}'; {nearest(key, fields)}")
        _check_type(f"{where}.{key}", value, hints[key], fields[key].metadata.get("choices"))
    missing = [n for n, f in fields.items() if n not in options and f.default is f.default_factory]
    if missing:
        raise SpecError(f"{where}: option '{missing[0]}' is missing; write '{missing[0]}: …'")
    try:
        return kind(**options)
    except ValueError as error:
        raise SpecError(f"{where}.{error}") from None


def _check_type(where: str, value: Any, hint: Any, choices: tuple[Any, ...] | None) -> None:
    allowed = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict, tuple) else (hint,)
    plain = tuple(typing.get_origin(a) or a for a in allowed or (hint,))
    if Any in plain:
        return
    if float in plain:
        plain += (int,)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        names = " or ".join("null" if t is type(None) else t.__name__ for t in plain)
        raise SpecError(f"{where}: {value!r} is of the wrong type; write {names}")
    if choices and value not in choices:
        raise SpecError(f"{where}: {value!r} is not possible; write one of {', '.join(map(str, choices))}")
