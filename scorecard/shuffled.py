"""The same requests in another order: nothing but rounding can change, and how much is worth knowing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

Method = Callable[[Sequence[Any]], list[Any]]


@contextlib.contextmanager
def shuffled(lm: Any, seed: int | None) -> Iterator[None]:
    """While this lasts `lm` gets its requests in an order that `seed` draws; answers come back in theirs.

    ``None`` leaves everything as it is.
    """
    if seed is None:
        yield
        return
    with wrapped(lm, lambda method: _in_order(method, seed)):
        yield


@contextlib.contextmanager
def wrapped(lm: Any, wrap: Callable[[Method], Method]) -> Iterator[None]:
    """While this lasts the methods of `lm` that answer requests are what `wrap` makes of them; nests."""
    before = {name: vars(lm)[name] for name in METHODS if name in vars(lm)}
    for name in METHODS:
        setattr(lm, name, wrap(getattr(lm, name)))
    try:
        yield
    finally:
        for name in METHODS:
            vars(lm).pop(name, None)
        for name, method in before.items():
            setattr(lm, name, method)


def _in_order(method: Method, seed: int) -> Method:
    def call(requests: Sequence[Any]) -> list[Any]:
        places = list(range(len(requests)))
        random.Random(seed).shuffle(places)
        answers = dict(zip(places, method([requests[place] for place in places]), strict=True))
        return [answers[place] for place in range(len(requests))]

    return call
