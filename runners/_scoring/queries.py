"""What is asked of each sequence, and the answers as they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runners._scoring.trie import Trie


class Query(NamedTuple):
    """Input tokens, and the ``targets`` that its last positions predict, one each."""

    tokens: list[int]
    targets: list[int]


@dataclass
class Picks:
    """Single predictions: ``rows[i]`` of some output gives token ``targets[i]`` of query ``owners[i]``."""

    rows: list[int]
    targets: list[int]
    owners: list[int]


class Queries:
    """The queries of one call, by the distinct sequence of their input in ``trie``."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.all = queries
        self.trie = Trie([query.tokens for query in queries])
        self._of: list[list[int]] = [[] for _ in range(len(self.trie))]
        for query, place in enumerate(self.trie.index):
            self._of[place].append(query)

    def add(self, picks: Picks, place: int, path: Sequence[int], depth: int) -> None:
        """Add what is asked of sequence ``place`` at positions ``depth`` to ``depth + len(path)``.

        ``path`` says in which row of the output each of these positions is.
        """
        length, end = len(self.trie.tokens[place]), depth + len(path)
        for owner in self._of[place]:
            targets = self.all[owner].targets
            start = length - len(targets)
            low, high = max(start, depth), min(length, end)
            if low < high:
                picks.rows += path[low - depth : high - depth]
                picks.targets += targets[low - start : high - start]
                picks.owners += [owner] * (high - low)


class Answers:
    """Sums of log-probabilities, and whether every token was the most probable one, of each query."""

    def __init__(self, queries: Sequence[Query], progress: Callable[[int, int], None]) -> None:
        self._missing = [len(query.targets) for query in queries]
        self._sums = [0.0] * len(queries)
        self._greedy = [True] * len(queries)
        self._progress, self._done = progress, 0

    def add(self, owners: Iterable[int], logprobs: Iterable[float], greedy: Iterable[bool]) -> None:
        """One predicted token of each of ``owners``."""
        for owner, logprob, best in zip(owners, logprobs, greedy, strict=True):
            self._sums[owner] += logprob
            self._greedy[owner] &= best
            self._missing[owner] -= 1
            self._done += not self._missing[owner]
        self._progress(self._done, len(self._sums))

    def result(self) -> list[tuple[float, bool]]:
        """(log-probability in nats, is greedy) of each query, in their order."""
        assert not any(self._missing)
        return list(zip(self._sums, self._greedy, strict=True))
