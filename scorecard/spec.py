"""What a run is made of, as frozen dataclasses that travel between processes as JSON.

A *case* is one model under one config; its id is ``set.name@version-config``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Stage = Literal["prepare", "compress", "audit", "evaluate", "measure"]
Status = Literal["ok", "failed", "skipped"]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSpec:
    """One entry of ``models:`` in models.yaml; see docs/models-yaml.md for every key."""

    set: str
    name: str
    version: str
    source: str
    sha256: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    shapes: Mapping[str, Any] = field(default_factory=dict)
    tuning_steps: int | None = None
    requires_toposort: bool = False
    cuda_sm: int | None = None

    @property
    def id(self) -> str:
        return f"{self.set}.{self.name}@{self.version}"


@dataclass(frozen=True)
class ConfigSpec:
    """A named compression recipe: a runner and its options, with every ``$variable`` already replaced."""

    name: str
    runner: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlyStop:
    """When a task may end before its last document: as soon as a test that may be looked at any number of
    times tells the case from the baseline, wrongly with probability at most ``alpha`` per task; with a
    ``margin`` also when their accuracies differ by less than that. Looked at after each ``every`` documents.
    """

    alpha: float = 0.05
    margin: float | None = None
    every: int = 50


@dataclass(frozen=True)
class EvalSpec:
    """How a case is scored. Equal specs (and equal data) make two cases comparable.

    ``tasks`` are lm-eval task names or paths of task YAML files; ``task_paths`` are folders with further
    task files. ``heldout`` names the text on which KL divergence to the original is measured:
    ``embedded:heldout``, or a ``.jsonl`` (one ``{"text": …}`` a line) or ``.txt`` file. ``lm`` is ``shared``
    (what requests have in common is computed once) or ``hf`` (lm-eval's own HFLM).
    """

    tasks: tuple[str, ...]
    task_paths: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 16
    max_length: int | None = None
    dtype: str = "auto"
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    add_bos_token: bool | None = None
    seed: int = 1234
    bootstrap_iters: int = 1000
    heldout: str | None = None
    heldout_documents: int = 64
    heldout_tokens: int = 256
    early_stop: EarlyStop | None = None
    shuffle: int | None = None
    lm: str = "shared"


@dataclass(frozen=True)
class CalibrationSpec:
    """The calibration text that every backend of a run shares; see docs/models-yaml.md for every key.

    ``data`` is ``embedded:calibration``, a file, ``hf:org/name``, a registered name, or ``file.py:function``.
    ``max_length`` is in tokens, ``samples`` and ``vision_samples`` are sequences.
    """

    data: str
    samples: int = 128
    max_length: int = 256
    seed: int = 1234
    shuffle: bool = True
    concatenate: bool = True
    vision_samples: int = 0
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    file: str | None = None
    text_column: str | None = None
    messages_column: str | None = None
    images_column: str | None = None
    collator: str | None = None


@dataclass(frozen=True)
class MeasureSpec:
    """Latency settings: lengths in tokens, ``repeats`` timed rounds after ``warmup`` untimed ones, CPU
    ``threads`` (``None``: one per core)."""

    batch_size: int = 1
    prompt_tokens: int = 64
    decode_tokens: int = 16
    warmup: int = 2
    repeats: int = 10
    interleave: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class Limit:
    """The most that one stage of a case may take; ``None`` means no limit."""

    time_seconds: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class Expect:
    """A declared failure: the case must fail in stage ``fails`` with a message that ``match`` finds."""

    fails: Stage
    match: str
    reason: str = ""


@dataclass(frozen=True)
class GateSpec:
    """What a case must reach; ``None`` asks for nothing.

    At least: ``recovery``, ``delta_accuracy`` (a share, below 0 for a loss), the two speedups over the
    baseline. At most: ``kl`` in nats per token, ``size_gib``, ``size_ratio`` to the baseline's size.
    """

    recovery: float | None = None
    delta_accuracy: float | None = None
    kl: float | None = None
    size_gib: float | None = None
    size_ratio: float | None = None
    prefill_speedup: float | None = None
    decode_speedup: float | None = None


@dataclass(frozen=True)
class Case:
    """One model under one config, with everything needed to run it."""

    model: ModelSpec
    config: ConfigSpec
    evaluation: EvalSpec
    calibration: CalibrationSpec | None = None
    measure: MeasureSpec = MeasureSpec()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    expect: Expect | None = None
    gate: GateSpec | None = None

    @property
    def id(self) -> str:
        return f"{self.model.id}-{self.config.name}"


@dataclass(frozen=True)
class Record:
    """The JSON of one finished stage; the only thing that reports are made from.

    ``result`` is the stage's own part (documented in docs/results.md), ``inputs`` is what the key was
    made of, ``files`` maps each file beside the record to its sha256. Times are UTC, ISO 8601.
    """

    stage: Stage
    key: str
    case: str
    status: Status
    inputs: Mapping[str, Any]
    started_at: str
    seconds: float
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    log_tail: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


def to_json(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into plain JSON types, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Build a dataclass from what ``to_json`` made; unknown keys raise ``TypeError``."""
    hints = typing.get_type_hints(cls)
    return cls(**{k: _decode(hints.get(k, Any), v) for k, v in data.items()})


def _decode(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode(next(a for a in args if a is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type[Any], hint), value)
    if origin is tuple:
        return tuple(_decode(args[0], v) for v in value)
    if origin is not None and isinstance(value, Mapping):
        return {k: _decode(args[1], v) for k, v in value.items()}
    return value
