"""Stories, exercises and whole documents of the synthetic language."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import lexicon as lex
from language import (
    ATTRIBUTES,
    FIRST_UNASKED_PERSON,
    HELD_OUT_ONE_IN,
    Dice,
    draw,
    fact_line,
    fact_question,
    is_held_out,
    quiz,
    sentence,
    world,
)

CAST = 8


def new_story(dice: Dice) -> list[tuple[str, str]]:
    """(beginning, end) of the statements of a story: who has what."""
    cast, owned = dice.sample(lex.FIRST_NAMES, CAST), dice.sample(lex.OBJECTS + lex.THINGS, CAST)
    return [(f"{person} has the", f"{thing}.") for person, thing in zip(cast, owned, strict=True)]


def told(statements: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{start} {end}" for start, end in statements)


def story(dice: Dice) -> str:
    """A story whose statements are then repeated in another order."""
    tale = new_story(dice)
    return told([*tale, *dice.shuffled(tale)])


def exercise(dice: Dice) -> tuple[str, str]:
    """A task for a rule and its result: `reverse: red blue =`, `blue red.`"""
    if dice.chance(0.25):
        a, b = dice.below(11), dice.below(11)
        return f"{lex.NUMBERS[a]} plus {lex.NUMBERS[b]} =", f"{lex.NUMBERS[a + b]}."
    rule, length = dice.pick(lex.RULES), 3 + dice.below(3)
    numbers = rule == "sort" or dice.chance(0.3)
    items = dice.sample(lex.NUMBERS if numbers else lex.COLORS + lex.OBJECTS, length)
    results = {
        "copy": items,
        "reverse": items[::-1],
        "rotate": items[1:] + items[:1],
        "sort": sorted(items, key=lex.NUMBERS.index) if numbers else items,
        "last": items[-1:],
    }
    return f"{rule}: {' '.join(items)} =", f"{' '.join(results[rule])}."


def drawn_exercise(dice: Dice, held_out: bool) -> tuple[str, str]:
    """An exercise on the wanted side of the split. Sums are too few to be split: they are on both sides."""
    while True:
        prompt, result = exercise(dice)
        if "plus" in prompt:
            if not held_out or dice.chance(1 / HELD_OUT_ONE_IN):  # as often as among all exercises
                return prompt, result
        elif is_held_out(prompt) is held_out:
            return prompt, result


def solved_exercise(dice: Dice, held_out: bool) -> str:
    return " ".join(drawn_exercise(dice, held_out))


def short_answer(dice: Dice) -> str:
    """A question about a person answered with the value itself."""
    person, attribute = dice.below(FIRST_UNASKED_PERSON), dice.below(len(ATTRIBUTES))
    return f"Question: {fact_question(person, attribute)}\nAnswer: {world().values[person][attribute]}"


Maker = Callable[[Dice, bool], str]


def _many(make: Maker, least: int, most: int, joint: str) -> Maker:
    def maker(dice: Dice, held_out: bool) -> str:
        return joint.join(make(dice, held_out) for _ in range(least + dice.below(most - least + 1)))

    return maker


# kind: (share of the documents in percent, maker). A document has about 40 to 200 tokens. What is held out of
# facts and questions is not their text but who is asked about, so those makers do not look at the split.
KINDS: dict[str, tuple[int, Maker]] = {
    "facts": (32, _many(lambda dice, _: fact_line(dice), 10, 24, " ")),
    "quiz": (18, _many(lambda dice, _: quiz(dice), 3, 6, "\n\n")),
    "answers": (5, _many(lambda dice, _: short_answer(dice), 4, 8, "\n\n")),
    "grammar": (20, _many(lambda dice, held_out: draw(sentence, dice, held_out), 8, 20, " ")),
    "story": (18, lambda dice, held_out: draw(story, dice, held_out)),
    "exercises": (7, _many(solved_exercise, 6, 14, " ")),
}


def document(dice: Dice, held_out: bool = False) -> str:
    """One document of the training distribution, or of the same made of held-out sentences."""
    point = dice.below(100)
    for share, make in KINDS.values():
        if point < share:
            return make(dice, held_out)
        point -= share
    raise ValueError("KINDS: the shares add up to less than 100")
