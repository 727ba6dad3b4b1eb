"""Greedy decoding of many texts after one prefix, in one batch that rows leave and enter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners._scoring._generation_cache import SharedPrefix, active

if TYPE_CHECKING:
    import torch

    from runners._scoring._generation_stops import Stops

FILL_TOKENS = 1024  # of prompts in one forward pass, padding included
FILL_KEYS = 16_384  # that they attend to: there each row has a copy of the prefix, a layer at a time
NEARLY, NEAR = 0.8, 16  # as long, or shorter by so many tokens: what is padded to the longest
IDLE = 0.25  # of the slots wait for new rows until there are more: a forward pass for each would cost more


@dataclass
class Row:
    """One text: the ``tokens`` of its prompt after the prefix (at least one), and what was ``made``."""

    place: int
    tokens: list[int]
    made: list[int] = field(default_factory=list)

    @property
    def newest(self) -> int:
        return self.made[-1] if self.made else self.tokens[-1]

    @property
    def held(self) -> int:
        """How many of its tokens have keys and values: all but the newest."""
        return len(self.tokens) + len(self.made) - 1


def decode(
    model: Any,
    prefix: Sequence[int],
    rows: Sequence[Row],
    *,
    limit: int,
    stops: Stops,
    width: int,
    ended: Callable[[Row], None],
) -> None:
    """Make the text of each row, at most ``width`` at a time.

    ``ended`` is called with each row when one of the ``stops`` is met or ``limit`` tokens are made.
    """
    import torch

    waiting = sorted(rows, key=lambda row: len(row.tokens))  # the longest is taken first
    room = max(len(row.tokens) for row in rows) + limit - 1
    shared = SharedPrefix(min(width, len(rows)), room)
    running: list[Row] = []
    with torch.no_grad(), active(model, shared):
        fill_prefix(model, shared, prefix)
        while waiting or running:
            enter(model, shared, running, waiting, width)
            _step(model, shared, running)
            done = stops.met([row.made for row in running])
            done = [met or len(row.made) >= limit for met, row in zip(done, running, strict=True)]
            for row in itertools.compress(running, done):
                ended(row)
            _leave(shared, running, done)


def fill_prefix(model: Any, shared: SharedPrefix, prefix: Sequence[int]) -> None:
    """Compute the keys and values that all rows share."""
    if prefix:
        shared.prefix(len(prefix))
        _forward(model, shared, [list(prefix)], 0)


def enter(model: Any, shared: SharedPrefix, running: list[Row], waiting: list[Row], width: int) -> None:
    """Fill the free slots with waiting rows, a few in each forward pass."""
    import torch

    if len(running) > width * (1 - IDLE):
        return
    while waiting and len(running) < width:
        length = len(waiting[-1].tokens) - 1
        group = _next_group(waiting, width - len(running), shared.prefix_length)
        if length:
            slots = torch.arange(len(running), len(running) + len(group), device=model.device)
            shared.fill(slots, length)
            # Padding on the right is seen by no token before it, and overwritten by those after it.
            prompts = [row.tokens[:-1] + [0] * (length - len(row.tokens) + 1) for row in group]
            _forward(model, shared, prompts, shared.prefix_length)
        running += group


def _next_group(waiting: list[Row], most: int, prefix: int) -> list[Row]:
    """The longest of the waiting rows and those that are nearly as long."""
    length = len(waiting[-1].tokens)
    most = max(1, min(most, FILL_TOKENS // length, FILL_KEYS // (prefix + length)))
    least = min(NEARLY * length, length - NEAR)
    group = [waiting.pop()]
    while waiting and len(group) < most and len(waiting[-1].tokens) >= least:
        group.append(waiting.pop())
    return group


def _forward(model: Any, shared: SharedPrefix, tokens: list[list[int]], start: int) -> None:
    """Keys and values of ``tokens`` at the positions from ``start``; the head is not needed for them."""
    import torch

    ids = torch.tensor(tokens, device=model.device)
    positions = torch.arange(start, start + ids.shape[1], device=model.device).expand_as(ids)
    model.base_model(input_ids=ids, position_ids=positions, past_key_values=shared.cache, use_cache=True)


def _step(model: Any, shared: SharedPrefix, running: list[Row]) -> None:
    """One more token for each row, the most probable one."""
    for row, token in zip(running, next_logits(model, shared, running).argmax(-1).tolist(), strict=True):
        row.made.append(token)


def next_logits(model: Any, shared: SharedPrefix, running: Sequence[Row]) -> torch.Tensor:
    """The logits [rows, vocabulary] of each row's next token, in float32 as ``generate`` takes them."""
    import torch

    held = [row.held for row in running]
    lengths = torch.tensor(held, device=model.device)
    shared.step(lengths, max(held))
    ids = torch.tensor([[row.newest] for row in running], device=model.device)
    positions = (lengths + shared.prefix_length)[:, None]
    result = model(input_ids=ids, position_ids=positions, past_key_values=shared.cache, use_cache=True)
    logits: torch.Tensor = result.logits[:, -1].float()
    return logits


def _leave(shared: SharedPrefix, running: list[Row], done: list[bool]) -> None:
    """Rows that ended give their slots to the last ones, so that the running ones are the first slots."""
    for slot in reversed(range(len(done))):
        if not done[slot]:
            continue
        last = len(running) - 1
        if slot != last:
            shared.move(last, slot)
            running[slot] = running[last]
        running.pop()
