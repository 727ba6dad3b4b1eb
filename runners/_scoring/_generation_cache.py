"""Attention over keys and values of which the beginning is the same for all rows of a batch.

The prefix is stored and read once, whatever the number of rows: its scores are one matrix product over the
queries of all rows (Juravsky et al. 2024, *Hydragen*). Each row's own tokens lie in a slot of a tensor that
is allocated once, so that nothing is copied when they grow and rows of different lengths need no padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from scorecard.errors import ScorecardError

if TYPE_CHECKING:
    import torch

NAME = "scorecard_shared_prefix"  # of the attention implementation, as transformers knows it
FOREIGN = ("softcap", "s_aux")  # settings of an attention that is not the plain one


class Unshareable(ScorecardError):
    """This model's attention is not one that can share a prefix."""


class SharedPrefix:
    """Keys and values of all layers: of a prefix, and of ``rows`` slots with ``room`` tokens each.

    A forward pass is announced by one of ``prefix``, ``fill`` and ``step``, then the model is called with
    ``cache`` inside ``active``.
    """

    def __init__(self, rows: int, room: int) -> None:
        from transformers import DynamicCache

        self._rows, self._room = rows, room
        self._prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [1, KV heads, prefix, head size]
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [rows, KV heads, room, head size]
        self._layer = -1  # that is to attend next
        self._attended: set[int] = set()
        self._slots: Any = None
        self._starts: Any = None
        self._mask: torch.Tensor | None = None
        self.prefix_length = 0
        # What models ask of a cache differs between versions of transformers; two methods are what is used.
        self.cache: Any = DynamicCache()
        self.cache.update = self._update
        self.cache.get_seq_length = lambda *layer: self.prefix_length

    @property
    def is_complete(self) -> bool:
        """Whether the layers that stored keys and values, some at least, attended here."""
        return bool(self._own) and self._attended == set(self._own)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes, in all layers, once a slot has been filled."""
        return sum(held[0, :, 0].nbytes for pair in self._own.values() for held in pair)

    def prefix(self, length: int) -> None:
        """Next come the ``length`` tokens of the prefix, in one row."""
        self.prefix_length = length
        self._slots = self._mask = None

    def fill(self, slots: torch.Tensor, width: int) -> None:
        """Next come the first ``width`` own tokens of some slots [rows]."""
        import torch

        self._slots, self._starts = slots, None
        mask = torch.ones(width, self.prefix_length + width, dtype=torch.bool, device=slots.device)
        self._mask = mask.tril(self.prefix_length)

    def step(self, lengths: torch.Tensor, longest: int) -> None:
        """Next comes one token of each of the first slots, which hold ``lengths`` [rows] own tokens."""
        import torch

        self._slots, self._starts = torch.arange(len(lengths), device=lengths.device), lengths
        places = torch.arange(longest + 1, device=lengths.device)
        self._mask = (places > lengths[:, None])[:, None, None]  # [rows, 1, 1, tokens]: not there yet

    def move(self, source: int, target: int) -> None:
        """The slot ``target`` holds what ``source`` holds."""
        for pair in self._own.values():
            for held in pair:
                held[target] = held[source]

    def _update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *rest: Any, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what is new; it alone goes to ``attend``, which knows where the rest is."""
        self._layer = layer_idx
        if self._slots is None:
            self._prefix[layer_idx] = keys, values
            return keys, values
        if layer_idx not in self._own:
            shapes = [(self._rows, new.shape[1], self._room, new.shape[3]) for new in (keys, values)]
            self._own[layer_idx] = (keys.new_zeros(shapes[0]), values.new_zeros(shapes[1]))
        for held, new in zip(self._own[layer_idx], (keys, values), strict=True):
            if self._starts is None:
                held[self._slots, :, : new.shape[2]] = new
            else:
                held[self._slots, :, self._starts] = new[:, :, 0]
        return keys, values

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The attention's output [rows, tokens, heads, size] for queries [rows, heads, tokens, size]."""
        self._attended.add(self._layer)
        if self._starts is not None:
            return self._attend_step(query, scale)
        from torch.nn.functional import scaled_dot_product_attention

        if self._slots is not None and self.prefix_length:
            rows = len(query)
            keys, values = (
                _joined(shared.expand(rows, -1, -1, -1), new)
                for shared, new in zip(self._prefix[self._layer], (keys, values), strict=True)
            )
        groups = query.shape[1] // keys.shape[1]
        causal = keys.shape[2] == query.shape[2]
        result = scaled_dot_product_attention(
            query,
            _per_head(keys, groups),
            _per_head(values, groups),
            attn_mask=None if causal else self._mask,
            is_causal=causal,
            scale=scale,
        )
        return result.transpose(1, 2)

    def _attend_step(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        import torch

        rows, heads, _, size = query.shape
        assert self._mask is not None
        keys, values = (held[:rows, :, : self._mask.shape[-1]] for held in self._own[self._layer])
        query = query.reshape(rows, keys.shape[1], -1, size) * scale
        scores = _folded((query @ keys.transpose(2, 3)).masked_fill(self._mask, float("-inf")))
        if self.prefix_length:
            shared_keys, shared_values = (shared[0] for shared in self._prefix[self._layer])
            scores = torch.cat([_folded(query) @ shared_keys.transpose(1, 2), scores], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        result = _split(weights[..., self.prefix_length :], rows) @ values
        if self.prefix_length:
            result = result + _split(weights[..., : self.prefix_length] @ shared_values, rows)
        return result.reshape(rows, 1, heads, -1)


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([first, second], dim=2)


def _per_head(states: torch.Tensor, groups: int) -> torch.Tensor:
    """Keys or values of each head, where ``groups`` heads share them."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _folded(states: torch.Tensor) -> torch.Tensor:
    """[rows, KV heads, group, n] as [KV heads, rows · group, n]."""
    return states.transpose(0, 1).flatten(1, 2)


def _split(states: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of ``_folded``."""
    return states.view(len(states), rows, -1, states.shape[-1]).transpose(0, 1)


_ACTIVE: ContextVar[SharedPrefix] = ContextVar("shared prefix")


@contextlib.contextmanager
def active(model: Any, shared: SharedPrefix) -> Iterator[None]:
    """The forward passes of ``model`` in this context read from ``shared``.

    Raises Unshareable in a forward pass through an attention with caps, sinks and the like.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[NAME] = _attention
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [config._attn_implementation for config in configs.values()]
    token = _ACTIVE.set(shared)
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        _ACTIVE.reset(token)
        for config, name in zip(configs.values(), before, strict=True):
            config._attn_implementation = name


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    for name in FOREIGN:
        if settings.get(name) is not None:
            raise Unshareable(f"generate_until: {type(module).__name__} attends with '{name}'")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _ACTIVE.get().attend(query, key, value, scale), None
