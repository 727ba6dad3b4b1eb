"""The tensors of one layer by the rest of their names, and what else is needed to read them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard.audit import numbers
from scorecard.safetensors_header import Tensor


@dataclass(frozen=True)
class Parts:
    """``tensors``: the name after ``<layer>.`` -> tensor; ``shape``: of the original, (out, in) features.

    ``config`` is ``quantization_config`` of config.json, or empty.
    """

    name: str
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)

    def get(self, *names: str) -> Tensor | None:
        """The first of these parts that is there and of a type that can be read."""
        found = (self.tensors.get(name) for name in names)
        return next((tensor for tensor in found if tensor and numbers.readable(tensor)), None)


def metadata(path: Path) -> Mapping[str, str]:
    """``__metadata__`` of a safetensors file whose header is known to be readable."""
    return _metadata(path, path.stat().st_mtime_ns)


def json_object(text: str) -> dict[str, Any]:
    """Empty for what is no JSON object: a broken note is no note."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=8)
def _metadata(path: Path, _: int) -> Mapping[str, str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__") or {}
