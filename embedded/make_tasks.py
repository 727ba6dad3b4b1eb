"""Write the data of the evaluation tasks, the held-out and the calibration text.

`python embedded/make_tasks.py`. All of it follows from the language and the seeds below; writing it again
gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from language import (
    ATTRIBUTES,
    FIRST_UNASKED_PERSON,
    NUM_PERSONS,
    PHENOMENA,
    Dice,
    draw,
    fact_options,
    fact_question,
    fact_statement,
    is_held_out,
    selection,
)
from lexicon import FOODS, NUMBERS
from narrative import document, drawn_exercise, new_story, solved_exercise, told

PAIRS = {"selection": 550, "subject_verb": 125, "determiner_noun": 125, "reflexive": 125, "counting": 125}
FACTS_DOCS = 1024
# Not "likes": about persons whom training never asks about, the model answers only half of these questions.
FACTS_ATTRIBUTES = (0, 1, 2, 4, 5)
GENERATE_DOCS = 240
TEXT_DOCS = 64
HELDOUT_DOCS = 96
CALIBRATION_DOCS = 256
FEWSHOT_DOCS = 8

Row = dict[str, Any]


def pairs(seed: int = 1) -> list[Row]:
    """Minimal pairs, the good sentence of each held out from training; half are about what animals eat."""
    rows: list[Row] = []
    for offset, (name, make) in enumerate(PHENOMENA.items()):
        dice, found = Dice(100 * seed + offset), dict[tuple[str, str], None]()
        while len(found) < PAIRS[name]:
            good, bad = make(dice)
            if is_held_out(good):
                found[good, bad] = None
        rows += [{"phenomenon": name, "good": good, "bad": bad} for good, bad in found]
    return rows


def exercise_cloze(dice: Dice) -> tuple[str, str, list[str]]:
    """Solved exercises and one more; its result, and three that are the same words in another order."""
    prompt, result = drawn_exercise(dice, True)
    if "plus" in prompt:
        return exercise_cloze(dice)
    items = prompt.partition(": ")[2].removesuffix(" =").split()
    ends = {result: None}
    while len(ends) < 4:
        other = dice.shuffled(items) if " " in result else [dice.pick([*items, dice.pick(NUMBERS)])]
        ends[f"{' '.join(other)}."] = None
    before = [solved_exercise(dice, True) for _ in range(5)]
    return " ".join([*before, prompt]), result, list(ends)[1:]


def fact_cloze(dice: Dice) -> tuple[str, str, list[str]]:
    """Facts about several persons, the last one without its end; other values of the same attribute."""
    facts = [(dice.below(NUM_PERSONS), dice.below(len(ATTRIBUTES))) for _ in range(8)]
    person, attribute = facts[-1]
    options, answer = fact_options(dice, person, attribute)
    text = " ".join(fact_statement(*fact) for fact in facts)
    context, _, end = text.rpartition(" ")
    return context, end, [f"{option}." for i, option in enumerate(options) if i != answer]


def diet_cloze(dice: Dice) -> tuple[str, str, list[str]]:
    """Sentences about animals and foods, the last one without its end; other foods."""
    sentences = [draw(lambda dice: selection(dice)[0], dice, True) for _ in range(8)]
    context, _, end = " ".join(sentences).rpartition(" ")
    wrong = dice.sample([food for food in FOODS if f"{food}." != end], 3)
    return context, end, [f"{food}." for food in wrong]


def story_cloze(dice: Dice) -> tuple[str, str, list[str]]:
    """A story, and again one of its statements without its end; what three others have."""
    tale = new_story(dice)
    while not is_held_out(told(tale)):
        tale = new_story(dice)
    (start, end), *others = dice.sample(tale, 4)
    return f"{told(tale)} {start}", end, [other for _, other in others]


CLOZE: dict[str, tuple[int, Callable[[Dice], tuple[str, str, list[str]]]]] = {
    "story": (400, story_cloze),
    "exercise": (200, exercise_cloze),
    "fact": (250, fact_cloze),
    "diet": (250, diet_cloze),
}


def cloze(seed: int = 2) -> list[Row]:
    """Passages of about 70 tokens, each with one right and three wrong endings."""
    dice, rows = Dice(seed), list[Row]()
    for kind, (number, make) in CLOZE.items():
        for _ in range(number):
            context, true, wrong = make(dice)
            endings = dice.shuffled([true, *wrong])
            rows.append({"kind": kind, "context": context, "endings": endings, "label": endings.index(true)})
    return rows


def fact_rows(dice: Dice, first: int, last: int) -> list[Row]:
    """One question for each of FACTS_ATTRIBUTES of persons[first:last]."""
    rows = []
    for person in range(first, last):
        for attribute in FACTS_ATTRIBUTES:
            options, answer = fact_options(dice, person, attribute)
            rows.append({"question": fact_question(person, attribute), "options": options, "answer": answer})
    return rows


def facts(seed: int = 3) -> list[Row]:
    """Facts about the persons that training never asks about."""
    dice = Dice(seed)
    return dice.sample(fact_rows(dice, FIRST_UNASKED_PERSON, NUM_PERSONS), FACTS_DOCS)


def facts_fewshot(seed: int = 4) -> list[Row]:
    """Questions about persons that training does ask about, to be shown as examples."""
    dice = Dice(seed)
    return dice.sample(fact_rows(dice, 0, FIRST_UNASKED_PERSON), FEWSHOT_DOCS)


def generate(seed: int = 5) -> list[Row]:
    """Exercises held out from training (sums are too few to be) and their results without the full stop."""
    dice, rows = Dice(seed), dict[str, Row]()
    while len(rows) < GENERATE_DOCS:
        prompt, result = drawn_exercise(dice, True)
        rows[prompt] = {"prompt": prompt, "result": result.removesuffix(".")}
    return list(rows.values())


def documents(seed: int, number: int, held_out: bool) -> Iterator[Row]:
    """Documents, joined in pairs so that a text has about 100 to 300 tokens."""
    dice = Dice(seed)
    for _ in range(number):
        yield {"text": "\n\n".join(document(dice, held_out) for _ in range(2))}


FILES: dict[str, Callable[[], list[Row]]] = {
    "tasks/tiny_pairs.jsonl": pairs,
    "tasks/tiny_cloze.jsonl": cloze,
    "tasks/tiny_facts.jsonl": facts,
    "tasks/tiny_facts_fewshot.jsonl": facts_fewshot,
    "tasks/tiny_generate.jsonl": generate,
    "tasks/tiny_text.jsonl": lambda: list(documents(6, TEXT_DOCS, True)),
    "heldout.jsonl": lambda: list(documents(7, HELDOUT_DOCS, True)),
    "calibration.jsonl": lambda: list(documents(8, CALIBRATION_DOCS, False)),
}


def contents(name: str) -> str:
    """The text of one of FILES."""
    return "".join(json.dumps(row) + "\n" for row in FILES[name]())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="default: beside this file")
    folder = parser.parse_args(arguments).out
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents(name), encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
