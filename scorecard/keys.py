"""What each stage's key is made of: everything that can change its result, and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners import _calibration
from runners.base import CORE as CORE_ENVIRONMENT
from runners.base import BaseRunner
from scorecard import environments, machine
from scorecard.spec import Case, EvalSpec, Stage, to_json
from scorecard.store import sha256_file, stage_key

# Raise a stage's number when equal inputs would now give another result.
VERSIONS: Mapping[Stage, int] = {"prepare": 1, "compress": 1, "audit": 3, "evaluate": 3, "measure": 1}
CORE = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
EVALUATION = ("lm-eval", "datasets")


def resolve(reference: str) -> Path:
    """A local reference: ``embedded:NAME`` is a part of this project, anything else a path."""
    scheme, _, name = reference.partition(":")
    return machine.ROOT / "embedded" / name if scheme == "embedded" else Path(reference)


def _data(reference: str) -> Path:
    path = resolve(reference)
    return path if path.suffix else path.with_suffix(".jsonl")


def packages(runner: type[BaseRunner], more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of what computes a result: those of the runner's environment, as its lock says, and, where
    that has none of ``more``, those of the scorecard's own."""
    wanted = [*CORE, *more, *(r.partition("==")[0] for r in runner.requires)]
    if runner.environment == CORE_ENVIRONMENT:
        return machine.packages(wanted)
    locked = environments.versions(runner.environment, wanted)
    return {**machine.packages(set(more) - set(locked)), **locked}


def prepare(spec: EvalSpec) -> dict[str, Any]:
    """Task names, the files that define local tasks, and the caches that hold the data of the others."""
    files = [Path(t) for t in spec.tasks if Path(t).is_file()]
    folders = {p for p in (*(resolve(p) for p in spec.task_paths), *(f.parent for f in files)) if p.is_dir()}
    caches = {n: os.environ.get(n) for n in ("HF_HOME", "HF_DATASETS_CACHE")}
    return {
        "stage": "prepare",
        "version": VERSIONS["prepare"],
        "tasks": [Path(t).name if Path(t) in files else t for t in spec.tasks],
        "definitions": sorted(stage_key(_definitions(folder)) for folder in folders),
        "limit": spec.limit,
        "num_fewshot": spec.num_fewshot,
        "caches": caches,
        "packages": machine.packages(EVALUATION),
    }


def _definitions(folder: Path) -> dict[str, str]:
    kinds = (".yaml", ".yml", ".json", ".jsonl", ".py", ".txt", ".parquet")
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in kinds and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): sha256_file(p) for p in files}


def compress(case: Case, runner: BaseRunner, model_sha256: str) -> dict[str, Any]:
    """The model's bytes, the recipe with its defaults, calibration data, packages and the kind of device."""
    kind = type(runner)
    # A folder's place changes nothing; what is in it is told by the runner's inputs(). Words do not either.
    fields = [
        f
        for f in dataclasses.fields(runner.options)
        if not f.metadata.get("path") and f.metadata.get("key", True)
    ]
    calibration = case.calibration if runner.calibrates else None
    return {
        "stage": "compress",
        "version": VERSIONS["compress"],
        "model": model_sha256,
        "trust_remote_code": case.model.trust_remote_code,
        "runner": kind.__module__,
        "runner_version": kind.version,
        "options": {f.name: to_json(getattr(runner.options, f.name)) for f in fields},
        "inputs": dict(runner.inputs()),
        "calibration": calibration
        and {**to_json(calibration), "data": None, **_calibration.inputs(calibration)},
        "packages": packages(kind),
        "device": machine.device(),
    }


def audit(parent: str) -> dict[str, Any]:
    return {"stage": "audit", "version": VERSIONS["audit"], "parent": parent}


def evaluate(
    case: Case, runner: type[BaseRunner], parent: str, tasks: Mapping[str, Any], reference: str | None
) -> dict[str, Any]:
    """The artifact, the resolved tasks with their data's hashes, every setting, and the key of the baseline's
    scores where they count."""
    spec = to_json(case.evaluation)
    heldout = case.evaluation.heldout
    for place in ("tasks", "task_paths"):
        del spec[place]
    return {
        "stage": "evaluate",
        "version": VERSIONS["evaluate"],
        "parent": parent,
        "tasks": tasks,
        "settings": {**spec, "heldout": heldout and sha256_file(_data(heldout))},
        "reference": reference,
        "packages": packages(runner, EVALUATION),
        "device": machine.device(),
    }


def measure(case: Case, runner: type[BaseRunner], parent: str, baseline: str | None) -> dict[str, Any]:
    """Both artifacts, the settings, and this very machine: a timing is worth nothing elsewhere."""
    return {
        "stage": "measure",
        "version": VERSIONS["measure"],
        "parent": parent,
        "baseline": baseline,
        "settings": to_json(case.measure),
        "machine": machine.describe(),
        "packages": packages(runner),
    }
