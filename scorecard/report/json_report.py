"""results.json: the score table for programs, with the schema that it keeps to."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from scorecard.errors import ScorecardError
from scorecard.row import Row, Table
from scorecard.spec import from_json, to_json

SCHEMA = 1

_TYPES = {str: "string", float: "number", int: "integer", bool: "boolean", type(None): "null"}


def render(table: Table) -> str:
    """``{"schema": 1, "machine": …, "settings": …, "rows": […]}``, the same text for the same table."""
    document = {"schema": SCHEMA, "machine": table.machine, "settings": table.settings, "rows": table.rows}
    return json.dumps(to_json(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(text: str, where: str = "results.json") -> Table:
    """The table that `render` wrote. Raises ScorecardError for anything else."""
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise ScorecardError(f"{where}: schema {document['schema']}, not {SCHEMA}; write it again")
        rows = tuple(from_json(Row, row) for row in document["rows"])
        return Table(rows, document["settings"], document["machine"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScorecardError(f"{where}: not a score table ({error!r}); write it again") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of results.json, made from the fields of Row."""
    top = {
        "schema": {"const": SCHEMA, "description": "version of this format"},
        "machine": {"type": "object", "description": "the machine the table was made on"},
        "settings": {"type": "object", "description": "what the rows have in common"},
        "rows": {"type": "array", "items": _object(Row), "description": "best first within each model"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results.json",
        "type": "object",
        "properties": top,
        "required": list(top),
        "additionalProperties": False,
    }


def key_table(cls: type[Any]) -> str:
    """A Markdown table of a dataclass's keys, their types and meanings, as docs/results.md shows it."""
    schema = _object(cls)
    lines = ["| key | type | meaning |", "|:--|:--|:--|"]
    for name, part in schema["properties"].items():
        lines.append(f"| `{name}` | {_type_name(part)} | {part['description']} |")
    return "\n".join(lines)


def _object(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    properties = {f.name: _described(hints[f.name]) for f in dataclasses.fields(cls)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(hint: Any) -> dict[str, Any]:
    kind, description = typing.get_args(hint)
    return {**_schema(kind), "description": description}


def _schema(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is types.UnionType:
        return {"type": [_TYPES[arg] for arg in args]}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(args[1])}
    return {"type": _TYPES[hint]}


def _type_name(part: Mapping[str, Any]) -> str:
    kind = part.get("type", "string")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
