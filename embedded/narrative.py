"""Stories, exercises and whole documents of the synthetic language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import lexicon as lex
from language import (
    ATTRIBUTES,
    FIRST_UNASKED_PERSON,
    Dice,
    draw,
    fact_line,
    fact_question,
    is_held_out,
    quiz,
    sentence,
    world,
)

CAST = 4


@dataclass
class Story:
    """What has been told so far, and the state of things that follows from it.

    `where` maps each person to a place, `holder` each object to a person, `color` each thing to a color.
    """

    cast: list[str]
    sentences: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    color: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)

    def tell(self, dice: Dice) -> None:
        """One more event: someone moves, or takes or gives an object, or a thing gets a color."""
        kind = dice.below(5)
        if kind < 2:
            self._move(dice)
        elif kind < 4:
            self._hold(dice)
        else:
            self._paint(dice)

    def _move(self, dice: Dice) -> None:
        person = dice.pick(self.cast)
        place = dice.pick([place for place in lex.PLACES if place != self.where.get(person)])
        self.where[person] = place
        self.places.append(place)
        self.sentences.append(f"{person} goes to the {place}.")

    def _hold(self, dice: Dice) -> None:
        if self.holder and dice.chance(0.5):
            thing = dice.pick(sorted(self.holder))
            giver = self.holder[thing]
            taker = dice.pick([person for person in self.cast if person != giver])
            self.sentences.append(f"{giver} gives the {thing} to {taker}.")
        else:
            thing = dice.pick([thing for thing in lex.OBJECTS if thing not in self.holder] or lex.OBJECTS)
            taker = dice.pick(self.cast)
            self.sentences.append(f"{taker} takes the {thing}.")
        self.holder[thing] = taker

    def _paint(self, dice: Dice) -> None:
        thing = dice.pick(lex.THINGS)
        self.color[thing] = dice.pick(lex.COLORS)
        self.sentences.append(f"the {thing} is {self.color[thing]}.")

    def truths(self) -> list[tuple[str, str, list[str]]]:
        """Every (beginning, true ending, wrong endings named in the story where possible) that now holds."""
        places = list(dict.fromkeys(self.places))
        found = [(f"{p} is in the", place, places) for p, place in self.where.items()]
        found += [(f"the {o} is with", person, self.cast) for o, person in self.holder.items()]
        found += [(f"the {t} is", c, sorted(set(self.color.values()))) for t, c in self.color.items()]
        return [(start, true, [end for end in ends if end != true]) for start, true, ends in found]


def new_story(dice: Dice) -> Story:
    return Story(dice.sample(lex.FIRST_NAMES, CAST))


def story(dice: Dice) -> str:
    """A story with statements about its present state told in between, and more of them at its end."""
    tale = new_story(dice)
    for _ in range(8 + dice.below(6)):
        tale.tell(dice)
        if dice.chance(0.6):
            start, true, _ = dice.pick(tale.truths())
            tale.sentences.append(f"{start} {true}.")
    for start, true, _ in dice.sample(tale.truths(), min(4, len(tale.truths()))):
        tale.sentences.append(f"{start} {true}.")
    return " ".join(tale.sentences)


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


def solved_exercise(dice: Dice, held_out: bool) -> str:
    """An exercise with its result. Sums are too few to keep some of them back."""
    while True:
        prompt, result = exercise(dice)
        if "plus" in prompt or is_held_out(prompt) is held_out:
            return f"{prompt} {result}"


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
    "facts": (20, _many(lambda dice, _: fact_line(dice), 10, 24, " ")),
    "quiz": (30, _many(lambda dice, _: quiz(dice), 3, 6, "\n\n")),
    "answers": (5, _many(lambda dice, _: short_answer(dice), 4, 8, "\n\n")),
    "grammar": (13, _many(lambda dice, held_out: draw(sentence, dice, held_out), 8, 20, " ")),
    "story": (25, lambda dice, held_out: draw(story, dice, held_out)),
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
