"""docs/runners.md, made from the classes: ``python -m runners._docs`` writes it, a test keeps it true."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from pathlib import Path
from typing import Any

from runners import base

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runners.md"
TYPES = {"NoneType": "null", "bool": "true or false", "str": "text", "int": "whole number", "float": "number"}
INTRODUCTION = """\
# Runners

Written by `python -m runners._docs`; do not edit. A runner is one compression backend, a file in `runners/`.
A config in `models.yaml` names a runner and its options:

```yaml
configs:
  gptq-w3-g128: {runner: gptq, bits: 3, group_size: 128}
```

An unknown option, a wrong type or an impossible value is an error before any work starts. How to add a
runner: [add-a-backend.md](add-a-backend.md).
"""


def page() -> str:
    """The whole page in Markdown."""
    return "\n".join([INTRODUCTION, *map(section, base.names())])


def section(name: str) -> str:
    """One runner: its docstring, what it needs, and a table of its options."""
    runner = base.get(name)
    aliases = [f"`{alias}`" for alias, target in base.ALIASES.items() if target == name]
    facts = [
        f"Needs: {', '.join(f'`{r}`' for r in runner.requires) or 'nothing beside the core'}.",
        *([f"Also called: {', '.join(aliases)}."] if aliases else []),
        *(
            ["Reads the calibration text (`calibration:` in models.yaml)."]
            if runner.calibrates is not base.BaseRunner.calibrates
            else []
        ),
    ]
    parts = [f"## {name}", inspect.getdoc(runner) or "", " ".join(facts), _table(runner.Options)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(options: type[Any]) -> str:
    fields, hints = dataclasses.fields(options), typing.get_type_hints(options)
    rows = [
        f"| `{f.name}` | {_type(hints[f.name])} | {_default(f)} | {f.metadata['doc']}{_choices(f)} |"
        for f in fields
    ]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


def _type(hint: Any) -> str:
    plain = [getattr(t, "__name__", str(t)) for t in typing.get_args(hint) or (hint,)]
    return " or ".join(TYPES.get(t, t) for t in plain)


def _default(field: dataclasses.Field[Any]) -> str:
    missing = field.default is dataclasses.MISSING
    return "required" if missing else f"`{json.dumps(field.default)}`"


def _choices(field: dataclasses.Field[Any]) -> str:
    choices = [f"`{json.dumps(c)}`" for c in field.metadata.get("choices", ())]
    return f": {', '.join(choices)}" if choices else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
