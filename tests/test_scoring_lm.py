"""The LM that shares work gives each request the numbers that lm-eval's HFLM gives it alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runners._scoring import memory, probe
from runners._scoring.lm import FastLM, make_lm
from scorecard.documents import REPOSITORY
from scorecard.errors import SpecError

pytestmark = pytest.mark.backend

EMBEDDED = REPOSITORY / "embedded" / "tiny-llama"
SHARED = REPOSITORY.parent / "shared" / "data"
MAX_LENGTH = 100
WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "one",
    "two",
    "three",
    "dog",
    "who",
    "went",
    "and",
    "saw",
    "it",
)
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}

# name, further configuration, the longest text that shares work (0: none does)
MODELS: list[tuple[str, dict[str, Any], int]] = [
    ("Llama", LLAMA, MAX_LENGTH),
    ("Llama", {**LLAMA, "attn_implementation": "eager"}, MAX_LENGTH),
    ("Qwen2", LLAMA, MAX_LENGTH),
    ("Qwen3", {**LLAMA, "head_dim": 8}, MAX_LENGTH),
    ("Mistral", {**LLAMA, "sliding_window": None}, MAX_LENGTH),
    ("Mistral", {**LLAMA, "sliding_window": 16}, 16),
    ("Gemma2", {**LLAMA, "head_dim": 8, "sliding_window": 48, "final_logit_softcapping": 2.0}, 48),
    ("Cohere", {**LLAMA, "logit_scale": 0.1}, MAX_LENGTH),
    ("Granite", {**LLAMA, "logits_scaling": 4.0}, MAX_LENGTH),
    ("Phi", LLAMA, MAX_LENGTH),
    ("Mixtral", {**LLAMA, "num_local_experts": 4}, MAX_LENGTH),
    (
        "OPT",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3},
        MAX_LENGTH,
    ),
    ("GPT2", GPT2, MAX_LENGTH),
    ("GPTBigCode", GPT2, MAX_LENGTH),
    (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "initializer_range": 0.3,
        },
        0,
    ),
    ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}, 0),
    ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "initializer_range": 0.3}, 0),
    ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}, 0),
]


@dataclass(frozen=True)
class Asked:
    """What is read of an ``lm_eval.api.instance.Instance``."""

    args: tuple[Any, ...]
    task_name: str = "task"


def requests(rows: list[tuple[Any, ...]]) -> list[Asked]:
    return [Asked(row) for row in rows]


def texts() -> list[tuple[str, str]]:
    """Choices after one context, documents after one prompt, and what is odd."""
    generator = random.Random(1)

    def some(count: int) -> str:
        return " ".join(generator.choices(WORDS, k=count))

    rows = []
    for _ in range(4):
        context = some(8)
        rows += [(context, f" {some(3)}") for _ in range(4)]
    prompt = some(20)
    for _ in range(4):
        context = f"{prompt} {some(4)}"
        rows += [(context, f" {letter}") for letter in "ABCD"]  # one token each: one prediction for all
    odd = [
        ("The cat sat on the ", "mat."),  # a space that ends the context
        ("The cat sat on the  ", " dog"),
        ("", "The cat"),
        ("", "<s>The cat"),  # its first token stands before a text without context
        ("<s>The cat", " sat"),
        ("na\u00efve \U0001f600", " caf\u00e9"),
        ("a", " b c d e f g"),
        ("a b", " c d e f g"),  # the same text, cut elsewhere
        ("a b c", " d e"),  # the beginning of another
        ("word " * 25, "the end of it"),  # more than the model takes
        ("word " * 26, "the end of it"),
    ]
    return rows + odd + rows[:1]  # one twice


TEXTS = texts()
ROLLING = [("A short one.",), ("",), ("x",), ("one two three four. " * 12,), ("<s>The cat",), ("x",)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED)


def model(kind: str, settings: dict[str, Any], vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **settings)
    classes = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return classes[type(config)](config).eval()


def hflm(model: Any, tokenizer: Any, **settings: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **settings)


def alone(lm: Any, rows: list[tuple[Any, ...]]) -> list[tuple[float, bool]]:
    """HFLM's answer to each request that is not asked together with others."""
    return [lm.loglikelihood([Asked(row)], disable_tqdm=True)[0] for row in rows]


def assert_equal(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]], tolerance: float) -> None:
    assert [logprob for logprob, _ in ours] == pytest.approx([x for x, _ in theirs], rel=tolerance)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def tiny(tokenizer: Any, kind: str = "Llama", settings: dict[str, Any] = LLAMA) -> Any:
    return model(kind, settings, len(tokenizer))


def embedded(dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=dtype).eval()


@pytest.mark.parametrize(("kind", "settings", "longest"), MODELS, ids=lambda value: str(value)[:12])
def test_every_request_gets_the_number_of_lm_eval(
    kind: str, settings: dict[str, Any], longest: int, tokenizer: Any
) -> None:
    loaded = tiny(tokenizer, kind, settings)
    theirs = hflm(loaded, tokenizer, max_length=MAX_LENGTH)
    ours = FastLM(loaded, tokenizer, max_length=MAX_LENGTH)
    assert_equal(ours.loglikelihood(requests(TEXTS)), alone(theirs, TEXTS), 2e-6)
    expected = theirs.loglikelihood_rolling(requests(ROLLING), disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests(ROLLING)) == pytest.approx(expected, rel=2e-6)
    assert ours._ability.longest == longest
    assert len(ours.notes) == (longest < MAX_LENGTH)


@pytest.mark.parametrize(("add_bos_token", "max_length"), [(None, None), (None, 30), (True, 30), (False, 30)])
def test_a_trained_model_with_every_tokenization(
    add_bos_token: bool | None, max_length: int | None, tokenizer: Any
) -> None:
    loaded = embedded(torch.float32)
    settings = {"add_bos_token": add_bos_token, "max_length": max_length}
    theirs, ours = hflm(loaded, tokenizer, **settings), FastLM(loaded, tokenizer, **settings)
    assert_equal(ours.loglikelihood(requests(TEXTS)), alone(theirs, TEXTS), 1e-6)


def test_in_16_bits_the_numbers_are_those_of_the_logits_in_float32(tokenizer: Any) -> None:
    loaded = embedded(torch.bfloat16)
    theirs, ours = hflm(loaded, tokenizer, softmax_dtype="float32"), FastLM(loaded, tokenizer)
    found, expected = ours.loglikelihood(requests(TEXTS)), alone(theirs, TEXTS)
    assert [logprob for logprob, _ in found] == pytest.approx([x for x, _ in expected], rel=2e-2)
    assert not ours.notes


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data are not here")
def test_the_llama_of_another_project() -> None:
    folder = SHARED / "models" / "stories260k-pad"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own = transformers.AutoTokenizer.from_pretrained(folder)
    theirs, ours = hflm(loaded, own), FastLM(loaded, own)
    assert_equal(ours.loglikelihood(requests(TEXTS)), alone(theirs, TEXTS), 1e-6)


def test_tokens_and_rows_of_the_head_are_few(tokenizer: Any) -> None:
    lm = FastLM(tiny(tokenizer), tokenizer, max_length=MAX_LENGTH)
    prompt = " ".join(WORDS * 2)
    documents = [f"{prompt} {word} {word}" for word in WORDS]
    rows = [(document, f" {letter}") for document in documents for letter in "ABCD"]
    lm.loglikelihood(requests(rows))  # the first call also checks one of its answers
    lm.tokens_forwarded = lm.rows_read = 0
    lm.loglikelihood(requests(rows))
    assert lm.rows_read == len(documents)  # the choices are one token each
    last = {document.rpartition(" ")[0] for document in documents}
    whole = max(len(tokenizer(document)["input_ids"]) for document in documents)
    assert lm.tokens_forwarded < whole + 2 * 3 * len(last)


def test_each_text_is_tokenized_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = FastLM(tiny(tokenizer), tokenizer, max_length=MAX_LENGTH)
    seen: list[str] = []
    plain = type(tokenizer).__call__

    def spy(self: Any, batch: list[str], **settings: Any) -> Any:
        seen.extend(batch)
        return plain(self, batch, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", spy)
    monkeypatch.setattr(type(tokenizer), "encode", lambda *given, **settings: pytest.fail("one by one"))
    lm.loglikelihood(requests(TEXTS[:16]))
    assert len(seen) == len(set(seen)) == 4 + 16


def fails_above(tokens: int, error: Callable[[], BaseException], states: Any) -> Any:
    def limited(**inputs: Any) -> Any:
        if inputs["input_ids"].numel() > tokens:
            raise error()
        return states(**inputs)

    return limited


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_makes_smaller_passes(error: Any, tokenizer: Any) -> None:
    loaded = tiny(tokenizer)
    lm = FastLM(loaded, tokenizer, max_length=MAX_LENGTH)
    expected = lm.loglikelihood(requests(TEXTS))
    object.__setattr__(lm._parts, "states", fails_above(20, error, lm._parts.states))
    assert_equal(lm.loglikelihood(requests(TEXTS)), expected, 2e-6)
    assert lm._engine.tokens <= 20


def test_out_of_memory_that_nothing_mends_is_told(tokenizer: Any) -> None:
    for kind, settings, _ in (MODELS[0], MODELS[-1]):
        lm = FastLM(tiny(tokenizer, kind, settings), tokenizer, max_length=MAX_LENGTH)
        lm._engine  # noqa: B018 - the probe still has memory
        object.__setattr__(lm._parts, "states", fails_above(3, MemoryError, lm._parts.states))
        with pytest.raises(MemoryError):
            lm.loglikelihood(requests(TEXTS))


def test_other_errors_are_not_taken_for_want_of_memory(tokenizer: Any) -> None:
    lm = FastLM(tiny(tokenizer), tokenizer, max_length=MAX_LENGTH)
    lm._engine  # noqa: B018
    object.__setattr__(lm._parts, "states", fails_above(0, lambda: RuntimeError("shapes"), lm._parts.states))
    with pytest.raises(RuntimeError, match="shapes"):
        lm.loglikelihood(requests(TEXTS))


def test_little_free_memory_makes_small_passes(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(tokenizer)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100 * memory.token_bytes(loaded))
    assert memory.pass_tokens(loaded, torch.device("cpu")) == 50
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert memory.pass_tokens(loaded, torch.device("cpu")) == memory.LEAST_TOKENS


def test_what_the_probe_cannot_see_is_found_in_long_rows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window by places in the row that is longer than the probe's rows, and that no field names."""
    monkeypatch.setattr(probe, "_BY_PLACE", ())
    kind, settings, _ = next(each for each in MODELS if each[0] == "GPTNeo")
    loaded = tiny(tokenizer, kind, settings)
    ours = FastLM(loaded, tokenizer, max_length=MAX_LENGTH)
    theirs = hflm(loaded, tokenizer, max_length=MAX_LENGTH)
    found = ours.loglikelihood(requests(TEXTS))
    assert_equal(found, alone(theirs, TEXTS), 2e-6)
    assert len(ours.notes) == 1
    assert "share no work" in ours.notes[0]


def test_a_model_whose_head_cannot_be_told_apart_is_scored_from_its_logits(tokenizer: Any) -> None:
    class Bent(transformers.LlamaForCausalLM):
        def forward(self, *given: Any, **settings: Any) -> Any:
            output = super().forward(*given, **settings)
            output.logits = output.logits.sigmoid()
            return output

    torch.manual_seed(0)
    loaded = Bent(transformers.LlamaConfig(vocab_size=len(tokenizer), **LLAMA)).eval()
    ours = FastLM(loaded, tokenizer, max_length=MAX_LENGTH)
    theirs = hflm(loaded, tokenizer, max_length=MAX_LENGTH)
    assert_equal(ours.loglikelihood(requests(TEXTS)), alone(theirs, TEXTS), 2e-6)
    assert ours._parts.whole
    assert ours._ability.longest == MAX_LENGTH


def test_windows_by_configuration() -> None:
    def longest(**settings: Any) -> int | None:
        return probe.longest_shared(transformers.PretrainedConfig(**settings))

    assert longest() is None
    assert longest(sliding_window=16) == 16
    assert longest(sliding_window=16, use_sliding_window=False) is None
    assert longest(sliding_window=16, attention_chunk_size=8) == 8
    assert longest(alibi=True) == 0
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert longest(rope_scaling=scaled, max_position_embeddings=4096, sliding_window=9999) == 4096


def test_lm_eval_scores_a_task_with_it(tokenizer: Any, tmp_path: Path) -> None:
    from scorecard.evaluate import evaluate
    from scorecard.spec import EvalSpec

    loaded = embedded(torch.float32)
    spec = EvalSpec(
        ("tiny_pairs", "tiny_cloze", "tiny_text", "tiny_generate"),
        task_paths=("embedded:tasks",),
        limit=4,
        heldout=None,
    )
    results = [
        evaluate(lm, spec, reference=None, write_reference=None, documents=tmp_path / "documents.parquet")
        for lm in (make_lm(loaded, tokenizer), hflm(loaded, tokenizer))
    ]
    values = [{name: score["value"] for name, score in result["tasks"].items()} for result in results]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_model_with_an_encoder_is_left_to_lm_eval(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(0)
    loaded = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=len(tokenizer), **shape)
    ).eval()
    lm = make_lm(loaded, tokenizer)
    assert len(lm.loglikelihood([Asked(("a cat", " sat"))], disable_tqdm=True)) == 1
    assert "encoder-decoder" in lm.notes[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match="t5: only lm-eval"):
        make_lm(loaded, tokenizer)


def test_the_first_of_equal_predictions_is_the_greedy_one() -> None:
    from runners._scoring.readout import predicted

    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
    chosen, greedy = predicted(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 0, 1]))
    assert greedy.tolist() == [True, False, True, False]
    assert chosen.tolist() == torch.log_softmax(logits, -1)[[0, 0, 1, 1], [1, 2, 0, 1]].tolist()
