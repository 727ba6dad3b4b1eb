"""One case by itself: what its records say, as a row without anything that needs another case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard.row import GIB, Row, RowStatus, TaskScore
from scorecard.spec import STAGES, GateSpec, Record
from scorecard.speed import speedup

#: Row keys that are copied from a stage's result: key -> stage and path in it.
_COPIED: Mapping[str, tuple[str, ...]] = {
    "size_bytes": ("audit", "ledger", "size_bytes"),
    "bits_per_weight": ("audit", "ledger", "bits_per_weight"),
    "bits_per_weight_body": ("audit", "ledger", "bits_per_weight_body"),
    "could_shrink_by_bytes": ("audit", "ledger", "could_shrink_by_bytes"),
    "mean_accuracy": ("evaluate", "mean_accuracy"),
    "mean_accuracy_stderr": ("evaluate", "mean_accuracy_stderr"),
    "kl": ("evaluate", "heldout", "kl"),
    "kl_stderr": ("evaluate", "heldout", "kl_stderr"),
    "top1": ("evaluate", "heldout", "top1"),
    "top1_stderr": ("evaluate", "heldout", "top1_stderr"),
    "heldout_documents": ("evaluate", "heldout", "documents"),
    "perplexity": ("evaluate", "heldout", "perplexity"),
    "bits_per_byte": ("evaluate", "heldout", "bits_per_byte"),
    "prefill_tokens_per_second": ("measure", "prefill_tokens_per_second"),
    "decode_tokens_per_second": ("measure", "decode_tokens_per_second"),
    "prefill_speedup": ("measure", "prefill_speedup"),
    "decode_speedup": ("measure", "decode_speedup"),
    "timing_rounds": ("measure", "settings", "repeats"),
    "load_seconds": ("measure", "load_seconds"),
    "peak_host_memory_bytes": ("measure", "peak_host_memory_bytes"),
    "peak_cuda_memory_bytes": ("measure", "peak_cuda_memory_bytes"),
    "compress_seconds": ("compress", "seconds"),
    "compress_peak_host_memory_bytes": ("compress", "peak_host_memory_bytes"),
    "compress_peak_cuda_memory_bytes": ("compress", "peak_cuda_memory_bytes"),
}


@dataclass(frozen=True)
class CaseRecords:
    """What is known of one case: the record of each stage that was asked for, failed and skipped ones too.

    ``documents`` is the evaluate stage's documents.parquet; ``skipped`` says why no stage was run at all;
    ``expected`` is the reason of a declared failure that came true; ``gate`` is what it must reach.
    """

    case: str
    model: str
    config: str
    runner: str
    records: Mapping[str, Record] = field(default_factory=dict)
    documents: Path | None = None
    skipped: str | None = None
    expected: str | None = None
    gate: GateSpec | None = None


def own_row(case: CaseRecords) -> Row:
    """The row of a case before it is compared: no recovery, no floor scores, no rank."""
    status, reason = _status(case)
    copied = {key: _number(_at(case.records, path)) for key, path in _COPIED.items()}
    tasks = {name: _task(task) for name, task in (_at(case.records, ("evaluate", "tasks")) or {}).items()}
    found = _at(case.records, ("audit", "audit", "findings")) or ()
    return Row(
        case.case,
        case.model,
        case.config,
        case.runner,
        status,
        reason,
        stages={stage: case.records[stage].status for stage in STAGES if stage in case.records},
        keys={stage: case.records[stage].key for stage in STAGES if stage in case.records},
        tasks=tasks,
        size_gib=None if copied["size_bytes"] is None else copied["size_bytes"] / GIB,
        documents=sum(task.n for task in tasks.values() if task.accuracy) or None,
        stopped_early=bool(_at(case.records, ("evaluate", "settings", "early_stop"))),
        chance_corrected_accuracy=_chance_corrected(tasks),
        prefill_p50_ms=_milliseconds(_at(case.records, ("measure", "prefill", "p50"))),
        decode_p50_ms=_milliseconds(_at(case.records, ("measure", "decode", "p50"))),
        findings=tuple(f"{finding['level']}: {finding['what']}" for finding in found),
        notes=_notes(case) if status == "ok" else (),
        **_speedup_ends(case.records),
        **copied,
    )


def _speedup_ends(records: Mapping[str, Record]) -> dict[str, Any]:
    rounds = _at(records, ("measure", "settings", "repeats"))
    ends: dict[str, Any] = {}
    for name in ("prefill", "decode"):
        ours, theirs = (
            _at(records, ("measure", *path, "samples_seconds")) for path in ((name,), ("baseline", name))
        )
        interval = speedup(theirs, ours, rounds) if ours and theirs and rounds else None
        if interval:
            ends |= {f"{name}_speedup_low": interval.low, f"{name}_speedup_high": interval.high}
    return ends


def _status(case: CaseRecords) -> tuple[RowStatus, str | None]:
    bad = [r for s in STAGES if (r := case.records.get(s)) and r.status == "failed"]
    if case.expected is not None:
        return "expected failure", case.expected or (f"{bad[0].stage}: {bad[0].reason}" if bad else None)
    if bad:
        return "failed", f"{bad[0].stage}: {bad[0].reason}"
    if any(record.status == "ok" for record in case.records.values()):
        return "ok", None
    skipped = (f"{r.stage}: {r.reason}" for s in STAGES if (r := case.records.get(s)))
    return "skipped", case.skipped or next(skipped, "not run")


def _notes(case: CaseRecords) -> tuple[str, ...]:
    """Why a value is missing in a row that is there, as the stages tell it."""
    skipped = [
        f"{s}: skipped: {r.reason}" for s in STAGES if (r := case.records.get(s)) and r.status == "skipped"
    ]
    told = {
        "held-out text": _at(case.records, ("evaluate", "heldout_reason")),
        "speed": _at(case.records, ("measure", "reason")),
    }
    if _at(case.records, ("evaluate", "settings", "early_stop")) and case.runner != "baseline":
        told["accuracy"] = "stopped early: its intervals are meant for a fixed number of documents"
    if shared := _at(case.records, ("evaluate", "lm_notes")):
        told["evaluation"] = "; ".join(shared)
    if case.runner != "baseline":
        told["speedup"] = _at(case.records, ("measure", "baseline_reason"))
    return tuple(skipped) + tuple(f"{what}: {why}" for what, why in told.items() if why)


def _task(task: Mapping[str, Any]) -> TaskScore:
    version, value, chance = task.get("version"), _number(task["value"]), _number(task.get("chance"))
    counts = bool(task["accuracy"]) and value is not None and chance is not None and chance != 1
    return TaskScore(
        task["metric"],
        value,
        _number(task.get("stderr")),
        int(task["n"]),
        chance,
        bool(task["accuracy"]),
        bool(task["higher_is_better"]),
        task.get("num_fewshot"),
        None if version is None else str(version),
        (value - chance) / (1 - chance) if counts else None,
    )


def _chance_corrected(tasks: Mapping[str, TaskScore]) -> float | None:
    """max(0, mean over the tasks); a task with chance 1 tells nothing, one without chance hides all."""
    counted = [t.chance_corrected for t in tasks.values() if t.accuracy and t.chance != 1]
    known = [value for value in counted if value is not None]
    return max(0.0, sum(known) / len(known)) if known and len(known) == len(counted) else None


def _at(records: Mapping[str, Record], path: tuple[str, ...]) -> Any:
    """The value at `path` of a finished stage's result; ``None`` where any part of the way is missing."""
    record = records.get(path[0])
    value: Any = record.result if record is not None and record.status == "ok" else None
    for name in path[1:]:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> Any:
    """`value`, or ``None`` when it is not finite, as the perplexity of a ruined model may be."""
    return None if value is None or not math.isfinite(value) else value


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
