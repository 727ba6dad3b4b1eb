"""Which documents of a task share a context, and so are right or wrong together more often than not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from scorecard.errors import SpecError

#: A text shorter than this is a label, such as a subject or a kind of question; not what is asked about.
SHORTEST_CONTEXT = 40


def clusters(documents: Sequence[Any], field: str | None = None) -> list[int]:
    """For each document the place of the first one that it shares a context with, its own if with none.

    With `field`, documents share a context when they agree in that key; raises SpecError if one lacks it.
    Otherwise when some text of at least SHORTEST_CONTEXT characters under a key of their own (a passage, a
    story, a dialogue) is the same. A text of more than half of the documents is an instruction, and does
    not count.
    """
    if field is not None:
        return _joined([[_value(document, field)] for document in documents])
    texts = [_texts(document) for document in documents]
    counts = Counter(text for found in texts for text in found)
    return _joined([[text for text in found if counts[text] <= len(documents) / 2] for found in texts])


def _value(document: Any, field: str) -> Hashable:
    if not isinstance(document, Mapping) or field not in document:
        raise SpecError(f"metadata.cluster: a document has no '{field}'; write a key that all documents have")
    return repr(document[field])


def _texts(document: Any) -> list[Hashable]:
    """Long texts of a document, each with its key: the same words as question and as answer are two."""
    if not isinstance(document, Mapping):
        return []
    texts = [(key, value) for key, value in document.items() if isinstance(value, str)]
    return [(key, text) for key, text in texts if len(text) >= SHORTEST_CONTEXT]


def _joined(shared: Sequence[Sequence[Hashable]]) -> list[int]:
    """Places joined wherever they have something in common, directly or over others (union-find)."""
    root = list(range(len(shared)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    first: dict[Hashable, int] = {}
    for place, found in enumerate(shared):
        for item in found:
            a, b = find(first.setdefault(item, place)), find(place)
            root[max(a, b)] = min(a, b)
    return [find(place) for place in range(len(shared))]
