"""Time a Hugging Face causal model from outside: one prefill, then greedy steps with its key-value cache."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scorecard.spec import MeasureSpec

if TYPE_CHECKING:
    import torch

SEED = 1234
PERCENTILES = (10, 50, 90, 99)
SHORT_SECONDS = 0.1  # a prefill shorter than a few time slices of the scheduler is repeated in each round,
PREFILLS = 8  # this often: with one sample a round, a busy machine would hit nearly all of them


@dataclass
class Timed:
    """A model under the clock and its raw samples, in seconds."""

    model: torch.nn.Module
    last_logits_only: bool
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the first weight's place."""
        return self.first_weight.device

    @property
    def first_weight(self) -> torch.Tensor:
        weights = itertools.chain(self.model.parameters(), self.model.buffers())
        return next(weight for weight in weights if weight.device.type != "meta")

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()  # type: ignore[operator, union-attr]


def percentiles(samples: Sequence[float]) -> dict[str, Any] | None:
    """``samples_seconds`` as they are, their ``p10`` … ``p99`` (linear interpolation) and ``n``."""
    if not samples:
        return None
    import numpy as np

    values = np.percentile(samples, PERCENTILES, method="linear")
    named = {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}
    return {"samples_seconds": list(samples), **named, "n": len(samples)}


def draw_prompt(models: Sequence[Timed], spec: MeasureSpec) -> torch.Tensor:
    """Random token ids that every model knows, equal in every run: (batch_size, prompt_tokens)."""
    import torch

    known = min(timed.config.vocab_size for timed in models)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, known, (spec.batch_size, spec.prompt_tokens), generator=generator)


def time_interleaved(models: Sequence[Timed], spec: MeasureSpec) -> None:
    """``repeats`` rounds after ``warmup`` untimed ones; each round turns the order of the models around."""
    if len({timed.last_logits_only for timed in models}) > 1:
        for timed in models:  # the same work for both, or the ratio means nothing
            timed.last_logits_only = False
    prompt = draw_prompt(models, spec)
    with _no_garbage_collection():
        for number in range(spec.warmup + spec.repeats):
            for timed in models if number % 2 == 0 else models[::-1]:
                prefill, decode = run_round(timed, prompt, spec)
                if number >= spec.warmup:
                    timed.prefill.extend(prefill)
                    timed.decode.extend(decode)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_round(timed: Timed, prompt: torch.Tensor, spec: MeasureSpec) -> tuple[list[float], list[float]]:
    """Seconds of one prefill (of ``PREFILLS`` when it is short), and of each of ``decode_tokens`` steps."""
    import torch

    prefill: list[float] = []
    decode: list[float] = []
    with torch.inference_mode():
        ids = prompt.to(timed.device)
        while not prefill or (prefill[0] < SHORT_SECONDS and len(prefill) < PREFILLS):
            begin = _now(timed)
            token, cache = _forward(timed, ids, None)
            prefill.append(_now(timed) - begin)
        for _ in range(spec.decode_tokens if cache is not None else 0):
            begin = _now(timed)
            token, cache = _forward(timed, token, cache)
            decode.append(_now(timed) - begin)
    return prefill, decode


def _forward(timed: Timed, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """The next token of each row, shape (batch, 1), and the cache, ``None`` if the model keeps none."""
    extra = {"logits_to_keep": 1} if timed.last_logits_only else {}
    output = timed.model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
    return output.logits[:, -1:].argmax(dim=-1).to(ids.device), getattr(output, "past_key_values", None)


def _now(timed: Timed) -> float:
    """The clock, once everything that was sent to the GPU is done."""
    if timed.device.type == "cuda":
        import torch

        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter()
