"""Overlap of calibration and evaluation texts, against a slow definition of the same."""

from __future__ import annotations

import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from runners._overlap import overlap


def slowly(seen: list[str], texts: list[str], ngram: int) -> list[int]:
    """Indices of the texts that overlap, one window after the other."""

    def windows(text: str, width: int) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}

    found = []
    for index, text in enumerate(texts):
        width = min(ngram, len(re.findall(r"\w+", text)))
        if width and any(windows(text, width) & windows(other, width) for other in seen):
            found.append(index)
    return found


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "B", "b", "c", "é", "1"]), max_size=9).map(" ".join), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(seen=TEXTS, texts=TEXTS, ngram=st.integers(1, 5))
def test_it_is_what_the_definition_says(seen: list[str], texts: list[str], ngram: int) -> None:
    expected = slowly(seen, texts, ngram)
    found = overlap(seen, texts, ngram)
    assert found["documents"] == len(expected)
    assert found["examples"] == expected[:5]
    assert found["of"] == len(texts)
    assert found["shorter"] == sum(len(text.split()) < ngram for text in texts)


def test_case_and_punctuation_do_not_hide_a_text() -> None:
    words = "One, two; three: four -- five (six) seven. Eight nine ten eleven twelve thirteen!"
    assert overlap([words.lower().replace(",", "")], [f"Before {words} after"])["documents"] == 1


def test_a_window_never_runs_over_the_end_of_a_text() -> None:
    first, second = "one two three four five six seven", "eight nine ten eleven twelve thirteen fourteen"
    assert overlap([first, second], [f"{first} {second}"])["documents"] == 0
    assert overlap([f"{first} {second}"], [first, second])["documents"] == 2  # short ones, whole


def test_nothing_overlaps_with_nothing() -> None:
    assert overlap([], ["a b", ""])["documents"] == 0
    assert overlap(["", "a"], [])["of"] == 0


def test_a_megabyte_takes_well_under_a_second() -> None:
    text = " ".join(f"word{(i * i) % 5003}" for i in range(1000))
    begin = time.process_time()
    found = overlap([text] * 100, [f"{text} x"] * 100)  # 0.8 MB each
    assert time.process_time() - begin < 3
    assert found["documents"] == 100
