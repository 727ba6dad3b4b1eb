"""Requests shaped like those of well-known tasks, from seeded random words.

Only lengths and what requests share matter for speed, so these follow the real tasks. A shape gives lengths
as deciles (smallest, 10 %, … largest), in words and punctuation marks (``\\w+|[^\\w\\s]``), which is some
10–20 % less than a byte-pair tokenizer makes of them. ARC-Easy, PIQA, LAMBADA and GSM8K were counted over
the whole evaluation split, in lm-eval's template. HellaSwag, WinoGrande, MMLU and wikitext are set by their
published descriptions, not counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.models import WORDS, word

Deciles = tuple[int, ...]
ZIPF = 1.0  # natural text repeats its words; the exponent of that
GENERATED = 100  # tokens; the median answer of GSM8K has 94


@dataclass(frozen=True)
class Task:
    """``requests`` of one ``kind`` (the LM's method); ``owners[i]`` is the document that request i is of."""

    name: str
    kind: str
    requests: list[tuple[Any, ...]] = field(repr=False)
    owners: list[int] = field(repr=False)

    def part(self) -> Task:
        """The beginning of it: a quarter of the requests, 64 where there are so many."""
        end = max(64, len(self.requests) // 4)
        return Task(self.name, self.kind, self.requests[:end], self.owners[:end])


class Words:
    """Texts of random words with a natural frequency, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._population = [word(i) for i in range(WORDS - 3)]
        total, self._cumulated = 0.0, []
        for rank in range(1, len(self._population) + 1):
            total += rank**-ZIPF
            self._cumulated.append(total)

    def length(self, deciles: Deciles) -> int:
        """A length drawn from the distribution with these deciles, straight lines between them."""
        place = self._random.random() * (len(deciles) - 1)
        low = int(place)
        return round(deciles[low] + (place - low) * (deciles[low + 1] - deciles[low]))

    def text(self, deciles: Deciles) -> str:
        return " ".join(
            self._random.choices(self._population, cum_weights=self._cumulated, k=self.length(deciles))
        )


Documents = Callable[[Words, int], Iterator[list[tuple[Any, ...]]]]


def choices(count: int, context: Deciles, ending: Deciles, common: Deciles = (0, 0)) -> Documents:
    """``count`` endings after one context; ``common`` words at the beginning of each ending are the same."""

    def documents(words: Words, many: int) -> Iterator[list[tuple[Any, ...]]]:
        for _ in range(many):
            start, same = words.text(context), words.text(common)
            yield [(start, " " + f"{same} {words.text(ending)}".strip()) for _ in range(count)]

    return documents


def options(context: Deciles, ending: Deciles) -> Documents:
    """One ending after two contexts that differ in their last word: WinoGrande's way."""

    def documents(words: Words, many: int) -> Iterator[list[tuple[Any, ...]]]:
        for _ in range(many):
            start, end = words.text(context), words.text(ending)
            yield [(f"{start} {words.text((1, 1))}", f" {end}") for _ in range(2)]

    return documents


def letters(shots: int, question: Deciles) -> Documents:
    """Four one-token choices after few-shot examples that all documents share: a subject of MMLU."""

    def documents(words: Words, many: int) -> Iterator[list[tuple[Any, ...]]]:
        examples = " ".join(words.text(question) for _ in range(shots))
        for _ in range(many):
            context = f"{examples} {words.text(question)}"
            yield [(context, f" {word(letter)}") for letter in range(4)]

    return documents


def generation(shots: int, example: Deciles, question: Deciles) -> Documents:
    """A question after examples that all documents share, ``GENERATED`` tokens to write: GSM8K's way.

    Real answers are not all as long; that costs HFLM more, whose batches wait for the longest.
    """
    settings = {"until": ["Question:", "</s>"], "do_sample": False, "max_gen_toks": GENERATED}

    def documents(words: Words, many: int) -> Iterator[list[tuple[Any, ...]]]:
        examples = " ".join(words.text(example) for _ in range(shots))
        for _ in range(many):
            yield [(f"{examples} {words.text(question)}", settings)]

    return documents


def texts(length: Deciles) -> Documents:
    def documents(words: Words, many: int) -> Iterator[list[tuple[Any, ...]]]:
        for _ in range(many):
            yield [(words.text(length),)]

    return documents


_ARC = ((8, 13, 15, 17, 19, 21, 25, 29, 34, 44, 141), (1, 1, 1, 2, 2, 3, 4, 6, 7, 9, 27))
_PIQA = ((5, 6, 9, 10, 11, 12, 13, 14, 15, 17, 29), (1, 2, 3, 5, 7, 9, 11, 14, 19, 28, 120))
_PIQA_COMMON = (0, 0, 1, 2, 2, 3, 5, 7, 11, 21, 98)  # of the two solutions
_HELLASWAG = ((15, 25, 30, 40, 65, 85, 100, 110, 120, 130, 160), (4, 10, 14, 18, 26, 34, 42, 48, 54, 62, 80))
_LAMBADA = ((57, 64, 66, 68, 71, 73, 76, 79, 83, 89, 203), (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7))
_MMLU = (30, 42, 48, 55, 62, 70, 80, 95, 120, 170, 400)
_GSM8K = (23, 36, 40, 45, 50, 55, 59, 65, 72, 85, 185)
_GSM8K_EXAMPLE = (57, 94, 107, 119, 132, 145, 160, 177, 197, 231, 436)
_WIKITEXT = (600, 1200, 1700, 2300, 2900, 3500, 4300, 5200, 6400, 8500, 14000)

# name: method of the LM, documents by default, how they are made
SHAPES: dict[str, tuple[str, int, Documents]] = {
    "hellaswag": ("loglikelihood", 40, choices(4, *_HELLASWAG)),
    "arc": ("loglikelihood", 100, choices(4, *_ARC)),
    "piqa": ("loglikelihood", 80, choices(2, *_PIQA, common=_PIQA_COMMON)),
    "winogrande": (
        "loglikelihood",
        100,
        options((4, 8, 9, 10, 11, 12, 13, 14, 16, 18, 25), (1, 3, 4, 5, 6, 7, 8, 9, 11, 13, 22)),
    ),
    "mmlu": ("loglikelihood", 40, letters(5, _MMLU)),
    "lambada": ("loglikelihood", 80, choices(1, *_LAMBADA)),
    "gsm8k": ("generate_until", 32, generation(5, _GSM8K_EXAMPLE, _GSM8K)),
    "wikitext": ("loglikelihood_rolling", 2, texts(_WIKITEXT)),
}


def task(name: str, documents: int | None, seed: int) -> Task:
    """The requests of ``documents`` documents (``None``: as many as the shape has by default)."""
    kind, many, make = SHAPES[name]
    words = Words(seed)
    rows = list(make(words, documents or many))
    owners = [place for place, group in enumerate(rows) for _ in group]
    return Task(name, kind, [row for group in rows for row in group], owners)
