"""The keys and values of a chain, for the passes behind it. transformers 4 and 5 keep them differently."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def empty() -> Any:
    """A cache that keeps every position of every layer."""
    from transformers import DynamicCache

    return DynamicCache()


def repeated(cache: Any, rows: int) -> Any:
    """``cache`` of one row for ``rows`` rows, to be written to; its tensors are shared until then.

    A model that adds to the copy puts new tensors into it, so the original stays as it is.
    """
    new = copy.copy(cache)
    if hasattr(cache, "layers"):
        new.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in new.layers:
            layer.keys, layer.values = _expanded(layer.keys, rows), _expanded(layer.values, rows)
    else:
        new.key_cache = [_expanded(keys, rows) for keys in cache.key_cache]
        new.value_cache = [_expanded(values, rows) for values in cache.value_cache]
    return new


def _expanded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor if rows == 1 else tensor.expand(rows, -1, -1, -1)
