"""Which prompts are decoded together: those that share much of their beginning."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Tokens = tuple[int, ...]

# A decoding step reads all weights for a few tokens: it costs about as much as so many tokens of a prompt.
STEP_TOKENS = 8


def shared_length(prompts: Sequence[Tokens]) -> int:
    """How many tokens all ``prompts`` begin with; each keeps at least one of its own."""
    first, last = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def clusters(prompts: Sequence[Tokens], limit: int) -> list[list[Tokens]]:
    """``prompts``, all different, in groups whose shared beginning is computed once.

    A group is split where its parts share so much more that it is worth their separate steps, ``limit``
    each: one group of few-shot prompts stays one, two subjects become two.
    """
    return _split(sorted(prompts), limit)[1] if prompts else []


def _split(prompts: list[Tokens], limit: int) -> tuple[int, list[list[Tokens]]]:
    """The cost in tokens of the best grouping of sorted ``prompts``, and that grouping."""
    shared = shared_length(prompts)
    own = sum(len(prompt) - shared for prompt in prompts)
    whole = shared + own + limit * STEP_TOKENS
    children = _children(prompts, shared)
    # Nothing to split (one is the beginning of the others), or more to pay for it than can be saved.
    if len(children) == 1 or own <= limit * STEP_TOKENS:
        return whole, [prompts]
    parts = [_split(part, limit) for part in children]
    cost = sum(part[0] for part in parts)
    return (whole, [prompts]) if whole <= cost else (cost, [group for part in parts for group in part[1]])


def _children(prompts: list[Tokens], depth: int) -> list[list[Tokens]]:
    """Parts of sorted ``prompts`` by their token at ``depth``, which each of them has."""
    return [list(part) for _, part in itertools.groupby(prompts, key=lambda prompt: prompt[depth])]
