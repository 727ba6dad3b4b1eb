"""Where a spec's texts lie, and the held-out documents as a model's tokenizer cuts them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard.errors import DataUnavailable, SpecError

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Document:
    """A held-out document as the model sees it: ``tokens`` after truncation, all but the first predicted.

    ``index`` is its place in the file, ``characters`` how much of its text is used, ``bytes`` the UTF-8
    length of what the predicted tokens spell.
    """

    index: int
    tokens: tuple[int, ...]
    characters: int
    bytes: int

    @property
    def positions(self) -> int:
        return len(self.tokens) - 1


def locate(reference: str, suffix: str = "") -> Path:
    """The path that a spec names: ``embedded:NAME`` lies in the repository, all else is a path."""
    scheme, colon, name = reference.partition(":")
    if colon and scheme == "embedded":
        return REPOSITORY / "embedded" / f"{name}{suffix}"
    return Path(reference).expanduser().resolve()


def read_texts(name: str, count: int) -> list[str]:
    """The first ``count`` documents of a ``.jsonl`` (key ``text``) or ``.txt`` file (cut at blank lines)."""
    path = locate(name, ".jsonl")
    if not path.is_file():
        raise DataUnavailable(f"heldout: '{name}' is not on this machine; name a .jsonl or .txt file")
    if path.suffix not in (".jsonl", ".txt"):
        raise SpecError(f"heldout: '{name}' is of an unknown kind; write a .jsonl or .txt file")
    texts: list[str] = []
    with path.open(encoding="utf-8") as file:
        for text in _lines_of_json(file, name) if path.suffix == ".jsonl" else _paragraphs(file):
            texts.append(text)
            if len(texts) == count:
                break
    if not texts:
        raise SpecError(f"heldout: '{name}' holds no documents; write one JSON object with 'text' a line")
    return texts


def tokenized(lm: Any, texts: Sequence[str], limit: int) -> list[Document]:
    """Documents cut to ``limit`` tokens (and the model's context), special tokens as the model is used to."""
    special = getattr(lm, "add_bos_token", None)
    options = {} if special is None else {"add_special_tokens": special}
    limit = min(limit, lm.max_length)
    documents = [_document(lm.tokenizer, i, text, limit, options) for i, text in enumerate(texts)]
    return [d for d in documents if d.positions > 0]


def _document(tokenizer: Any, index: int, text: str, limit: int, options: dict[str, bool]) -> Document:
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(text, return_offsets_mapping=fast, verbose=False, **options)
    tokens = tuple(encoded["input_ids"][:limit])
    if not fast:
        whole, rest = (tokenizer.decode(t, skip_special_tokens=True) for t in (tokens, tokens[1:]))
        return Document(index, tokens, len(whole), len(rest.encode()))
    spans = encoded["offset_mapping"][:limit]
    end = max((stop for _, stop in spans), default=0)
    start = spans[1][0] if len(spans) > 1 else end
    return Document(index, tokens, end, len(text[start:end].encode()))


def _lines_of_json(lines: Iterator[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield str(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError):
            raise SpecError(f'heldout: {name}:{number}: is no document; write {{"text": "…"}}') from None


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).strip()
            paragraph = []
