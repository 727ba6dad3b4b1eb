"""Texts from prompts that share their beginning are those of HFLM, whatever ends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import processors

from runners import _plain_generation as plain
from runners._plain_lm import PlainLM
from runners._scoring import generation
from runners._scoring._generation_cache import SharedPrefix
from runners._scoring._generation_plan import clusters, shared_length
from runners._scoring._generation_stops import Stops
from runners._scoring.generation import Generation, Request
from scorecard.documents import REPOSITORY

pytestmark = pytest.mark.backend

EMBEDDED = REPOSITORY / "embedded" / "tiny-llama"
WINDOW = 128
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": WINDOW}
EXAMPLES = "Q: Who has the red ball? A: Tom has it. Q: Where is the dog? A: It is in the garden. "
CONTEXTS = [
    *(f"{EXAMPLES}Q: {question} A:" for question in ("What is it?", "Who is the big bear?", "Why?", "Why?")),
    EXAMPLES,
    "The cat",
    "A",
    "<s>The cat sat",
    "word " * 300,  # more than a window
]
SETTINGS: list[dict[str, Any]] = [
    {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": False},
    {"until": [], "max_gen_toks": 1},
    {"until": [" "], "max_new_tokens": 30, "temperature": 0.0},
    {"until": "the", "max_gen_toks": 30},
    {"until": ["."], "max_gen_toks": WINDOW - 20},  # little room for the prompt
    {"until": [""], "max_gen_toks": 9},
]


def make(kind: str, **settings: Any) -> Any:
    """A random model with the embedded model's vocabulary."""
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=tokenizer().vocab_size, bos_token_id=1, eos_token_id=2, **settings
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED)


def gpt2() -> Any:
    return make("gpt2", n_embd=48, n_layer=2, n_head=4, n_positions=WINDOW, initializer_range=0.3)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: make("llama", **GROUPED),
    "qwen2": lambda: make("qwen2", **GROUPED, use_sliding_window=False),
    "gpt2": gpt2,
    "embedded": lambda: transformers.AutoModelForCausalLM.from_pretrained(
        EMBEDDED, dtype=torch.float32
    ).eval(),
}
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {  # and what the note says of them
    "mistral": (lambda: make("mistral", **GROUPED, sliding_window=16), "more than 16 tokens"),
    "gemma2": (lambda: make("gemma2", **GROUPED, head_dim=12, sliding_window=4096), "softcap"),
    "mamba": (
        lambda: make("mamba", hidden_size=48, num_hidden_layers=2, state_size=8),
        "no attention that can share",
    ),
    "bloom": (lambda: make("bloom", hidden_size=48, n_layer=2, n_head=4), "no attention that can share"),
}


def lm_of(model: Any, words: Any = None) -> PlainLM:
    return PlainLM(model, words or tokenizer(), batch_size=4, max_length=WINDOW)


def by_hflm(model: Any, requests: list[Request], words: Any = None) -> list[str]:
    lm = HFLM(pretrained=model, tokenizer=words or tokenizer(), batch_size=1, max_length=WINDOW)
    kind: Any = "generate_until"
    rows = [Instance(kind, {}, (text, dict(settings)), i) for i, (text, settings) in enumerate(requests)]
    texts: list[str] = lm.generate_until(rows, disable_tqdm=True)
    return texts


@pytest.fixture
def no_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> list[str]:
        raise AssertionError("went HFLM's way")

    monkeypatch.setattr(plain, "generate_until", refuse)


@pytest.mark.usefixtures("no_plain_way")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("most_rows", [2, 32])
def test_the_same_texts_as_hflm(name: str, most_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generation.MOST_ROWS, "cpu", most_rows)
    model = MODELS[name]()
    requests: list[Request] = [(context, settings) for settings in SETTINGS for context in CONTEXTS]
    made = Generation(lm_of(model))
    assert made.texts(requests) == by_hflm(model, requests)
    assert made.note is None


@pytest.mark.usefixtures("no_plain_way")
def test_stops_that_really_occur_in_the_middle_of_tokens() -> None:
    model = MODELS["llama"]()
    free: list[Request] = [(context, {"until": [], "max_gen_toks": 24}) for context in CONTEXTS]
    whole = by_hflm(model, free)
    pieces = [text[len(text) // 2 :][1:4] for text in whole if len(text) > 12]
    assert len(set(pieces)) > 2
    stopped: list[Request] = [(context, {"until": pieces, "max_gen_toks": 24}) for context in CONTEXTS]
    texts = Generation(lm_of(model)).texts(stopped)
    assert texts == by_hflm(model, stopped)
    assert sum(len(text) < len(longer) for text, longer in zip(texts, whole, strict=True)) > 2


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_share_goes_the_plain_way_and_says_so(name: str) -> None:
    build, note = OTHERS[name]
    model = build()
    before = model.config._attn_implementation
    requests: list[Request] = [(context, SETTINGS[0]) for context in CONTEXTS[:5]]
    made = Generation(lm_of(model))
    assert made.texts(requests) == by_hflm(model, requests)
    assert note in (made.note or "")
    assert model.config._attn_implementation == before


@pytest.mark.usefixtures("no_plain_way")
def test_a_first_token_is_added_but_not_twice() -> None:
    model = MODELS["embedded"]()
    words = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.bos_token_id)]
    )
    requests: list[Request] = [(context, SETTINGS[1]) for context in ("", *CONTEXTS)]
    prompts = generation._encoded(lm_of(model, words), [context for context, _ in requests])
    assert [prompt[:2].count(words.bos_token_id) for prompt in prompts] == [1] * len(prompts)
    assert Generation(lm_of(model, words)).texts(requests) == by_hflm(model, requests, words)


def test_an_attention_that_gives_other_logits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = SharedPrefix.attend
    monkeypatch.setattr(SharedPrefix, "attend", lambda self, *states: 1.1 * attend(self, *states))
    model = MODELS["llama"]()
    requests: list[Request] = [(context, SETTINGS[0]) for context in CONTEXTS]
    made = Generation(lm_of(model))
    assert made.texts(requests) == by_hflm(model, requests)
    assert "changes the logits" in (made.note or "")


def test_an_empty_context_is_the_token_before_all_texts() -> None:
    model = MODELS["embedded"]()
    requests: list[Request] = [("", SETTINGS[0]), ("The cat", SETTINGS[0])]
    expected = by_hflm(model, [("<s>", SETTINGS[0]), ("The cat", SETTINGS[0])])
    assert Generation(lm_of(model)).texts(requests) == expected


def test_settings_beside_greedy_ones_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(plain, "generate_until", lambda lm, group: asked.extend(group) or ["x"] * len(group))
    settings = [
        {"do_sample": True, "temperature": 0.5},
        {"num_beams": 2},
        {"temperature": 0.7},
        {"max_length": 9},
    ]
    requests: list[Request] = [("The cat", one) for one in settings]
    assert Generation(lm_of(MODELS["llama"]())).texts(requests) == ["x"] * 4
    assert asked == requests


def test_only_what_is_too_long_for_a_sliding_window_goes_the_plain_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("mistral", **GROUPED, sliding_window=40)
    requests: list[Request] = [(context, SETTINGS[0]) for context in CONTEXTS]
    expected, asked, generate = by_hflm(model, requests), [], plain.generate_until
    monkeypatch.setattr(
        plain, "generate_until", lambda lm, group: asked.extend(c for c, _ in group) or generate(lm, group)
    )
    assert Generation(lm_of(model)).texts(requests) == expected
    assert 0 < len(asked) < len(requests)
    assert "The cat" not in asked


def test_a_generation_config_that_changes_tokens_is_left_to_transformers() -> None:
    model = MODELS["embedded"]()
    model.generation_config.repetition_penalty = 1.5
    requests: list[Request] = [(context, SETTINGS[0]) for context in CONTEXTS[:4]]
    made = Generation(lm_of(model))
    assert made.texts(requests) == by_hflm(model, requests)
    assert "repetition_penalty" in (made.note or "")


def test_a_prefix_is_forwarded_once() -> None:
    model = MODELS["llama"]()
    lm = lm_of(model)
    made = Generation(lm)
    made.texts([("A", SETTINGS[1])])  # the trial
    seen: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, values, settings: seen.append(settings["input_ids"].numel()), with_kwargs=True
    )
    contexts = [f"{EXAMPLES}{letter}" for letter in "ABCDEFGH"]
    made.texts([(context, {"until": [], "max_gen_toks": 4}) for context in contexts])
    lengths = [len(lm.tok_encode(context)) for context in contexts]
    assert sum(seen) < max(lengths) + len(contexts) * (4 + 3)


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["embedded"]()
    requests: list[Request] = [(context, SETTINGS[0]) for context in CONTEXTS]
    widths: list[int] = []
    decode = generation.decode

    def narrow(*arguments: Any, width: int, **settings: Any) -> None:
        widths.append(width)
        if width > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        decode(*arguments, width=width, **settings)

    monkeypatch.setattr(generation, "decode", narrow)
    assert Generation(lm_of(model)).texts(requests) == by_hflm(model, requests)
    assert max(widths) > 2 >= min(widths)

    def broken(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(generation, "decode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        Generation(lm_of(model)).texts(requests)


def test_a_stop_is_found_across_tokens_and_an_end_token_ends() -> None:
    words = tokenizer()
    stops = Stops(words, ["the dog"], [words.eos_token_id])
    row = words.encode("Here is the dog", add_special_tokens=False)
    met = [stops.met([row[: i + 1]])[0] for i in range(len(row))]
    assert met == [False] * (len(row) - 1) + [True]
    assert stops.met([row[:1], [*row[:1], words.eos_token_id]]) == [False, True]


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), unique=True)


@given(PROMPTS, st.integers(1, 3))
def test_every_prompt_is_in_one_cluster_and_keeps_a_token(prompts: list[tuple[int, ...]], limit: int) -> None:
    groups = clusters(prompts, limit)
    assert sorted(prompt for group in groups for prompt in group) == sorted(prompts)
    for group in groups:
        shared = shared_length(group)
        assert len({prompt[:shared] for prompt in group}) == 1
        assert all(len(prompt) > shared for prompt in group)


def test_two_subjects_are_two_clusters_but_single_texts_stay_together() -> None:
    subjects = [(0, *[subject] * 500, last) for subject in (1, 2) for last in range(20)]
    assert [len(group) for group in clusters(subjects, 100)] == [20, 20]
    assert [len(group) for group in clusters([(0, 1, last, last) for last in range(20)], 100)] == [20]
