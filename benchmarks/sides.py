"""The two sides of the comparison, each alive in a process of its own that runs one task at a time."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import models
from benchmarks.tasks import Task
from runners._scoring import products
from scorecard import memory

BatchSize = int | str | None  # ``None``: it works that out itself


@dataclass(frozen=True)
class Setting:
    """What both sides have in common."""

    model: str
    device: str
    dtype: str
    threads: int
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One run of a task. ``model_seconds`` is the part of ``cpu_seconds`` spent in the model's forward
    passes (``None`` on a GPU, which works on its own); tokens are those given to the model, head rows the
    positions whose next token was scored; ``peak_bytes`` is above what was held before the run.
    """

    cpu_seconds: float
    wall_seconds: float
    model_seconds: float | None
    tokens: int
    head_rows: int
    peak_bytes: int | None
    answers: list[Any]


def serve(connection: Connection, side: str, setting: Setting) -> None:
    """Answer (task, batch size) with a Sample, or the line that says why not, until ``None`` comes."""
    torch.set_num_threads(setting.threads)
    torch.set_grad_enabled(False)
    model = models.model(setting.model, setting.device, getattr(torch, setting.dtype), setting.seed)
    tokenizer = models.tokenizer()
    counts = Counts(model, setting.device)
    make = _MAKERS[side]
    logging.disable(logging.WARNING)
    while (order := connection.recv()) is not None:
        task, batch_size = order
        connection.send(_sample(make(model, tokenizer, batch_size), task, counts))


def _sample(lm: Any, task: Task, counts: Counts) -> Sample | str:
    from lm_eval.api.instance import Instance

    kind: Any = task.kind
    requests = [Instance(kind, {}, row, place) for place, row in enumerate(task.requests)]
    _give_back()
    memory.reset_peaks()
    before = _held(counts.device)
    counts.clear()
    method = getattr(lm, task.kind)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            answers = method(requests)  # lm-eval draws progress bars and prints what it finds
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    _wait(counts.device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = memory.peak_cuda_bytes() if counts.on_gpu else memory.peak_host_bytes()
    above = None if peak is None or before is None else peak - before
    inside = None if counts.on_gpu else counts.seconds
    rows = getattr(lm, "rows_read", None) or counts.head_rows  # ours does not always call the head itself
    return Sample(cpu, wall, inside, counts.tokens, rows, above, list(answers))


class Counts:
    """Hooks that count what passes through a model's layers and through its head."""

    def __init__(self, model: Any, device: str) -> None:
        self.device, self.on_gpu = device, device.startswith("cuda")
        self.clear()
        body, head = model.base_model, model.get_output_embeddings()
        body.register_forward_pre_hook(self._enter_body, with_kwargs=True)
        head.register_forward_pre_hook(self._enter)
        body.register_forward_hook(self._leave)
        head.register_forward_hook(self._leave_head)
        self._product, products.product = products.product, self._timed_product

    def clear(self) -> None:
        self.seconds, self.tokens, self.head_rows, self._entered = 0.0, 0, 0, 0.0

    def _enter_body(self, module: Any, values: Any, settings: Any) -> None:
        ids = settings.get("input_ids", values[0] if values else None)
        self.tokens += (settings["inputs_embeds"][..., 0] if ids is None else ids).numel()
        self._enter(module, values)

    def _enter(self, module: Any, values: Any) -> None:
        self._entered = time.process_time()

    def _leave(self, module: Any, values: Any, result: Any) -> None:
        self.seconds += time.process_time() - self._entered

    def _timed_product(self, states: Any, weight: Any) -> Any:
        """The part of the head's work that ours does without calling the head."""
        started = time.process_time()
        result = self._product(states, weight)
        self.seconds += time.process_time() - started
        return result

    def _leave_head(self, module: Any, values: Any, result: Any) -> None:
        self.head_rows += result[..., 0].numel()
        self._leave(module, values, result)


def _held(device: str) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated()
    return memory.host_memory()["resident_bytes"]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _give_back() -> None:
    """What an earlier run freed goes back to the system, or it would hide what this one takes."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _hflm(model: Any, tokenizer: Any, batch_size: BatchSize) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _plain(model: Any, tokenizer: Any, batch_size: BatchSize) -> Any:
    from runners._plain_lm import PlainLM

    return PlainLM(model, tokenizer, batch_size=int(batch_size or 8))


def _fast(model: Any, tokenizer: Any, batch_size: BatchSize) -> Any:
    from runners._scoring.lm import FastLM

    return FastLM(model, tokenizer)


_MAKERS: dict[str, Callable[[Any, Any, BatchSize], Any]] = {"hflm": _hflm, "plain": _plain, "fast": _fast}


@contextlib.contextmanager
def started(side: str, setting: Setting) -> Iterator[Callable[[Task, BatchSize], Sample]]:
    """A new process for ``side``; what comes out runs a task there. Raises RuntimeError where that fails."""
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, side, setting), daemon=True)
    process.start()
    there.close()

    def run(task: Task, batch_size: BatchSize) -> Sample:
        here.send((task, batch_size))
        try:
            answer = here.recv()
        except EOFError:
            raise RuntimeError(f"{side}: its process ended during {task.name}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{side}: {task.name} with batch size {batch_size}: {answer}")
        sample: Sample = answer
        return sample

    try:
        yield run
    finally:
        with contextlib.suppress(BrokenPipeError):
            here.send(None)
        process.join(10)
        process.kill()
