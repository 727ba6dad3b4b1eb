"""A sub-trie as one row of tokens in depth-first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runners._scoring.trie import Trie


@dataclass(frozen=True)
class Packed:
    """One row behind ``depth`` kept positions.

    ``tokens`` and their ``positions`` in their sequences; ``ends[k]``: token k is seen by itself and by what
    follows it before ``ends[k]``. ``paths[i]``: where the tokens of the i-th sequence stand, from position
    ``depth`` on.
    """

    depth: int
    places: tuple[int, ...]
    tokens: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]

    @property
    def branches(self) -> bool:
        """Whether some token does not see all tokens before it."""
        return min(self.ends) < len(self.ends)


def pack(trie: Trie, places: Sequence[int], depth: int) -> Packed:
    """Sequences ``places`` (ascending) after their first ``depth`` tokens, which a chain has run."""
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # where the tokens of the sequence at hand stand
    paths = []
    for before, place in zip([None, *places], places, strict=False):
        common = depth if before is None else trie.between(before, place)
        for left in path[common - depth :]:
            ends[left] = len(tokens)
        new = trie.tokens[place][common:]
        path = path[: common - depth] + list(range(len(tokens), len(tokens) + len(new)))
        tokens += new
        positions += range(common, common + len(new))
        ends += [0] * len(new)
        paths.append(path)
    for left in path:
        ends[left] = len(tokens)
    return Packed(depth, tuple(places), tokens, positions, ends, paths)
