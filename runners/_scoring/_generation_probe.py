"""Whether a model gives the same logits when its prompts share a prefix, found out by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runners._scoring._generation_cache import SharedPrefix, Unshareable, active
from runners._scoring._generation_decode import Row, enter, fill_prefix, next_logits

if TYPE_CHECKING:
    import torch

PREFIX, PROMPTS, MADE = 5, (4, 2), 2  # tokens of the trial
TOLERANCE = 1e-3  # of the logits' standard deviation, in float32
COARSE = 0.15  # in 16 bit or with quantized kernels, whose sums depend on the shape of the batch
UNLIKE = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def token_bytes(model: Any) -> int:
    """Bytes of keys and values per token. Raises Unshareable, with the reason, where sharing fails.

    Two rows after one prefix take two steps; the logits are compared with those of each row alone.
    """
    import torch

    if getattr(model.config, "is_encoder_decoder", False):
        raise Unshareable("generate_until: an encoder–decoder model shares no prefix; one batch each")
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    rows = torch.randint(vocabulary, (len(PROMPTS), PREFIX + max(PROMPTS) + MADE), generator=generator)
    tokens: list[list[int]] = rows.tolist()
    for row in tokens:
        row[:PREFIX] = tokens[0][:PREFIX]
    try:
        expected = _alone(model, tokens)
        found, size = _shared(model, tokens)
    except UNLIKE as error:  # a cache, an attention or a signature that is not the usual one
        raise Unshareable(f"generate_until: no shared prefix for {type(model).__name__}: {error}") from error
    worst = float((expected - found).abs().max() / expected.std())
    if not worst <= _tolerance(model):
        raise Unshareable(f"generate_until: a shared prefix changes the logits by {worst:.1g} deviations")
    return size


def shareable_length(config: Any) -> int | None:
    """The tokens up to which every layer attends to everything and positions mean the same; ``None``: all."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if getattr(text, "use_sliding_window", True) is False:
        limits[0] = None
    scaling = getattr(text, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope"):
        limits += [scaling.get("original_max_position_embeddings"), text.max_position_embeddings]
        limits.append(getattr(text, "original_max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


def _alone(model: Any, tokens: list[list[int]]) -> torch.Tensor:
    """The logits [row, step, vocabulary] that the model gives for each row by itself."""
    import torch

    logits = []
    with torch.no_grad():
        for row, prompt in zip(tokens, PROMPTS, strict=True):
            ids = torch.tensor([row[: PREFIX + prompt + MADE - 1]], device=model.device)
            logits.append(model(input_ids=ids).logits[0, -MADE:].float())
    return torch.stack(logits)


def _shared(model: Any, tokens: list[list[int]]) -> tuple[torch.Tensor, int]:
    """The same logits from rows that share their prefix, and the bytes per token."""
    import torch

    shared = SharedPrefix(len(tokens), max(PROMPTS) + MADE)
    waiting = [Row(i, tokens[i][PREFIX : PREFIX + n]) for i, n in reversed(list(enumerate(PROMPTS)))]
    running: list[Row] = []
    steps = []
    with torch.no_grad(), active(model, shared):
        fill_prefix(model, shared, tokens[0][:PREFIX])
        enter(model, shared, running, waiting, len(tokens))
        for _ in range(MADE):
            steps.append(next_logits(model, shared, running))
            for row in running:
                row.made.append(tokens[row.place][PREFIX + len(row.tokens) + len(row.made)])
    if not shared.is_complete:  # positions in the scores (Bloom), no attention at all (Mamba)
        raise Unshareable(f"generate_until: {type(model).__name__} has no attention that can share a prefix")
    return torch.stack(steps, 1), shared.token_bytes


def _tolerance(model: Any) -> float:
    import torch

    quantized = getattr(model.config, "quantization_config", None) is not None
    return TOLERANCE if model.dtype == torch.float32 and not quantized else COARSE
