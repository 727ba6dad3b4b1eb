"""Logits a few positions at a time: bit for bit those of one forward pass, or else all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from scorecard import chunks
from scorecard.chunks import Logits

pytestmark = pytest.mark.backend

VOCABULARY, TOKENS, ROWS = 400, 45, 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With several a product of other sizes may be shared out, and added up, in another way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, **common)).eval()
    if kind == "gemma2":  # caps its logits after the head
        config = Gemma2Config(**common, **sizes, num_key_value_heads=1, final_logit_softcapping=2.0)
        return Gemma2ForCausalLM(config).eval()
    return LlamaForCausalLM(LlamaConfig(**common, **sizes)).eval()


@pytest.fixture(autouse=True)
def _few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "VALUES", VOCABULARY * ROWS)


def collected(model: Any, logits: Logits, tokens: torch.Tensor) -> tuple[torch.Tensor, list[int], int]:
    """All logits, the rows of each part, and the most rows that the model gave at once for the document."""
    most = 0

    def note(module: Any, given: Any, answer: Any) -> None:
        nonlocal most
        most = max(most, answer.logits.shape[1])

    logits._same(tokens, ROWS) if logits._equal is None else None  # the trial is not what is looked at
    hook = model.register_forward_hook(note)
    with torch.inference_mode():
        parts = [(rows, values.clone()) for rows, values in logits.of(tokens)]
    hook.remove()
    assert [rows.start for rows, _ in parts] == [0, *(rows.stop for rows, _ in parts[:-1])]
    return torch.cat([values for _, values in parts]), [len(values) for _, values in parts], most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_equals_one_forward_pass(kind: str, dtype: torch.dtype) -> None:
    model = model_of(kind).to(dtype)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    whole = model(input_ids=tokens).logits[0, :-1]
    found, rows, most = collected(model, Logits(model), tokens)
    assert torch.equal(found, whole)
    assert rows == [9, 9, 9, 9, 8]
    assert most == 9
    assert torch.equal(model(input_ids=tokens).logits[0, :-1], whole)  # the model is itself again


def test_the_body_runs_once_a_document() -> None:
    model, calls = model_of("llama"), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    logits, tokens = Logits(model), torch.randint(VOCABULARY, (1, TOKENS))
    list(logits.of(tokens))
    model.model.layers[0].register_forward_hook(count)
    list(logits.of(tokens))
    assert calls == 1


class OwnLogits(LlamaForCausalLM):
    """Does with its logits what depends on how many there are."""

    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        answer = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
        answer.logits = answer.logits - answer.logits.mean(1, keepdim=True)
        return answer


class NoChoice(torch.nn.Module):
    """Takes tokens, and nothing that says which logits are wanted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.inner(input_ids=input_ids)


@pytest.mark.parametrize("kind", ["other numbers", "no choice"])
def test_falls_back_to_one_forward_pass(kind: str) -> None:
    torch.manual_seed(0)
    model = NoChoice(model_of("llama")) if kind == "no choice" else OwnLogits(model_of("llama").config).eval()
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    whole = model(input_ids=tokens).logits[0, :-1]
    found, rows, most = collected(model, Logits(model), tokens)
    assert torch.equal(found, whole)
    assert rows == [10, 10, 10, 10, 4]  # compared in parts all the same
    assert most == TOKENS


def test_a_body_with_a_forward_of_its_own_gets_it_back() -> None:
    model, tokens = model_of("llama"), torch.randint(VOCABULARY, (1, TOKENS))
    own = model.model.forward
    model.model.forward = own
    list(Logits(model).of(tokens))
    assert vars(model.model)["forward"] is own


def test_short_documents_take_one_forward_pass() -> None:
    model, tokens = model_of("llama"), torch.randint(VOCABULARY, (1, 8))
    logits = Logits(model)
    ((rows, values),) = logits.of(tokens)
    assert (rows, logits._equal) == (slice(0, 7), None)
    assert torch.equal(values, model(input_ids=tokens).logits[0, :-1])
