"""Texts of requests as queries of tokens, by lm-eval's rules, each distinct text tokenized once."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from runners._plain_lm import Pair, PlainLM, Request, rolling_windows
from runners._scoring.encodings import Encodings
from runners._scoring.queries import Query

Answer = tuple[float, bool]  # log-probability in nats, and whether it is the greedy continuation


class SharingLM(PlainLM, ABC):
    """What needs no model of transformers; ``_answers`` is left to its subclasses.

    ``encodings``, if set, knows texts that were tokenized before this process began.
    """

    encodings: Encodings | None = None

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of ``text``; its own beginning-of-text token is not put there twice."""
        known = self._encoded.get((text, add_special_tokens))
        return super().tok_encode(text, add_special_tokens) if known is None else known

    @functools.cached_property
    def _encoded(self) -> dict[tuple[str, bool | None], list[int]]:
        return {}

    @functools.cached_property
    def _first_text(self) -> str:
        return str(self.tokenizer.decode(self.prefix_token_id))

    def loglikelihood(self, requests: Sequence[Request]) -> list[Answer]:
        """For each (context, continuation) its log-probability in nats, and whether it is the greedy one.

        Raises SpecError where a context or continuation has no tokens, or one has more than the model takes.
        """
        pairs = [request.args for request in requests]
        self._encode_all(pairs)
        encoded = [self._encode_pair(*pair) for pair in pairs]
        self._encoded.clear()
        for context, continuation in encoded:
            self._check_lengths(context, continuation)
        return self._answers([self._query(pair) for pair in encoded], share=True)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """The log-probability of each whole text, in windows of ``max_length`` tokens."""
        windows: list[Pair] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            found = list(rolling_windows(tokens, self.prefix_token_id, self.max_length))
            windows += found
            owners += [place] * len(found)
        # Windows begin alike only where whole texts do: packing them would cost more than it saves.
        answers = self._answers([self._query(window) for window in windows], share=False)
        sums: list[float] = [0] * len(requests)
        for owner, (logprob, _) in zip(owners, answers, strict=True):
            sums[owner] += logprob
        return sums

    def _query(self, pair: Pair) -> Query:
        """The last token is only predicted; what is too long loses its beginning."""
        context, continuation = pair
        return Query((context + continuation)[-(self.max_length + 1) :][:-1], continuation)

    @abstractmethod
    def _answers(self, queries: Sequence[Query], *, share: bool) -> list[Answer]:
        """The answer to each query; ``share=False``: they have nothing in common that is worth a plan."""

    def _encode_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Tokenize what ``_encode_pair`` will ask for, in one call for all texts with the same settings."""
        if not self.tokenizer.is_fast:
            return
        wanted: dict[tuple[bool | None, bool | None], dict[str, None]] = {}
        for context, continuation in pairs:
            asked = False if context == "" else None
            for text in (continuation,) if context == "" else (context + continuation, context.rstrip()):
                special = self.add_bos_token if asked is None else asked
                if asked is None and text.startswith(self._first_text):
                    special = False
                wanted.setdefault((asked, special), {})[text] = None
        for (asked, special), texts in wanted.items():
            for text, ids in self._tokenized(list(texts), special):
                self._encoded[text, asked] = ids

    def _tokenized(self, texts: list[str], special: bool | None) -> Iterator[tuple[str, list[int]]]:
        """The ids of each text: those that an earlier case has kept, the others in one call."""
        kept, new = self.encodings, texts
        if kept:
            known = {text: ids for text in texts if (ids := kept.get(text, special)) is not None}
            yield from known.items()
            new = [text for text in texts if text not in known]
        if new:
            options = {} if special is None else {"add_special_tokens": special}
            encoded = self.tokenizer(new, return_attention_mask=False, **options)["input_ids"]
            yield from zip(new, encoded, strict=True)
            if kept:
                kept.add(new, special, encoded)
