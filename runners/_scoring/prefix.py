"""The LM for a backend that has a runtime of its own: it scores continuations of a prefix, no more.

class Mine:
    def score(self, prefix, continuations):
        ...

lm = for_lm_eval(PrefixLM)(Mine(), tokenizer, max_length=2048)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from runners._plain_lm import Request
from runners._scoring.queries import Query
from runners._scoring.sharing import Answer, SharingLM
from runners._scoring.trie import Trie
from scorecard.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scores = Sequence[tuple[float, bool]]  # log-probability in nats and whether it is the greedy one, by token


class PrefixScorer(Protocol):
    """What a backend implements."""

    def score(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> Sequence[Scores]:
        """For each of ``continuations`` the scores of its tokens after ``prefix`` and those before them.

        Token ids; neither ``prefix`` nor a continuation is empty, no two continuations are equal, and with
        its prefix each has at most one token more than ``max_length``: the last one is only predicted.
        Calls come with those prefixes next to each other that begin alike, so a runtime that keeps the keys
        and values of its last prompt uses them again for as long a beginning as there is.
        """


class PrefixLM(SharingLM):
    """``scorer`` with the tokenization, truncation and windows that lm-eval gives its own models.

    Each context is sent once, with all its continuations. A subclass may add ``generate_until``.
    """

    def __init__(
        self,
        scorer: PrefixScorer,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        add_bos_token: bool | None = None,
    ) -> None:
        self.scorer, self.tokenizer = scorer, tokenizer
        self.max_length, self.add_bos_token = max_length, add_bos_token
        self.progress = lambda done, total: None

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Raises SpecError: a scorer generates nothing."""
        raise SpecError("tasks: this backend only scores continuations; leave out tasks that generate text")

    def _answers(self, queries: Sequence[Query], *, share: bool) -> list[Answer]:
        found: dict[int, Answer] = {}
        for prefix, asked in _by_context(queries):
            scored = self.scorer.score(prefix, [list(continuation) for continuation in asked])
            for tokens, (continuation, places) in zip(scored, asked.items(), strict=True):
                if len(tokens) != len(continuation):
                    raise ValueError(f"score: {len(tokens)} scores for {len(continuation)} tokens")
                answer = sum(logprob for logprob, _ in tokens), all(greedy for _, greedy in tokens)
                found |= dict.fromkeys(places, answer)
            self.progress(len(found), len(queries))
        return [found[place] for place in range(len(queries))]


def _by_context(queries: Sequence[Query]) -> Iterator[tuple[list[int], dict[tuple[int, ...], list[int]]]]:
    """Each context, next to those that begin alike, with its continuations and who asks for them."""
    contexts = Trie([query.tokens[: len(query.tokens) - len(query.targets) + 1] for query in queries])
    asked: list[dict[tuple[int, ...], list[int]]] = [{} for _ in range(len(contexts))]
    for place, (query, context) in enumerate(zip(queries, contexts.index, strict=True)):
        asked[context].setdefault(tuple(query.targets), []).append(place)
    yield from zip(map(list, contexts.tokens), asked, strict=True)
