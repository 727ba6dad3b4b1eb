"""What docs/models-yaml.md must say: a table of keys for each section, made from the sections themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from scorecard import document, sections

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models-yaml.md"
SECTIONS = {
    "The file": document.Document,
    "models": document.Model,
    "configs": document.Config,
    "Entries of a configs list": document.Use,
    "defaults": document.Defaults,
    "evaluation": sections.Evaluation,
    "Early stopping": sections.EarlyStopping,
    "calibration": sections.Calibration,
    "measure": sections.Measure,
    "limits": sections.Limits,
    "One limit": sections.Limit,
    "gate": sections.Gate,
    "expect": sections.Expect,
}


def expected_rows(section: type[sections.Section]) -> list[str]:
    """The table's rows: the section's own keys first, then those it shares with others."""
    schema = section.model_json_schema()
    inherited = set(document.Settings.model_fields) if section is not document.Settings else set()
    properties = schema["properties"].items()
    ordered = sorted(properties, key=lambda item: item[0] in inherited)
    required = schema.get("required", [])
    return [_row(key, value, key in required) for key, value in ordered]


def _row(key: str, value: dict[str, Any], required: bool) -> str:
    default = (
        "required" if required else f"`{json.dumps(value['default'])}`" if "default" in value else "empty"
    )
    return f"| `{key}` | {_type(value)} | {default} | {value['description']} |"


def _type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(part) for part in value["anyOf"]))
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        heading = next(heading for heading, section in SECTIONS.items() if section.__name__ == name)
        return f"[{heading}](#{heading.lower().replace(' ', '-')})"
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties") or next(
            iter(value.get("patternProperties", {}).values()), None
        )
        return f"mapping to {_type(inner)}" if inner else "mapping"
    return _plain(value)


def _plain(value: dict[str, Any]) -> str:
    word = {"string": "text", "number": "number", "integer": "integer", "boolean": "bool", "null": "null"}
    bounds = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    return " ".join(
        [word[value["type"]], *(f"{sign} {value[b]}" for b, sign in bounds.items() if b in value)]
    )


def documented_rows() -> dict[str, list[str]]:
    """Heading to the rows of keys in its tables."""
    rows: dict[str, list[str]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"#+ `?([^`]+)`?$", line):
            heading = found[1]
        elif line.startswith("| `"):
            rows.setdefault(heading, []).append(line)
    return rows


def examples() -> list[str]:
    """Every YAML block of the page."""
    return re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
