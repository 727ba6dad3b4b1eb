"""The state of a model that NVIDIA's Model-Optimizer has changed, as JSON; the library itself pickles it.

Every mapping is written once, in a table; elsewhere ``{"same": place in the table}`` stands for it, since the
quantizers of a model differ little. Other values that JSON lacks are objects with one key, which names their
kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scorecard.errors import ArtifactError

LEFT_OUT = ("_amax_for_smoothing",)  # a tensor for each layer, which serves the library's export alone


def dumps(state: Any) -> str:
    """``state`` as text: the same text for equal states. Raises TypeError for a value that has no JSON."""
    table: dict[str, int] = {}
    top = _encode(state, table)
    return (
        json.dumps({"top": top, "table": [json.loads(text) for text in table]}, separators=(",", ":")) + "\n"
    )


def loads(text: str) -> Any:
    """What ``dumps`` was given. Raises ArtifactError for text that it did not write."""
    try:
        content = json.loads(text)
        table: list[Any] = []
        for pairs in content["table"]:  # each refers to earlier ones only
            table.append([(_decode(key, table), _decode(value, table)) for key, value in pairs])
        return _decode(content["top"], table)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"modelopt.json: is damaged ({error}); compress again") from None


def _encode(value: Any, table: dict[str, int]) -> Any:
    import torch
    from modelopt.torch.quantization import qtensor

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        kept = [(key, item) for key, item in value.items() if key not in LEFT_OUT]
        pairs = [[_encode(key, table), _encode(item, table)] for key, item in kept]
        return {"same": table.setdefault(json.dumps(pairs), len(table))}
    if isinstance(value, list):
        return [_encode(item, table) for item in value]
    if isinstance(value, tuple):  # torch.Size too
        kind = "size" if isinstance(value, torch.Size) else "tuple"
        return {kind: [_encode(item, table) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": sorted(_encode(item, table) for item in value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    name = str(getattr(value, "__name__", ""))
    if name and getattr(qtensor, name, None) is value:
        return {"qtensor": name}
    raise TypeError(f"modelopt: {value!r} is of no kind that is known here")


def _decode(value: Any, table: list[Any]) -> Any:
    import torch
    from modelopt.torch.quantization import qtensor

    if isinstance(value, list):
        return [_decode(item, table) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "same":
        return dict(table[content])
    if kind in ("size", "tuple", "set"):
        made: Any = {"size": torch.Size, "tuple": tuple, "set": set}[kind]
        return made(_decode(item, table) for item in content)
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return torch.device(content)
    if kind == "qtensor":
        return getattr(qtensor, content)
    raise ValueError(f"unknown kind '{kind}'")
