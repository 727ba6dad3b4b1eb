"""Latency and memory of a causal language model: load, prefill and decode, beside the original's.

Prefill is one forward pass over the prompt up to the first new token (TTFT); decode is one greedy step with
the key-value cache (TPOT). Candidate and baseline take turns in one process, so that whatever else the
machine does hits both: ratios are taken between their 10th percentiles, never between means.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scorecard import memory
from scorecard.errors import SpecError
from scorecard.machine import memory_bytes
from scorecard.spec import MeasureSpec
from scorecard.timing import SEED, Timed, draw_prompt, percentiles, run_round, time_interleaved

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def measure(
    load: Callable[[], LM],
    spec: MeasureSpec,
    load_baseline: Callable[[], LM] | None = None,
    *,
    baseline_bytes: int | None = None,
) -> dict[str, Any]:
    """Load and time a candidate; the baseline is loaded only once the candidate's memory is known.

    ``baseline_bytes`` is what the baseline's weights take: with less memory than that available it is not
    loaded. Returns the measure format of docs/measuring.md; an LM that is not a Hugging Face causal model
    gets a ``reason`` in place of times. Raises SpecError when the model cannot take so many tokens.
    """
    _import_common()
    memory.reset_peaks()
    begin = time.perf_counter()
    lm = load()
    load_seconds = time.perf_counter() - begin
    candidate, reason = _timed(lm)
    if candidate:
        _check_length(candidate, spec)
        run_round(candidate, draw_prompt([candidate], spec), spec)
    result = {"load_seconds": load_seconds, **_peaks(), "reason": reason}
    baseline: Timed | None = None
    baseline_reason: str | None = reason
    if candidate:
        baseline, baseline_reason = _baseline(spec, load_baseline, baseline_bytes)
        time_interleaved([candidate, baseline] if baseline else [candidate], spec)
        if spec.decode_tokens and not candidate.decode:
            result["reason"] = f"{type(candidate.model).__name__} keeps no key-value cache: no decode times"
    return {
        **result,
        **_rates(candidate, spec),
        **_against(candidate, baseline, baseline_reason),
        **_conditions(candidate, spec),
    }


def _import_common() -> None:
    """What every runner loads with, so that ``load_seconds`` is not mostly the import of torch."""
    lm_eval = importlib.util.find_spec("lm_eval") is not None
    for name in ("torch", "lm_eval.models.huggingface" if lm_eval else "transformers"):
        importlib.import_module(name)


def _timed(lm: LM) -> tuple[Timed | None, str | None]:
    """The model inside an LM, or why it cannot be timed."""
    import torch

    model = getattr(lm, "model", None)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        return None, f"{type(lm).__name__} holds no Hugging Face causal model as 'model'"
    if not hasattr(model.config, "get_text_config"):
        return None, f"{type(model).__name__} has no Hugging Face configuration"
    if getattr(model.config, "is_encoder_decoder", False):
        return None, f"{type(model).__name__} is not a decoder-only model"
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    return Timed(model.eval(), keeps), None


def _check_length(timed: Timed, spec: MeasureSpec) -> None:
    most = getattr(timed.config, "max_position_embeddings", None)
    wanted = spec.prompt_tokens + spec.decode_tokens
    if most is not None and wanted > most:
        raise SpecError(
            f"measure: prompt_tokens + decode_tokens is {wanted}, but the model takes {most}; write fewer"
        )


def _peaks() -> dict[str, Any]:
    host = memory.host_memory()
    return {
        "peak_host_memory_bytes": host.pop("peak_bytes"),
        "peak_cuda_memory_bytes": memory.peak_cuda_bytes(),
        "host_memory": host,
    }


def _baseline(
    spec: MeasureSpec, load: Callable[[], LM] | None, needed: int | None
) -> tuple[Timed | None, str | None]:
    """The baseline ready to be timed, or the reason why there is none."""
    if not spec.interleave:
        return None, "measure.interleave is false"
    if load is None:
        return None, "there is no baseline to compare with"
    available = _available_bytes()
    if needed is not None and available is not None and needed > available:
        return None, f"the baseline needs {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"
    try:
        baseline, reason = _timed(load())
        if baseline:
            run_round(baseline, draw_prompt([baseline], spec), spec)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return None, f"the baseline does not fit into memory beside the candidate: {_first_line(error)}"
    return baseline, reason


def _available_bytes() -> int | None:
    import torch

    if torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count()))
    return memory_bytes("MemAvailable")


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has an exception of its own for GPUs; its CPU allocator raises a plain RuntimeError."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _rates(candidate: Timed | None, spec: MeasureSpec) -> dict[str, Any]:
    prefill = percentiles(candidate.prefill) if candidate else None
    decode = percentiles(candidate.decode) if candidate else None
    tokens = spec.batch_size * spec.prompt_tokens
    return {
        "prefill": prefill,
        "decode": decode,
        "prefill_tokens_per_second": tokens / prefill["p50"] if prefill else None,
        "decode_tokens_per_second": spec.batch_size / decode["p50"] if decode else None,
    }


def _against(candidate: Timed | None, baseline: Timed | None, reason: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"baseline": None, "baseline_reason": reason}
    if baseline:
        values["baseline"] = {n: percentiles(getattr(baseline, n)) for n in ("prefill", "decode")}
    for name in ("prefill", "decode"):
        ours = percentiles(getattr(candidate, name)) if candidate else None
        theirs = percentiles(getattr(baseline, name)) if baseline else None
        values[f"{name}_speedup"] = theirs["p10"] / ours["p10"] if ours and theirs else None
    return values


def _conditions(candidate: Timed | None, spec: MeasureSpec) -> dict[str, Any]:
    import torch

    settings: dict[str, Any] = dataclasses.asdict(spec)
    if candidate:
        dtype = getattr(candidate.model, "dtype", candidate.first_weight.dtype)
        settings |= {
            "seed": SEED,
            "device": str(candidate.device),
            "dtype": str(dtype).removeprefix("torch."),
            "last_logits_only": candidate.last_logits_only,
        }
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {"threads": torch.get_num_threads(), "load_average": load, "settings": settings}
