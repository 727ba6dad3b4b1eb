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
    HELD_OUT_ONE_IN,
    NUM_PERSONS,
    PHENOMENA,
    Dice,
    fact_options,
    fact_question,
    is_held_out,
)
from narrative import document, exercise, new_story

PAIRS_PER_PHENOMENON = 205
CLOZE_DOCS = 1000
GENERATE_DOCS = 240
TEXT_DOCS = 64
HELDOUT_DOCS = 96
CALIBRATION_DOCS = 256
FEWSHOT_DOCS = 8

Row = dict[str, Any]


def pairs(seed: int = 1) -> list[Row]:
    """Minimal pairs, the good sentence of each held out from training, as many for each phenomenon."""
    rows: list[Row] = []
    for offset, (name, make) in enumerate(PHENOMENA.items()):
        dice, seen = Dice(100 * seed + offset), set[str]()
        while len(seen) < PAIRS_PER_PHENOMENON:
            good, bad = make(dice)
            if is_held_out(good) and good not in seen:
                seen.add(good)
                rows.append({"phenomenon": name, "good": good, "bad": bad})
    return rows


def cloze(seed: int = 2) -> list[Row]:
    """Stories, each with a true statement to end it and three whose last word belongs to someone else."""
    dice, rows = Dice(seed), list[Row]()
    while len(rows) < CLOZE_DOCS:
        tale = new_story(dice)
        context = " ".join(tale.told)
        if is_held_out(context):
            kind = dice.pick(tale.kinds)
            start, true = dice.pick(kind)
            endings = dice.shuffled([f"{start} {value}." for _, value in kind])
            rows.append({"context": context, "endings": endings, "label": endings.index(f"{start} {true}.")})
    return rows


def fact_rows(dice: Dice, first: int, last: int) -> list[Row]:
    """One question for each attribute of persons[first:last]."""
    rows = []
    for person in range(first, last):
        for attribute in range(len(ATTRIBUTES)):
            options, answer = fact_options(dice, person, attribute)
            rows.append({"question": fact_question(person, attribute), "options": options, "answer": answer})
    return rows


def facts(seed: int = 3) -> list[Row]:
    """Every fact about the persons that training never asks about."""
    dice = Dice(seed)
    return dice.shuffled(fact_rows(dice, FIRST_UNASKED_PERSON, NUM_PERSONS))


def facts_fewshot(seed: int = 4) -> list[Row]:
    """Questions about persons that training does ask about, to be shown as examples."""
    dice = Dice(seed)
    return dice.sample(fact_rows(dice, 0, FIRST_UNASKED_PERSON), FEWSHOT_DOCS)


def generate(seed: int = 5) -> list[Row]:
    """Exercises held out from training (sums are too few to be) and their results without the full stop."""
    dice, rows = Dice(seed), dict[str, Row]()
    while len(rows) < GENERATE_DOCS:
        prompt, result = exercise(dice)
        if dice.chance(1 / HELD_OUT_ONE_IN) if "plus" in prompt else is_held_out(prompt):
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
