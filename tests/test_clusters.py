"""Documents that share a context are found, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecard.clusters import clusters
from scorecard.errors import SpecError

STORY = "Once upon a time there was a scorecard that told no lies."
OTHER = "A second story, which is as long as the first one was, if not longer."
ASKED = "Answer the question about the following text with one word."


def test_a_shared_passage_joins() -> None:
    documents = [
        {"passage": STORY, "question": "who?"},
        {"passage": OTHER, "question": "who?"},
        {"passage": STORY, "question": "when?"},
        {"passage": "short", "question": "who?"},
        {"passage": "short", "question": "when?"},
    ]
    assert clusters(documents) == [0, 1, 0, 3, 4]


def test_an_instruction_of_most_documents_does_not_join() -> None:
    documents = [{"instruction": ASKED, "text": text} for text in (STORY, OTHER, STORY, OTHER, "x")]
    assert clusters(documents) == [0, 1, 0, 1, 4]


def test_joined_over_others() -> None:
    first, second = STORY, OTHER
    documents = [{"a": first}, {"b": second}, {"a": first, "b": second}, {"c": first}, {}, {}]
    assert clusters(documents) == [0, 0, 0, 3, 4, 5]


def test_a_key_named_by_the_task() -> None:
    documents = [{"pair": 7, "text": STORY}, {"pair": 8, "text": STORY}, {"pair": 7, "text": OTHER}]
    assert clusters(documents, "pair") == [0, 1, 0]
    with pytest.raises(SpecError, match="a document has no 'group'"):
        clusters(documents, "group")


def test_documents_that_are_no_mappings() -> None:
    assert clusters(["text", STORY, STORY]) == [0, 1, 2]


@given(st.lists(st.integers(0, 6), max_size=60))
def test_a_cluster_is_named_by_its_first_document(groups: list[int]) -> None:
    found = clusters([{"group": group} for group in groups], "group")
    assert found == [groups.index(group) for group in groups]
