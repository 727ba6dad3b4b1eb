"""When a generated text ends: lm-eval's rules, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BACK = 2  # tokens more than the sequence has: the same text may be cut in other tokens


class Stops:
    """The stop ``sequences`` and the ids of the tokens that end a text.

    As in ``lm_eval.models.utils_hf.MultiTokenEOSCriteria``: a sequence is looked for in the text of the last
    few tokens, so that the work of a step does not grow with the text. Sequences with as many tokens are
    looked for in the same text.
    """

    def __init__(self, tokenizer: Any, sequences: Sequence[str], end_ids: Sequence[int]) -> None:
        self._tokenizer, self._ends = tokenizer, frozenset(end_ids)
        self._by_window: dict[int, list[str]] = {}
        for sequence in sequences:
            window = len(tokenizer.encode(sequence, add_special_tokens=False)) + BACK
            self._by_window.setdefault(window, []).append(sequence)

    def met(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """For each row of generated tokens, at least one, whether its newest token ends it."""
        done = [row[-1] in self._ends for row in rows]
        for window, sequences in self._by_window.items():
            texts = self._tokenizer.batch_decode([row[-window:] for row in rows])
            for place, text in enumerate(texts):
                done[place] = done[place] or any(sequence in text for sequence in sequences)
        return done
