"""What a model tells of the conditions it is scored under."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from scorecard import conditions


class Tokenizer:
    """A token for each character; ``start`` is put before texts unless special tokens are unwanted."""

    bos_token_id = 1

    def __init__(self, start: bool = True, shift: int = 100) -> None:
        self.start, self.shift = start, shift

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        begin = [self.bos_token_id] if self.start and add_special_tokens else []
        return {"input_ids": begin + [ord(letter) + self.shift for letter in text]}


def lm(tokenizer: Any, add_bos_token: bool | None = None, template: str | None = None) -> Any:
    return SimpleNamespace(
        tokenizer=tokenizer, add_bos_token=add_bos_token, chat_template=lambda wanted: template
    )


def test_tokenizers_are_told_apart_by_what_they_do() -> None:
    one, same, other = (conditions.of_tokenizer(lm(Tokenizer(shift=shift))) for shift in (100, 100, 101))
    assert one == same
    assert one["tokenizer_sha256"] != other["tokenizer_sha256"]
    assert len(one["tokenizer_sha256"]) == 64


def test_whether_texts_begin_with_bos_is_seen_and_not_asked() -> None:
    assert conditions.of_tokenizer(lm(Tokenizer()))["adds_bos"] is True
    assert conditions.of_tokenizer(lm(Tokenizer(), add_bos_token=False))["adds_bos"] is False
    assert conditions.of_tokenizer(lm(Tokenizer(start=False), add_bos_token=True))["adds_bos"] is False


def test_a_served_model_tells_what_its_process_found() -> None:
    served = SimpleNamespace(conditions={"tokenizer_sha256": "a" * 64, "adds_bos": True})
    assert conditions.of_model(served, chat=False) == {
        "tokenizer_sha256": "a" * 64,
        "adds_bos": True,
        "chat_template_sha256": None,
    }
    assert conditions.of_tokenizer(SimpleNamespace()) == {"tokenizer_sha256": None, "adds_bos": None}


def test_the_chat_template_counts_where_it_is_used() -> None:
    model = lm(Tokenizer(), template="{{ messages }}")
    assert conditions.of_model(model, chat=False)["chat_template_sha256"] is None
    used = conditions.of_model(model, chat=True)["chat_template_sha256"]
    assert used is not None
    assert used != conditions.of_model(lm(Tokenizer(), template="other"), chat=True)["chat_template_sha256"]
    assert conditions.of_model(lm(Tokenizer()), chat=True)["chat_template_sha256"] is None
