"""The logits of a document a few positions at a time, so that they never lie in memory all at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VALUES = 4_000_000  # logits at a time: 16 MB in float32, whatever the vocabulary
_FEWEST_ROWS = 8  # a matrix product of fewer may add up in another order


class Logits:
    """Next-token logits of a causal transformers ``model``; the same numbers as its own forward pass gives.

    The body runs once a document. The model is then asked again, with ``logits_to_keep``, for the logits of
    a few positions, and finds the body's answer ready: so whatever it does to logits (capping, scaling)
    stays its own. Where a trial on the first tokens does not give equal bits, or the model lacks what this
    takes, all logits of a document are computed together.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body: Any = getattr(model, "base_model", None)
        self._equal: bool | None = None if self._separable() else False

    def of(self, tokens: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Positions, and their logits [positions, vocabulary], for all of ``tokens`` [1, n] but the last."""
        import torch

        last = tokens.shape[1] - 1
        rows = rows_at_a_time(getattr(getattr(self._model, "config", None), "vocab_size", 1))
        if last <= rows or not self._same(tokens, rows):
            yield from _split(self._model(input_ids=tokens).logits[0, :last])
            return
        answer = self._answer(tokens)
        for places in torch.arange(last, device=tokens.device).tensor_split(-(-last // rows)):
            part = slice(int(places[0]), int(places[-1]) + 1)
            with _ready(self._body, answer):
                logits = self._model(input_ids=tokens, logits_to_keep=places).logits[0]
            yield part, logits

    def _separable(self) -> bool:
        model = self._model
        takes = "logits_to_keep" in inspect.signature(model.forward).parameters
        return takes and self._body is not None and self._body is not model

    def _same(self, tokens: torch.Tensor, rows: int) -> bool:
        """Whether the logits of some first tokens are the same either way; tried once a model."""
        import torch

        if self._equal is None:
            tried = tokens[:, : 2 * rows]
            places = torch.arange(rows, device=tokens.device)
            whole = self._model(input_ids=tried).logits[0]
            answer = self._answer(tried)
            with _ready(self._body, answer):
                part = self._model(input_ids=tried, logits_to_keep=places).logits[0]
            self._equal = torch.equal(whole[:rows], part)
        return self._equal

    def _answer(self, tokens: torch.Tensor) -> Any:
        """What the body says when the model calls it."""
        answers: list[Any] = []
        hook = self._body.register_forward_hook(lambda module, given, answer: answers.append(answer))
        try:
            self._model(input_ids=tokens, logits_to_keep=1)
        finally:
            hook.remove()
        return answers[0]


@contextmanager
def _ready(body: Any, answer: Any) -> Iterator[None]:
    """``body`` answers at once."""
    attributes = vars(body)
    own = attributes.get("forward")  # accelerate and others put one there
    attributes["forward"] = lambda *inputs, **settings: answer
    try:
        yield
    finally:
        del attributes["forward"]
        if own is not None:
            attributes["forward"] = own


def rows_at_a_time(vocabulary: int) -> int:
    return max(_FEWEST_ROWS, VALUES // vocabulary)


def _split(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    rows = rows_at_a_time(logits.shape[-1])
    for start in range(0, len(logits), rows):
        yield slice(start, min(start + rows, len(logits))), logits[start : start + rows]
