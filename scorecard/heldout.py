"""How far a candidate's predictions are from the original's on held-out text, token by token.

Accuracy needs thousands of documents to tell two good recipes apart; the divergence needs a few dozen,
because it compares whole distributions and not only which answer wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard.documents import Document, read_texts, tokenized
from scorecard.metrics import ratio
from scorecard.reference import Reference, ReferenceWriter
from scorecard.spec import EvalSpec

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM

_CHUNK_VALUES = 4_000_000  # logits compared at a time: 16 MB in float32, whatever the vocabulary


@dataclass
class Heldout:
    """``summary`` is the record's ``heldout``; ``rows`` are (document, metric, mean over its tokens)."""

    summary: dict[str, Any] | None = None
    reason: str | None = None
    rows: list[tuple[int, str, float]] = field(default_factory=list)


@dataclass
class _Sums:
    """Sums over the predicted tokens of one document; ``kl`` and ``top1`` are None without a reference."""

    index: int
    tokens: int
    bytes: int
    nll: float
    kl: float | None = None
    top1: float | None = None


def heldout(lm: LM, spec: EvalSpec, *, reference: Path | None, write_reference: Path | None) -> Heldout:
    """Score the held-out text of ``spec``; ``Heldout.reason`` says what could not be had, and why.

    ``write_reference`` makes this model the original: its predictions are saved there, its divergence from
    itself is 0 and its same-top-token rate 1 by definition. ``reference`` is such a file of the original.
    Raises DataUnavailable without the text, SpecError when it holds no documents.
    """
    if spec.heldout is None:
        return Heldout(reason="no held-out text is named")
    served = getattr(lm, "heldout", None)
    if served is not None:  # the model is in another process: see scorecard.lm_client
        result: Heldout = served(spec, reference=reference, write_reference=write_reference)
        return result
    texts = read_texts(spec.heldout, spec.heldout_documents)
    original = Reference(reference) if reference and not write_reference else None
    if not _is_causal(lm):
        return _rolling(lm, texts, original)
    documents = tokenized(lm, texts, spec.heldout_tokens)
    mismatch = _mismatch(documents, original)
    if mismatch:
        original = None
    sums, vocabulary = _scored(lm, documents, original, write_reference)
    if original is not None and vocabulary != original.vocabulary:
        mismatch = f"{vocabulary} logits a token where the original has {original.vocabulary}"
    result = _summarized(sums)
    if result.summary and result.summary["kl"] is None:
        result.reason = mismatch or "some of its probabilities are not finite"
    return result


def _is_causal(lm: Any) -> bool:
    import torch

    model, kind = getattr(lm, "model", None), getattr(lm, "backend", "causal")
    return isinstance(model, torch.nn.Module) and kind == "causal"


def _mismatch(documents: Sequence[Document], original: Reference | None) -> str | None:
    if original is None:
        return "there is no original to compare with"
    same = len(documents) == len(original) and all(
        d.tokens == original.document(place) for place, d in enumerate(documents)
    )
    return None if same else "its tokenizer cuts the text into other tokens than the original's"


def _scored(
    lm: Any, documents: Sequence[Document], original: Reference | None, write_reference: Path | None
) -> tuple[list[_Sums], int]:
    """One forward pass a document, without padding, so that no score depends on what shares its batch."""
    import torch

    sums, vocabulary = [], 0
    writer = ReferenceWriter(write_reference, documents) if write_reference else nullcontext()
    with torch.inference_mode(), writer as out:
        for place, document in enumerate(documents):
            tokens = torch.tensor([document.tokens], device=lm.device)
            logits = lm.model(input_ids=tokens).logits[0, :-1]
            vocabulary = logits.shape[-1]
            if out is not None:
                out.append(logits)
            compared = original if original is not None and vocabulary == original.vocabulary else None
            sums.append(_compared(document, logits, tokens[0, 1:], compared, place))
            if write_reference:
                sums[-1].kl, sums[-1].top1 = 0.0, float(document.positions)
    return sums, vocabulary


def _compared(
    document: Document, logits: torch.Tensor, targets: torch.Tensor, original: Reference | None, place: int
) -> _Sums:
    """Sums of one document, a few rows of logits at a time."""
    import torch

    sums = _Sums(document.index, document.positions, document.bytes, 0.0)
    if original is not None:
        sums.kl = sums.top1 = 0.0
    step = max(1, _CHUNK_VALUES // logits.shape[-1])
    for start in range(0, document.positions, step):
        rows = slice(start, min(start + step, document.positions))
        logprobs = torch.log_softmax(logits[rows].float(), -1)
        sums.nll -= float(logprobs.gather(-1, targets[rows, None]).double().sum())
        if original is not None and sums.kl is not None and sums.top1 is not None:
            stored, top = original.rows(place, rows.start, rows.stop)
            sums.kl += _divergence(stored.to(logits.device), logprobs)
            sums.top1 += float((logits[rows].argmax(-1) == top.to(logits.device)).sum())
    if sums.kl is not None:
        sums.kl = max(sums.kl, 0.0) if math.isfinite(sums.kl) else sums.kl  # float32 noise around 0
    return sums


def _divergence(stored: torch.Tensor, candidate: torch.Tensor) -> float:
    """Sum over rows of KL(original || candidate) in nats; both [rows, vocabulary] log-probabilities."""
    import torch

    original = torch.log_softmax(stored.float(), -1)
    terms = original.exp() * (original - candidate)
    return float(terms.masked_fill_(original.exp() == 0, 0.0).double().sum())


def _summarized(sums: Sequence[_Sums]) -> Heldout:
    if not sums:
        return Heldout(reason="no document has two tokens")
    tokens, size = [s.tokens for s in sums], [s.bytes for s in sums]
    nll, nll_error = ratio([s.nll for s in sums], tokens)
    bits, bits_error = ratio([s.nll / math.log(2) for s in sums], size) if sum(size) else (math.nan, None)
    perplexity = math.exp(min(nll, 700.0))
    kl, kl_error = _rate([s.kl for s in sums], tokens)
    top1, top1_error = _rate([s.top1 for s in sums], tokens)
    if kl is None:
        top1 = top1_error = None
    summary = {
        "kl": kl,
        "kl_stderr": kl_error,
        "top1": top1,
        "top1_stderr": top1_error,
        "perplexity": _finite(perplexity),
        "perplexity_stderr": _finite(perplexity * nll_error) if nll_error is not None else None,
        "bits_per_byte": _finite(bits),
        "bits_per_byte_stderr": _finite(bits_error),
        "tokens": sum(tokens),
        "documents": len(sums),
    }
    return Heldout(summary, None, [row for s in sums for row in _rows(s, kl is not None)])


def _rate(values: Sequence[float | None], weights: Sequence[float]) -> tuple[float | None, float | None]:
    """``ratio``, or None where a document has no finite value."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return ratio(finite, weights) if len(finite) == len(weights) else (None, None)


def _rows(sums: _Sums, compared: bool) -> Iterator[tuple[int, str, float]]:
    if compared and sums.kl is not None and sums.top1 is not None:
        yield sums.index, "kl", sums.kl / sums.tokens
        yield sums.index, "top1", sums.top1 / sums.tokens
    if math.isfinite(sums.nll):
        yield sums.index, "nll", sums.nll / sums.tokens
    yield sums.index, "tokens", float(sums.tokens)
    yield sums.index, "bytes", float(sums.bytes)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rolling(lm: LM, texts: Sequence[str], original: Reference | None) -> Heldout:
    """Perplexity alone, for a model that gives no logits: over the original's text and number of tokens."""
    from lm_eval.api.instance import Instance

    reason = "the model gives no logits"
    if original is None or len(original) != len(texts):
        return Heldout(reason=f"{reason} and there is no original that says where its text ends")
    pieces = [text[:end] for text, end in zip(texts, original.characters, strict=True)]
    requests = [Instance("loglikelihood_rolling", {}, (piece,), i) for i, piece in enumerate(pieces)]
    try:
        scores = lm.loglikelihood_rolling(requests)
    except NotImplementedError:
        return Heldout(reason=f"{reason} and no rolling log-likelihood")
    sums = [
        _Sums(place, len(original.document(place)) - 1, original.bytes[place], -float(score))
        for place, score in enumerate(scores)
    ]
    result = _summarized(sums)
    result.reason = reason
    return result
