"""A backend with a runtime of its own gets each context once, in an order that suits a cache of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from runners._scoring.lm import for_lm_eval
from runners._scoring.prefix import PrefixLM
from scorecard.documents import REPOSITORY
from scorecard.errors import SpecError

pytestmark = pytest.mark.backend

ORDER = 3


@dataclass(frozen=True)
class Asked:
    args: tuple[Any, ...]


class Ngram:
    """Probabilities from the last tokens alone, by a formula; counts what a runtime would have to read."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.calls: list[tuple[list[int], list[list[int]]]] = []

    def distribution(self, history: Sequence[int]) -> list[float]:
        seen = sum(token * 31**place for place, token in enumerate(history[-ORDER:]))
        weights = [1 + (seen * 7919 + token * 104729) % 1009 for token in range(self.vocabulary)]
        return [math.log(weight / sum(weights)) for weight in weights]

    def score(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[list[tuple[float, bool]]]:
        self.calls.append((list(prefix), [list(each) for each in continuations]))
        return [self._scores([*prefix], continuation) for continuation in continuations]

    def _scores(self, history: list[int], continuation: Sequence[int]) -> list[tuple[float, bool]]:
        scores = []
        for token in continuation:
            logprobs = self.distribution(history)
            scores.append((logprobs[token], logprobs.index(max(logprobs)) == token))
            history.append(token)
        return scores

    def read(self) -> int:
        """Tokens of prefixes that a runtime reads which keeps only its last prefix."""
        prefixes = [[], *(prefix for prefix, _ in self.calls)]
        return sum(len(b) - _same(a, b) for a, b in pairwise(prefixes))


def _same(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(REPOSITORY / "embedded" / "tiny-llama")


ROWS = [
    ("the cat sat", " on"),
    ("a dog", " b"),
    ("the cat sat", " down on the mat"),
    ("the cat ran", " away"),
    ("", "the cat"),
    ("a dog", " b"),
    ("the cat sat ", "on"),
    ("mat " * 30, "the end"),
]


def test_answers_are_those_of_each_request_alone(tokenizer: Any) -> None:
    scorer = Ngram(len(tokenizer))
    lm = for_lm_eval(PrefixLM)(scorer, tokenizer, max_length=24)
    together = lm.loglikelihood([Asked(row) for row in ROWS])
    assert together == [lm.loglikelihood([Asked(row)])[0] for row in ROWS]
    for row, (logprob, greedy) in zip(ROWS, together, strict=True):
        context, continuation = lm._encode_pair(*row)
        kept = (context + continuation)[-25:][: -len(continuation)]
        scores = scorer._scores(list(kept), continuation)
        assert logprob == pytest.approx(sum(value for value, _ in scores))
        assert greedy == all(best for _, best in scores)


def test_each_context_is_sent_once_next_to_those_that_begin_alike(tokenizer: Any) -> None:
    scorer = Ngram(len(tokenizer))
    lm = PrefixLM(scorer, tokenizer, max_length=24)
    seen: list[tuple[int, int]] = []
    lm.progress = lambda *counts: seen.append(counts)
    lm.loglikelihood([Asked(row) for row in ROWS])
    prefixes = [tuple(prefix) for prefix, _ in scorer.calls]
    assert len(set(prefixes)) == len(prefixes) < len(ROWS)
    assert all(len(prefix) + len(each) <= 25 for prefix, many in scorer.calls for each in many)
    assert seen[-1] == (len(ROWS), len(ROWS))
    one_by_one = Ngram(len(tokenizer))
    for row in ROWS:
        PrefixLM(one_by_one, tokenizer, max_length=24).loglikelihood([Asked(row)])
    assert scorer.read() < one_by_one.read()


def test_rolling_predicts_every_token_once(tokenizer: Any) -> None:
    scorer = Ngram(len(tokenizer))
    lm = PrefixLM(scorer, tokenizer, max_length=8)
    text = "the cat sat on the mat and then the dog"
    (found,) = lm.loglikelihood_rolling([Asked((text,))])
    tokens = lm.tok_encode(text)
    assert sorted(token for _, many in scorer.calls for each in many for token in each) == sorted(tokens)
    assert found < 0


def test_what_a_scorer_cannot_do_is_told(tokenizer: Any) -> None:
    class Short(Ngram):
        def score(
            self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
        ) -> list[list[tuple[float, bool]]]:
            return [scores[:-1] for scores in super().score(prefix, continuations)]

    with pytest.raises(ValueError, match="1 scores for 2 tokens"):
        PrefixLM(Short(len(tokenizer)), tokenizer, max_length=24).loglikelihood([Asked(("a", " b"))])
    with pytest.raises(SpecError, match="leave out tasks that generate"):
        PrefixLM(Ngram(9), tokenizer, max_length=24).generate_until([])
