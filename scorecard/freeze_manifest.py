"""``manifest.json`` of a case of the store: what its records say, and the files of its frozen folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import custom
from runners.base import BaseRunner
from scorecard import locks
from scorecard.freeze_code import Calibration
from scorecard.manifest import NAME, Claims, FileEntry, Manifest, TaskClaim
from scorecard.records import CaseRecords
from scorecard.row import Row
from scorecard.sources import Fetched
from scorecard.spec import Case, Record, to_json
from scorecard.store import sha256_file

DOCUMENTS, REQUIREMENTS = "documents.parquet", "requirements.txt"


@dataclass(frozen=True)
class Frozen:
    """A case with all that its folder is made from."""

    case: Case
    runner: BaseRunner
    records: CaseRecords
    row: Row
    original: Fetched
    calibration: Calibration | None

    def record(self, stage: str) -> Record:
        return self.records.records[stage]


def manifest(frozen: Frozen, folder: Path, requirements: str, tasks_folder: str | None) -> Manifest:
    """All but the sums. ``folder`` is complete but for the manifest."""
    case, compress, evaluate = frozen.case, frozen.record("compress"), frozen.record("evaluate")
    ledger = frozen.record("audit").result["ledger"]
    calibration = frozen.calibration
    return Manifest(
        case=case.id,
        model=_model(frozen),
        config=_config(frozen),
        evaluation=dataclasses.replace(case.evaluation, task_paths=(), tasks=tuple(evaluate.result["tasks"])),
        claims=claimed(frozen),
        lm_eval=evaluate.result["lm_eval_version"],
        original={n: FileEntry(e.sha256, e.size_bytes) for n, e in sorted(frozen.original.files.items())},
        artifact={f["path"]: FileEntry(f["sha256"], f["size_bytes"]) for f in ledger["files"]},
        code=entries(folder),
        documents=DOCUMENTS,
        tasks_folder=tasks_folder,
        requirements=REQUIREMENTS,
        calibration=_calibration(frozen) if calibration else None,
        calibration_sha256=calibration.sha256 if calibration else None,
        seeds=_seeds(frozen),
        packages={**locks.parse("requirements", requirements, REQUIREMENTS).pins, **compress.packages},
        machine={
            **compress.machine,
            "device": compress.result["device"],
            "threads": evaluate.result["threads"],
        },
    )


def _model(frozen: Frozen) -> dict[str, Any]:
    model = frozen.case.model
    return {
        "id": model.id,
        "source": model.source,
        "revision": frozen.original.revision,
        "sha256": frozen.original.sha256,
        "trust_remote_code": model.trust_remote_code,
    }


def _config(frozen: Frozen) -> dict[str, Any]:
    """The recipe with every default; a user's own folder has none."""
    own = isinstance(frozen.runner, custom.Runner)
    return {
        "name": frozen.case.config.name,
        "runner": frozen.case.config.runner,
        "version": type(frozen.runner).version,
        "environment": frozen.runner.environment,
        "requires": list(frozen.runner.requires),
        "options": {} if own else to_json(frozen.runner.frozen_options()),
    }


def _calibration(frozen: Frozen) -> dict[str, Any]:
    assert frozen.calibration is not None
    assert frozen.case.calibration is not None
    said = frozen.record("compress").result["calibration"]
    return {
        "file": "compression/calibration.jsonl",
        "data": said["data"],
        "samples": frozen.calibration.samples,
        "tokens": frozen.calibration.tokens,
        "tokens_sha256": frozen.calibration.tokens_sha256,
        "max_length": frozen.case.calibration.max_length,
        "seed": frozen.case.calibration.seed,
    }


def _seeds(frozen: Frozen) -> dict[str, int]:
    found = {"evaluation": frozen.case.evaluation.seed}
    if frozen.calibration and frozen.case.calibration:
        found["calibration"] = frozen.case.calibration.seed
    own = getattr(frozen.runner.options, "seed", None)
    return found if own is None else {**found, "compression": own}


def claimed(frozen: Frozen) -> Claims:
    """What the case's row says. The score's interval is ``None`` without a baseline to pair with."""
    row, evaluated = frozen.row, frozen.record("evaluate")
    identities = evaluated.inputs["tasks"]["tasks"]
    return Claims(
        size_bytes=int(frozen.record("audit").result["ledger"]["size_bytes"]),
        mean_accuracy=row.mean_accuracy,
        mean_accuracy_stderr=row.mean_accuracy_stderr,
        score=row.score_raw,
        score_low=row.score_raw_low,
        score_high=row.score_raw_high,
        tasks={
            name: _task(score, identities.get(name, {})) for name, score in evaluated.result["tasks"].items()
        },
    )


def _task(score: Mapping[str, Any], identity: Mapping[str, Any]) -> TaskClaim:
    version = score["version"]
    return TaskClaim(
        metric=score["metric"],
        value=score["value"],
        stderr=score["stderr"],
        n=score["n"],
        version=None if version is None else str(version),
        accuracy=score["accuracy"],
        chance=score["chance"],
        num_fewshot=score["num_fewshot"],
        documents_sha256=identity.get("documents_sha256"),
        config_sha256=identity.get("config_sha256"),
    )


def entries(folder: Path) -> dict[str, FileEntry]:
    """Every file that is part of a frozen folder, by its path: not the manifest, nor what a run has made."""
    files = (path for path in custom.code(folder) if path != folder / NAME)
    return {p.relative_to(folder).as_posix(): FileEntry(sha256_file(p), p.stat().st_size) for p in files}
