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

from scorecard.chunks import Logits
from scorecard.divergence import Divergence, divergence
from scorecard.documents import Document, read_texts, tokenized
from scorecard.kept import Kept, normalized
from scorecard.metrics import ratio
from scorecard.reference import Reference, ReferenceWriter
from scorecard.spec import EvalSpec

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM


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
    kl: Divergence | None = None
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
    if write_reference and documents:
        original = Reference(write_reference)
    result = _summarized(sums, original.bytes_per_token if original is not None else None)
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

    sums: list[_Sums] = []
    vocabulary, logits = 0, Logits(lm.model)
    writer = ReferenceWriter(write_reference, documents) if write_reference else nullcontext()
    with torch.inference_mode(), writer as out:
        for place, document in enumerate(documents):
            tokens = torch.tensor([document.tokens], device=lm.device)
            found = _Sums(document.index, document.positions, document.bytes, 0.0)
            for rows, values in logits.of(tokens):
                vocabulary = values.shape[-1]
                if out is not None:
                    out.append(values)
                kept = None
                if original is not None and vocabulary == original.vocabulary:
                    kept = original.rows(place, rows.start, rows.stop, values.device)
                _add(found, values, tokens[0, 1:][rows], kept)
            if write_reference:
                found.kl, found.top1 = Divergence(), float(document.positions)
            sums.append(found)
    return sums, vocabulary


def _add(sums: _Sums, logits: torch.Tensor, targets: torch.Tensor, kept: Kept | None) -> None:
    """Count some positions of a document: ``logits`` [positions, vocabulary] and the tokens to predict."""
    logprobs = normalized(logits)
    sums.nll -= float(logprobs.gather(-1, targets[:, None]).double().sum())
    if kept is not None:
        sums.kl = divergence(kept, logprobs) + (sums.kl or Divergence())
        sums.top1 = float((logits.argmax(-1) == kept.top).sum()) + (sums.top1 or 0.0)


def _summarized(sums: Sequence[_Sums], bytes_per_token: float | None) -> Heldout:
    if not sums:
        return Heldout(reason="no document has two tokens")
    tokens, size = [s.tokens for s in sums], [s.bytes for s in sums]
    nll, nll_error = ratio([s.nll for s in sums], tokens)
    bits, bits_error = ratio([s.nll / math.log(2) for s in sums], size) if sum(size) else (math.nan, None)
    perplexity = math.exp(min(nll, 700.0))
    divergences, bound = _divergences([s.kl for s in sums])
    kl, kl_error = _rate(divergences, tokens)
    top1, top1_error = _rate([s.top1 for s in sums], tokens)
    if kl is None:
        top1 = top1_error = None
    summary = {
        "kl": kl,
        "kl_stderr": kl_error,
        "kl_truncation_bound": None if kl is None else _finite(bound / sum(tokens)),
        "top1": top1,
        "top1_stderr": top1_error,
        "perplexity": _finite(perplexity),
        "perplexity_stderr": _finite(perplexity * nll_error) if nll_error is not None else None,
        "bits_per_byte": _finite(bits),
        "bits_per_byte_stderr": _finite(bits_error),
        "tokens": sum(tokens),
        "documents": len(sums),
        "reference_bytes_per_token": bytes_per_token,
    }
    shown = divergences if kl is not None else [None] * len(sums)
    rows = [row for s, value in zip(sums, shown, strict=True) for row in _rows(s, value)]
    return Heldout(summary, None, rows)


def _divergences(found: Sequence[Divergence | None]) -> tuple[list[float | None], float]:
    """The KL of each document, and how far their sum is at most from that over the full vocabulary."""
    total = sum((each for each in found if each is not None), Divergence())
    values = [None if each is None else each.value(total.control_helps) for each in found]
    low, high = total.interval()
    value = sum(each for each in values if each is not None)
    return values, max(high - value, value - low, 0.0)


def _rate(values: Sequence[float | None], weights: Sequence[float]) -> tuple[float | None, float | None]:
    """``ratio``, or None where a document has no finite value."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return ratio(finite, weights) if len(finite) == len(weights) else (None, None)


def _rows(sums: _Sums, kl: float | None) -> Iterator[tuple[int, str, float]]:
    if kl is not None and sums.top1 is not None:
        yield sums.index, "kl", kl / sums.tokens
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
    result = _summarized(sums, None)
    result.reason = reason
    return result
