"""Held-out text: divergence, same-top-token rate and perplexity against direct computation in float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import load_lm, write_heldout, write_model

from scorecard import chunks
from scorecard.documents import Document, read_texts, tokenized
from scorecard.errors import DataUnavailable, SpecError
from scorecard.evaluate import evaluate
from scorecard.heldout import Heldout, heldout
from scorecard.spec import EvalSpec

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lm(model: Path) -> Any:
    return load_lm(model)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EvalSpec:
    path = write_heldout(tmp_path_factory.mktemp("text") / "text.jsonl")
    return EvalSpec(tasks=(), heldout=str(path), heldout_tokens=24)


@pytest.fixture(scope="module")
def reference(lm: Any, spec: EvalSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    heldout(lm, spec, reference=None, write_reference=path)
    return path


def perturbed(lm: Any, noise: float) -> Any:
    import torch

    torch.manual_seed(3)
    other = copy.deepcopy(lm)
    for weight in other.model.parameters():
        weight.data.mul_(1 + noise * torch.randn_like(weight))
    return other


def logprobs(lm: Any, document: Document) -> Any:
    import torch

    with torch.inference_mode():
        logits = lm.model(torch.tensor([document.tokens])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1)


def compared(lm: Any, spec: EvalSpec, reference: Path) -> Heldout:
    return heldout(lm, spec, reference=reference, write_reference=None)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, spec: EvalSpec) -> tuple[Any, Path]:
    """A vocabulary that is not kept whole."""
    folder = tmp_path_factory.mktemp("wide")
    lm = load_lm(write_model(folder / "model", vocabulary=6000))
    heldout(lm, spec, reference=None, write_reference=folder / "reference.safetensors")
    return lm, folder / "reference.safetensors"


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.02, 0.3])
@pytest.mark.parametrize("vocabulary", ["whole", "in part"])
def test_equals_direct_computation(
    lm: Any, spec: EvalSpec, reference: Path, wide: tuple[Any, Path], noise: float, vocabulary: str
) -> None:
    if vocabulary == "in part":
        lm, reference = wide
    other = perturbed(lm, noise)
    found = compared(other, spec, reference)
    documents = tokenized(lm, read_texts(spec.heldout or "", 64), 24)
    pairs = [(logprobs(lm, d), logprobs(other, d)) for d in documents]
    tokens = sum(len(d.tokens) - 1 for d in documents)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in pairs) / tokens
    top1 = sum(int((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in pairs) / tokens
    nll = sum(
        -float(q[range(len(q)), list(d.tokens[1:])].sum()) for d, (_, q) in zip(documents, pairs, strict=True)
    )
    size = sum(d.bytes for d in documents)
    assert found.reason is None
    assert found.summary is not None
    bound = found.summary["kl_truncation_bound"]
    assert found.summary["kl"] == pytest.approx(kl, rel=1e-3 if vocabulary == "whole" else 5e-3, abs=1e-6)
    assert bound == 0 if vocabulary == "whole" else abs(found.summary["kl"] - kl) < bound < math.inf
    assert found.summary["reference_bytes_per_token"] == reference.stat().st_size / tokens
    assert found.summary["top1"] == pytest.approx(top1)
    assert found.summary["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found.summary["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    assert (found.summary["tokens"], found.summary["documents"]) == (tokens, 9)
    assert all(found.summary[f"{name}_stderr"] >= 0 for name in ("kl", "top1", "perplexity", "bits_per_byte"))
    assert sum(v * t for (_, _, v), t in weighted(found, "kl")) / tokens == pytest.approx(found.summary["kl"])


def weighted(found: Heldout, metric: str) -> list[tuple[tuple[int, str, float], float]]:
    tokens = {doc: value for doc, name, value in found.rows if name == "tokens"}
    return [(row, tokens[row[0]]) for row in found.rows if row[1] == metric]


def test_chunks_do_not_change_the_result(
    lm: Any, spec: EvalSpec, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = perturbed(lm, 0.05)
    whole = compared(other, spec, reference).summary
    monkeypatch.setattr(chunks, "VALUES", 5 * 64)
    assert compared(other, spec, reference).summary == pytest.approx(whole)


def test_the_original_has_no_divergence_from_itself(lm: Any, spec: EvalSpec, tmp_path: Path) -> None:
    found = heldout(lm, spec, reference=None, write_reference=tmp_path / "reference.safetensors")
    assert found.summary is not None
    assert (found.summary["kl"], found.summary["kl_stderr"], found.summary["top1"]) == (0.0, 0.0, 1.0)
    assert found.summary["kl_truncation_bound"] == 0.0
    again = compared(lm, spec, tmp_path / "reference.safetensors").summary
    assert again is not None
    assert 0 <= again["kl"] < 1e-6
    for same in ("perplexity", "reference_bytes_per_token"):
        assert again[same] == found.summary[same]


def test_other_tokens_or_vocabulary(spec: EvalSpec, reference: Path, tmp_path: Path) -> None:
    bare = load_lm(write_model(tmp_path / "bare", bos=False), add_bos_token=False)
    found = compared(bare, spec, reference)
    assert found.summary is not None
    assert (found.summary["kl"], found.summary["top1"]) == (None, None)
    assert found.summary["perplexity"] > 1
    assert "tokenizer" in (found.reason or "")
    assert {name for _, name, _ in found.rows} == {"nll", "tokens", "bytes"}
    wide = compared(load_lm(write_model(tmp_path / "wide", vocabulary=80)), spec, reference)
    assert wide.summary is not None
    assert wide.summary["kl"] is None
    assert wide.reason == "80 logits a token where the original has 64"


def test_logits_that_are_not_finite_are_not_measured(lm: Any, spec: EvalSpec, reference: Path) -> None:
    broken = perturbed(lm, 0.0)
    broken.model.lm_head.weight.data.fill_(math.nan)
    found = compared(broken, spec, reference)
    assert found.summary is not None
    assert [found.summary[k] for k in ("kl", "top1", "perplexity", "bits_per_byte")] == [None] * 4
    assert found.reason == "some of its probabilities are not finite"
    assert all(math.isfinite(value) for _, _, value in found.rows)


def scorer(lm: Any) -> Any:
    """An LM that answers requests but has no torch model to ask for logits."""
    from lm_eval.api.model import LM

    class Scorer(LM):
        def loglikelihood(self, requests: Any) -> Any:
            return lm.loglikelihood(requests)

        def loglikelihood_rolling(self, requests: Any) -> Any:
            return lm.loglikelihood_rolling(requests)

        def generate_until(self, requests: Any) -> Any:
            return lm.generate_until(requests)

    return Scorer()


def test_without_logits_perplexity_is_still_measured(lm: Any, spec: EvalSpec, reference: Path) -> None:
    whole = compared(lm, spec, reference).summary
    found = compared(scorer(lm), spec, reference)
    assert whole is not None
    assert found.summary is not None
    assert found.reason == "the model gives no logits"
    assert (found.summary["kl"], found.summary["kl_truncation_bound"]) == (None, None)
    assert found.summary["tokens"] == whole["tokens"]
    # one window either way, and lm-eval starts it with the same token that the tokenizer puts first
    assert found.summary["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=0.2)
    alone = heldout(scorer(lm), spec, reference=None, write_reference=None)
    assert alone.summary is None
    assert "no logits" in (alone.reason or "")


def test_scored_bytes_are_those_of_the_predicted_tokens(lm: Any, model: Path) -> None:
    (document,) = tokenized(lm, ["the cat sees a dog"], 4)
    assert (document.positions, document.characters, document.bytes) == (3, 12, 12)
    bare = load_lm(model, add_bos_token=False)
    (document,) = tokenized(bare, ["the cat sees a dog"], 4)
    assert (document.positions, document.characters, document.bytes) == (3, 14, len("cat sees a"))
    assert tokenized(bare, ["cat"], 4) == []


def test_reading_texts(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("one\ntwo\n\n\nthree\n")
    assert read_texts(str(plain), 5) == ["one\ntwo", "three"]
    assert read_texts(str(plain), 1) == ["one\ntwo"]
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "a"}\n\n{"txt": "b"}\n')
    assert read_texts(str(lines), 1) == ["a"]
    with pytest.raises(SpecError, match=r"lines\.jsonl:3: is no document"):
        read_texts(str(lines), 2)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SpecError, match="holds no documents"):
        read_texts(str(tmp_path / "empty.jsonl"), 2)
    (tmp_path / "page.html").touch()
    with pytest.raises(SpecError, match="unknown kind"):
        read_texts(str(tmp_path / "page.html"), 2)
    with pytest.raises(DataUnavailable, match="not on this machine"):
        read_texts("embedded:no-such-text", 2)


def test_rows_are_in_the_parquet_file(lm: Any, spec: EvalSpec, reference: Path, tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "documents.parquet"
    result = evaluate(perturbed(lm, 0.1), spec, reference=reference, write_reference=None, documents=path)
    frame = pd.read_parquet(path)
    assert set(frame.task) == {"heldout"}
    table = frame.pivot_table(index="doc", columns="metric", values="value")
    assert list(table.columns) == ["bytes", "kl", "nll", "tokens", "top1"]
    assert (table.kl * table.tokens).sum() / table.tokens.sum() == pytest.approx(result["heldout"]["kl"])
    assert result["mean_accuracy"] is None
    assert result["tasks"] == {}
