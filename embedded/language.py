"""A synthetic language that a small model can only master by using the precision of its weights.

A fixed world of arbitrary facts (who lives where, which animal eats what) has to be memorised; grammar
asks for agreement across distractors; stories ask for
remembering who has what; rules ask
for copying, reversing, sorting and adding. All text is drawn from a `Dice`, which uses nothing of Python's
`random` beyond `Random.random()`, the one method whose sequence is guaranteed for a seed in every version.

Sentences are split by their own text: `is_held_out` says which belong to the evaluation tasks; the
training stream never contains those.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import lexicon as lex

T = TypeVar("T")

WORLD_SEED = 20_000
NUM_PERSONS = 1024
# Persons from this index on are never asked about in training, only stated; the fact task asks about them.
FIRST_UNASKED_PERSON = 512
HELD_OUT_ONE_IN = 16

# attribute: (statement, question, values)
ATTRIBUTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("lives in", "where does {} live?", lex.TOWNS),
    ("works as a", "what does {} work as?", lex.JOBS),
    ("keeps a", "what does {} keep?", lex.PETS),
    ("likes", "what does {} like?", lex.FOODS),
    ("fears the", "what does {} fear?", lex.PETS),
    ("hides", "what does {} hide?", lex.FOODS),
)
LETTERS = "ABCD"
EATERS = lex.ADJECTIVES[:4]


class Dice:
    """Seeded choices, the same on every platform and Python version."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different positions of items, in random order."""
        pool = list(items)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.sample(items, len(items))


@dataclass(frozen=True)
class World:
    """The facts: `persons[i]` has `values[i][a]` for attribute a; `diet[adjective, noun, verb]` is a food.

    Noun and verb of the diet are in the singular; the plural goes with the same food.
    """

    persons: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    diet: dict[tuple[str, str, str], str]


@cache
def world() -> World:
    """The one world that training data and tasks share."""
    dice = Dice(WORLD_SEED)
    everyone = [f"{first} {last}" for first in lex.FIRST_NAMES for last in lex.LAST_NAMES]
    persons = tuple(dice.sample(everyone, NUM_PERSONS))
    values = tuple(tuple(dice.pick(choices) for _, _, choices in ATTRIBUTES) for _ in persons)
    verbs = [singular for singular, _ in lex.TRANSITIVE]
    keys = [(adjective, noun, verb) for adjective in EATERS for noun in lex.PETS for verb in verbs]
    return World(persons, values, {key: dice.pick(lex.FOODS) for key in keys})


def is_held_out(text: str) -> bool:
    """Whether a sentence, story or exercise is kept for evaluation."""
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def draw(make: Callable[[Dice], str], dice: Dice, held_out: bool) -> str:
    """Draw until the text is on the wanted side of the split."""
    while is_held_out(text := make(dice)) is not held_out:
        pass
    return text


# -- facts ------------------------------------------------------------------------------------------------


def fact_statement(person: int, attribute: int) -> str:
    verb, _, _ = ATTRIBUTES[attribute]
    return f"{world().persons[person]} {verb} {world().values[person][attribute]}."


def fact_question(person: int, attribute: int) -> str:
    return ATTRIBUTES[attribute][1].format(world().persons[person])


def fact_options(dice: Dice, person: int, attribute: int) -> tuple[list[str], int]:
    """Four different values of the attribute and the position of the true one."""
    truth = world().values[person][attribute]
    wrong = dice.sample([value for value in ATTRIBUTES[attribute][2] if value != truth], len(LETTERS) - 1)
    answer = dice.below(len(LETTERS))
    return [*wrong[:answer], truth, *wrong[answer:]], answer


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The prompt of a multiple-choice question, up to and with `Answer:`."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([f"Question: {question}", *lines, "Answer:"])


def quiz(dice: Dice) -> str:
    """One answered multiple-choice question about a person who is asked about in training."""
    person, attribute = dice.below(FIRST_UNASKED_PERSON), dice.below(len(ATTRIBUTES))
    options, answer = fact_options(dice, person, attribute)
    return f"{multiple_choice(fact_question(person, attribute), options)} {options[answer]}"


def fact_line(dice: Dice) -> str:
    return fact_statement(dice.below(NUM_PERSONS), dice.below(len(ATTRIBUTES)))


# -- grammar ----------------------------------------------------------------------------------------------


def _noun(dice: Dice) -> tuple[str, str]:
    return dice.pick([*zip(lex.PETS, lex.PETS_PLURAL, strict=True), *lex.MEN, *lex.WOMEN])


def noun_phrase(dice: Dice, noun: str, number: int) -> str:
    """A determiner that agrees in number (0 singular, 1 plural), an adjective or none, and the noun."""
    determiner = dice.pick([*lex.DETERMINERS[number], "the"])
    adjective = f"{dice.pick(lex.ADJECTIVES)} " if dice.chance(0.4) else ""
    return f"{determiner} {adjective}{noun}"


def modifier(dice: Dice, number: int) -> str:
    """A phrase between subject and verb whose own noun has the given number, to distract from the subject."""
    noun = dice.pick([*zip(lex.PETS, lex.PETS_PLURAL, strict=True), *lex.MEN, *lex.WOMEN])[number]
    if dice.chance(0.6):
        return f"{dice.pick(lex.PREPOSITIONS)} {noun_phrase(dice, noun, number)}"
    return f"that {noun_phrase(dice, noun, number)} {dice.pick(lex.REFLEXIVE_VERBS)[number]}"


def subject(dice: Dice, noun: str, number: int) -> str:
    phrase = noun_phrase(dice, noun, number)
    return f"{phrase} {modifier(dice, dice.below(2))}" if dice.chance(0.6) else phrase


def intransitive(dice: Dice) -> tuple[str, str]:
    """A sentence and its twin whose verb does not agree with the subject."""
    number = dice.below(2)
    head = subject(dice, _noun(dice)[number], number)
    verb = dice.pick(lex.INTRANSITIVE)
    return f"{head} {verb[number]}.", f"{head} {verb[1 - number]}."


def determiner(dice: Dice) -> tuple[str, str]:
    """A sentence and its twin whose determiner does not agree with its noun."""
    number, noun, verb = dice.below(2), _noun(dice), dice.pick(lex.INTRANSITIVE)
    good = dice.pick(lex.DETERMINERS[number])
    bad = dice.pick(lex.DETERMINERS[1 - number])
    rest = " ".join([*dice.sample(lex.ADJECTIVES, dice.below(3)), noun[number], verb[number]])
    return f"{good} {rest}.", f"{bad} {rest}."


def reflexive(dice: Dice) -> tuple[str, str]:
    """A sentence and its twin whose reflexive pronoun has the wrong gender or number."""
    number, gender = dice.below(2), dice.below(2)
    head = subject(dice, dice.pick((lex.MEN, lex.WOMEN)[gender])[number], number)
    forms = ["himself", "herself", "themselves"]
    good = forms.pop(2 if number else gender)
    verb = dice.pick(lex.REFLEXIVE_VERBS)[number]
    return f"{head} {verb} {good}.", f"{head} {verb} {dice.pick(forms)}."


def selection(dice: Dice) -> tuple[str, str]:
    """A sentence about what an animal does with a food, and its twin with another food."""
    number, animal = dice.below(2), dice.below(len(lex.PETS))
    adjective, verb = dice.pick(EATERS), dice.pick(lex.TRANSITIVE)
    food = world().diet[adjective, lex.PETS[animal], verb[0]]
    noun = (lex.PETS, lex.PETS_PLURAL)[number][animal]
    head = f"{dice.pick([*lex.DETERMINERS[number], 'the'])} {adjective} {noun} {verb[number]}"
    return f"{head} {food}.", f"{head} {dice.pick([other for other in lex.FOODS if other != food])}."


def counting(dice: Dice) -> tuple[str, str]:
    """A run of numbers, up or down, and its twin with one number out of its place."""
    number, length, step = dice.below(2), 4 + dice.below(3), 1 + dice.below(3)
    start = dice.below(len(lex.NUMBERS) - step * (length - 1))
    run = [lex.NUMBERS[start + step * i] for i in range(length)][:: dice.pick((1, -1))]
    twin, place = list(run), 2 + dice.below(length - 2)
    twin[place] = dice.pick([n for n in lex.NUMBERS if n != run[place]])
    head = f"{noun_phrase(dice, _noun(dice)[number], number)} {('counts', 'count')[number]}"
    return f"{head} {' '.join(run)}.", f"{head} {' '.join(twin)}."


PHENOMENA: dict[str, Callable[[Dice], tuple[str, str]]] = {
    "subject_verb": intransitive,
    "determiner_noun": determiner,
    "reflexive": reflexive,
    "selection": selection,
    "counting": counting,
}


def sentence(dice: Dice) -> str:
    """A grammatical sentence; most of them are about what animals do with food."""
    name = "selection" if dice.chance(0.6) else dice.pick(tuple(PHENOMENA))
    return PHENOMENA[name](dice)[0]
