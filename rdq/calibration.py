"""Token sequences to calibrate on: from a file, or written by the model itself where there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rdq.errors import RdqError


def of_file(path: Path, tokenizer: PreTrainedTokenizerBase, samples: int, length: int) -> list[list[int]]:
    """At most ``samples`` sequences of ``length`` tokens from a ``.jsonl`` (key ``text``) or plain text file.

    Documents are ended with the end-of-text token, put one after the other and cut. Raises RdqError where
    there is not enough for one.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RdqError(f"calibration: {path} cannot be read ({error}); name a text or .jsonl file") from None
    texts = _texts(path, content)
    stream: list[int] = []
    end = tokenizer.eos_token_id
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        stream += ids if end is None or ids[-1:] == [end] else [*ids, end]
        if len(stream) >= samples * length:
            break
    have = min(samples, len(stream) // length)
    if not have:
        raise RdqError(f"calibration: {path} holds less than {length} tokens; give more text")
    return [stream[i * length : (i + 1) * length] for i in range(have)]


def _texts(path: Path, content: str) -> list[str]:
    if path.suffix != ".jsonl":
        return [content]
    try:
        return [str(json.loads(line)["text"]) for line in content.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise RdqError(f"calibration: {path}: no 'text' in every line ({error}); write one") from None


@torch.no_grad()
def generated(
    model: PreTrainedModel, samples: int, length: int, seed: int = 0, batch: int = 16
) -> list[list[int]]:
    """``samples`` sequences of ``length`` tokens that the model draws from its own predictions."""
    config = model.config.get_text_config()
    generator = torch.Generator(device=model.device).manual_seed(seed)
    vocabulary = int(config.vocab_size)
    start = config.bos_token_id
    found: list[list[int]] = []
    for begin in range(0, samples, batch):
        count = min(batch, samples - begin)
        if isinstance(start, int) and 0 <= start < vocabulary:
            first = torch.full((count, 1), start, device=model.device)
        else:
            first = torch.randint(vocabulary, (count, 1), generator=generator, device=model.device)
        found += _drawn(model, first, length, generator).tolist()
    return found


def _drawn(
    model: PreTrainedModel, tokens: torch.Tensor, length: int, generator: torch.Generator
) -> torch.Tensor:
    cache, step = None, tokens
    while tokens.shape[1] < length:
        output = model(step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, step], 1)
    return tokens


def length_for(model: PreTrainedModel, wanted: int) -> int:
    """``wanted``, or the model's context where that is shorter."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, int(longest)) if longest else wanted


def divergence(
    reference: Sequence[torch.Tensor], model: PreTrainedModel, batches: Sequence[torch.Tensor]
) -> float:
    """Mean over all tokens of KL(original || model) in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for before, tokens in zip(reference, batches, strict=True):
            after = model(tokens, use_cache=False).logits.float().log_softmax(-1)
            kl = (before.exp() * (before - after)).sum(-1)
            total, count = total + float(kl.double().sum()), count + kl.numel()
    return total / count


@torch.no_grad()
def predictions(model: PreTrainedModel, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Log-probabilities [batch, tokens, vocabulary] of each batch."""
    return [model(tokens, use_cache=False).logits.float().log_softmax(-1) for tokens in batches]
