"""``$variables`` in the options of a config: typed, never half replaced, never silently left.

=================  =================================================================================
``$name``          the variable; a name is as long as it can be, so ``$damp`` is never part of ``$damp_frac``
``${name}``        the same, for where a letter, digit or underscore follows
``${name:-text}``  the variable, or ``text`` (typed like a YAML scalar) where it is not set
``$$``             one ``$``
=================  =================================================================================

A string that is one reference and nothing else becomes the variable's value with its type; inside a longer
string the value is written as YAML would write it. A ``$`` before anything else stays as it is, so regular
expressions may end in ``$``. Values that were put in are not searched again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from scorecard.errors import SpecError, nearest
from scorecard.yaml_text import one_line, scalar, show

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(
    rf"\$(?:(?P<escape>\$)|(?P<bare>{NAME})|\{{(?P<name>{NAME})(?::-(?P<default>[^{{}}]*))?\}}|(?P<broken>\{{))"
)


def substitute(value: Any, variables: Mapping[str, Any], where: str) -> tuple[Any, frozenset[str]]:
    """``value`` with every reference replaced, nested and in keys too, and the names it used.

    Raises SpecError at ``where`` for a variable that has neither a value nor a default, and for a ``${``
    that is not closed.
    """
    if isinstance(value, str):
        return _string(value, variables, where)
    if isinstance(value, Mapping):
        return _mapping(value, variables, where)
    if isinstance(value, (list, tuple)):
        parts = [substitute(part, variables, f"{where}[{i}]") for i, part in enumerate(value)]
        return [part for part, _ in parts], frozenset[str]().union(*(used for _, used in parts))
    return value, frozenset()


def _mapping(
    value: Mapping[str, Any], variables: Mapping[str, Any], where: str
) -> tuple[Any, frozenset[str]]:
    replaced: dict[str, Any] = {}
    used: frozenset[str] = frozenset()
    for key, part in value.items():
        inside = one_line(f"{where}.{key}")
        new_key, in_key = _string(key, variables, inside)
        new_part, in_part = substitute(part, variables, inside)
        if (text := _text(new_key)) in replaced:
            raise SpecError(f"{inside}: key {show(text)} is there twice after replacement; keep one of them")
        replaced[text] = new_part
        used |= in_key | in_part
    return replaced, used


def _string(text: str, variables: Mapping[str, Any], where: str) -> tuple[Any, frozenset[str]]:
    found = list(_REFERENCE.finditer(text))
    used = frozenset(name for match in found if (name := match["bare"] or match["name"]))
    if len(found) == 1 and found[0].group() == text:
        return _value(found[0], variables, where), used
    return _REFERENCE.sub(lambda match: _inside(match, variables, where), text), used


def _inside(match: re.Match[str], variables: Mapping[str, Any], where: str) -> str:
    if match["default"] is not None and match["name"] not in variables:
        return match["default"]
    return _text(_value(match, variables, where))


def _value(match: re.Match[str], variables: Mapping[str, Any], where: str) -> Any:
    if match["escape"]:
        return "$"
    if match["broken"]:
        raise SpecError(f"{where}: a '${{' that is not '${{name}}'; write '$${{' for the text itself")
    name = match["bare"] or match["name"]
    if name in variables:
        return variables[name]
    if match["default"] is None:
        hint = f"{nearest(name, variables)} Or " if variables else ""
        raise SpecError(f"{where}: variable '${name}' is not set; {hint}write 'recipe_args: {{{name}: …}}'")
    try:
        return scalar(match["default"])
    except ValueError as error:
        raise SpecError(f"{where}: the default of '${name}': {error}") from None


def _text(value: Any) -> str:
    """``value`` as YAML would write it on one line; text as it is."""
    return value if isinstance(value, str) else _flow(value)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        # Readers of YAML 1.1 take 1e-05 for text; with a point in it every reader sees a number.
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa}{'.0' if e and '.' not in mantissa else ''}{e}{exponent}"
    return json.dumps(value, ensure_ascii=False)
