"""Token sequences in an order in which those that begin alike are neighbours."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

_TYPE = "I"  # token ids as C's unsigned int: bytes compare and sort much faster than lists
_BYTES = array(_TYPE).itemsize


class Trie:
    """The distinct ones of ``sequences`` (non-empty lists of token ids).

    ``tokens[i]`` is a distinct sequence, ``shared[i]`` how many tokens it has in common with its left
    neighbour, ``index[k]`` the distinct sequence that ``sequences[k]`` is.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        keys = [array(_TYPE, sequence).tobytes() for sequence in sequences]
        found = dict(zip(keys, sequences, strict=True))
        order = sorted(found)
        rank = {key: place for place, key in enumerate(order)}
        self.index = [rank[key] for key in keys]
        self.tokens = [found[key] for key in order]
        self.shared = [0] * bool(order) + [common_length(a, b) for a, b in pairwise(order)]
        new = (len(tokens) - shared for tokens, shared in zip(self.tokens, self.shared, strict=True))
        self._new = [0, *accumulate(new)]

    def __len__(self) -> int:
        return len(self.tokens)

    def size(self, start: int, stop: int, depth: int = 0) -> int:
        """Tokens that sequences ``start`` to ``stop`` hold after their common first ``depth``, each once."""
        return len(self.tokens[start]) - depth + self._new[stop] - self._new[start + 1]

    def common(self, start: int, stop: int) -> int:
        """How many first tokens sequences ``start`` to ``stop`` have in common."""
        return min(self.shared[start + 1 : stop], default=len(self.tokens[start]))

    def between(self, left: int, right: int) -> int:
        """How many first tokens two sequences have in common, ``left`` before ``right``."""
        return min(self.shared[left + 1 : right + 1])

    def branches(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of a range whose sequences agree in one token more than the whole range does."""
        common = self.common(start, stop)
        cuts = [place for place in range(start + 1, stop) if self.shared[place] == common]
        return pairwise([start, *cuts, stop])


def common_length(left: bytes, right: bytes) -> int:
    """Equal first tokens of two sequences in bytes, by bisection."""
    same, other = 0, min(len(left), len(right)) // _BYTES
    if left[: other * _BYTES] == right[: other * _BYTES]:
        return other
    while other - same > 1:  # the first ``same`` tokens agree, the first ``other`` do not
        middle = (same + other) // 2
        part = slice(same * _BYTES, middle * _BYTES)
        same, other = (middle, other) if left[part] == right[part] else (same, middle)
    return same
