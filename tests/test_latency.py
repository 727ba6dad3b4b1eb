"""Latency and memory with a real, small model. No test here says how long anything takes."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecard import memory
from scorecard.errors import SpecError
from scorecard.latency import measure
from scorecard.spec import MeasureSpec
from scorecard.timing import PREFILLS, Timed, draw_prompt, percentiles, run_round, time_interleaved

pytestmark = pytest.mark.backend

torch = pytest.importorskip("torch")
SPEC = MeasureSpec(batch_size=2, prompt_tokens=7, decode_tokens=3, warmup=1, repeats=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(*, vocab_size: int = 50, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def load() -> Callable[[], Any]:
    """Loads a real lm-eval model around a random Llama."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(50)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", pad_token="w0", eos_token="w1"
    )
    return lambda: HFLM(pretrained=model(), tokenizer=tokenizer, batch_size=2, device="cpu")


def test_candidate_and_baseline(load: Callable[[], Any]) -> None:
    loaded: list[str] = []

    def candidate() -> Any:
        loaded.append("candidate")
        return load()

    def baseline() -> Any:
        loaded.append("baseline")
        return load()

    result = measure(candidate, SPEC, baseline)
    assert loaded == ["candidate", "baseline"]
    for part in (result, result["baseline"]):
        assert SPEC.repeats <= part["prefill"]["n"] == len(part["prefill"]["samples_seconds"])
        assert part["prefill"]["n"] <= SPEC.repeats * PREFILLS
        assert (
            part["decode"]["n"] == len(part["decode"]["samples_seconds"]) == SPEC.repeats * SPEC.decode_tokens
        )
        assert min(part["prefill"]["samples_seconds"] + part["decode"]["samples_seconds"]) > 0
    assert result["reason"] is result["baseline_reason"] is result["peak_cuda_memory_bytes"] is None
    assert result["load_seconds"] > 0
    assert result["prefill_tokens_per_second"] == 14 / result["prefill"]["p50"]
    assert result["decode_tokens_per_second"] == 2 / result["decode"]["p50"]
    for name in ("prefill", "decode"):
        assert result[f"{name}_speedup"] == result["baseline"][name]["p10"] / result[name]["p10"]
    assert result["threads"] == 1
    assert result["settings"]["dtype"] == "float32"
    assert result["settings"]["last_logits_only"] is True
    assert json.loads(json.dumps(result)) == result


def test_the_steps_are_those_of_greedy_generation() -> None:
    """What goes into the timed forward passes is the prompt, then each token that ``generate`` gives."""
    lm, seen = model(), []
    lm.register_forward_pre_hook(lambda _, __, kw: seen.append(kw["input_ids"].clone()), with_kwargs=True)
    timed = Timed(lm, last_logits_only=True)
    prompt = draw_prompt([timed], SPEC)
    run_round(timed, prompt, SPEC)
    fed = torch.cat(seen[-1 - SPEC.decode_tokens :], dim=1)
    mask = torch.ones_like(prompt)
    expected = lm.generate(prompt, attention_mask=mask, max_new_tokens=SPEC.decode_tokens, do_sample=False)
    assert torch.equal(fed, expected)


def test_rounds_alternate_and_warm_up_is_not_kept() -> None:
    order: list[str] = []
    models = []
    for name in ("candidate", "baseline"):
        lm = model()
        lm.register_forward_pre_hook(
            lambda _, __, kw, name=name: order.append(name) if kw["past_key_values"] is None else None,
            with_kwargs=True,
        )
        models.append(Timed(lm, last_logits_only=True))
    time_interleaved(models, SPEC)
    # one warm-up round and four kept ones, each beginning with the model that the last one ended with
    assert [name for name, _ in itertools.groupby(order)] == ["candidate", "baseline"] * 3
    assert 4 <= len(models[0].prefill) < order.count("candidate")
    assert [len(timed.decode) for timed in models] == [12, 12]
    assert gc.isenabled()


def test_both_do_the_same_work() -> None:
    """If one of the two cannot leave out the prompt's logits, neither does; ids are known to both."""
    small, large = Timed(model(vocab_size=20), True), Timed(model(), False)
    time_interleaved([small, large], SPEC)
    assert small.last_logits_only is False
    prompt = draw_prompt([small, large], MeasureSpec(batch_size=3, prompt_tokens=200))
    assert prompt.shape == (3, 200)
    assert int(prompt.max()) < 20
    assert torch.equal(prompt, draw_prompt([large, small], MeasureSpec(batch_size=3, prompt_tokens=200)))


def test_an_lm_without_a_model_is_measured_without_times() -> None:
    result = measure(SimpleNamespace, SPEC, lambda: pytest.fail("no baseline is needed"))
    assert result["reason"] == "SimpleNamespace holds no Hugging Face causal model as 'model'"
    assert result["prefill"] is result["decode"] is result["baseline"] is result["decode_speedup"] is None
    assert result["prefill_tokens_per_second"] is None
    assert result["load_seconds"] >= 0
    assert result["baseline_reason"] == result["reason"]


def test_a_model_without_a_cache_has_a_prefill_only() -> None:
    lm = model()
    forward = lm.forward
    lm.forward = lambda input_ids, past_key_values, use_cache: forward(input_ids, use_cache=False)
    result = measure(lambda: SimpleNamespace(model=lm), SPEC)
    assert result["prefill"]["n"] >= 4
    assert result["decode"] is None
    assert result["reason"] == "LlamaForCausalLM keeps no key-value cache: no decode times"


def _python_out_of_memory() -> Any:
    raise MemoryError


def _torch_out_of_memory() -> Any:
    return torch.empty(1 << 55)


@pytest.mark.parametrize("fail", [_python_out_of_memory, _torch_out_of_memory])
def test_a_baseline_too_large_leaves_the_candidate(load: Callable[[], Any], fail: Callable[[], Any]) -> None:
    result = measure(load, SPEC, fail)
    assert "does not fit into memory" in result["baseline_reason"]
    assert result["baseline"] is result["prefill_speedup"] is None
    assert result["decode"]["n"] == 12


def test_a_baseline_known_to_be_too_large_is_not_loaded(load: Callable[[], Any]) -> None:
    result = measure(load, SPEC, lambda: pytest.fail("loaded"), baseline_bytes=1 << 60)
    assert result["baseline_reason"].startswith("the baseline needs 1073741824.0 GiB")
    assert result["prefill"]["n"] >= 4


def test_no_interleaving(load: Callable[[], Any]) -> None:
    spec = MeasureSpec(prompt_tokens=3, decode_tokens=0, warmup=0, repeats=1, interleave=False)
    result = measure(load, spec, lambda: pytest.fail("loaded"))
    assert result["baseline_reason"] == "measure.interleave is false"
    assert result["decode"] is result["decode_tokens_per_second"] is result["reason"] is None
    assert measure(load, SPEC)["baseline_reason"] == "there is no baseline to compare with"


def test_other_failures_of_the_baseline_are_not_hidden(load: Callable[[], Any]) -> None:
    def fail() -> Any:
        raise RuntimeError("size mismatch for lm_head")

    with pytest.raises(RuntimeError, match="size mismatch"):
        measure(load, SPEC, fail)


def test_more_tokens_than_the_model_takes(load: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match="is 70, but the model takes 64"):
        measure(load, MeasureSpec(prompt_tokens=60, decode_tokens=10))


def test_percentiles_are_linear() -> None:
    assert percentiles([]) is None
    found = percentiles([float(n) for n in range(11, 0, -1)])
    assert found is not None
    assert (found["p10"], found["p50"], found["p90"], found["n"]) == (2.0, 6.0, 10.0, 11)
    assert found["p99"] == pytest.approx(10.9)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=50))
def test_percentiles_are_ordered(samples: list[float]) -> None:
    found = percentiles(samples)
    assert found is not None
    assert found["samples_seconds"] == samples
    assert (
        min(samples)
        <= found["p10"]
        <= found["p50"]
        <= found["p90"]
        <= found["p99"]
        <= max(samples) * (1 + 1e-12)
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_belongs_to_its_phase() -> None:
    memory.reset_peaks()
    before = memory.peak_host_bytes()
    block = bytearray(b"x") * (96 << 20)
    del block
    during = memory.peak_host_bytes()
    memory.reset_peaks()
    after = memory.host_memory()
    assert before is not None
    assert during is not None
    assert during - before > 90 << 20
    assert after["peak_bytes"] is not None
    assert during - after["peak_bytes"] > 80 << 20
    assert (after["resident_bytes"] or 0) >= (after["anonymous_bytes"] or 0) > 0


def test_the_candidates_peak_is_taken_before_the_baseline_is_there(load: Callable[[], Any]) -> None:
    def large_baseline() -> Any:
        held = torch.ones(64 << 20)
        lm = load()
        lm.held = held
        return lm

    alone, beside = measure(load, SPEC), measure(load, SPEC, large_baseline)
    if alone["peak_host_memory_bytes"] is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert beside["baseline"] is not None
    assert beside["peak_host_memory_bytes"] - alone["peak_host_memory_bytes"] < 128 << 20
