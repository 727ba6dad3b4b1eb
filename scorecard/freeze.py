"""A case of the store as a folder that stands alone: code, pins, data, per-document results, manifest.

docs/freezing.md describes the layout. Nothing is computed here but the manifest; what a case's stages have
not made is refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import base, custom
from runners.base import BaseRunner
from scorecard import freeze_code, freeze_data, freeze_pins, libraries, locks, results, sources
from scorecard.errors import ManifestError
from scorecard.freeze_code import PROGRAMS, Calibration
from scorecard.libraries import Library
from scorecard.manifest import NAME, Claims, FileEntry, Manifest, TaskClaim
from scorecard.records import CaseRecords
from scorecard.row import Row
from scorecard.run import Run
from scorecard.sources import Fetched
from scorecard.spec import Case, Record, to_json
from scorecard.store import sha256_file

DOCUMENTS, TASKS, REQUIREMENTS = "documents.parquet", "tasks", "requirements.txt"
TEMPLATES = {
    "pyproject.toml": "pyproject.in"
}  # a file of that name would be read by the tools of this project
NEEDED = ("compress", "audit", "evaluate")
LIBRARY_ROW = "| `{0}/` | the package `{0}`, which compress.py and user.py import from here |\n"


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


def gather(run: Run, case: Case) -> Frozen:
    """What the store has of a case. Raises ManifestError for a case that is not done, or not to the end."""
    found = results.case_records(run, case)
    for stage in NEEDED:
        record = found.records.get(stage)
        if record is None or record.status != "ok":
            why = f"{stage} {record.status}: {record.reason}" if record else f"{stage} is not run yet"
            raise ManifestError(f"freeze: {case.id}: {why}; run 'pytest -k {case.config.name}' first")
    if case.evaluation.early_stop:
        raise ManifestError(
            f"freeze: {case.id}: its tasks were stopped early; evaluate without early_stop, then freeze"
        )
    original = sources.fetch(case.model, run.options.models_dir, offline=run.options.offline)
    runner = base.get(case.config.runner)(case, original.path, Path())
    calibration = freeze_data.calibration(case, runner, found.records["compress"], run.options.work_dir)
    rows = results.summarise(run, [case], write=False).table.rows
    row = next(row for row in rows if row.case == case.id)
    return Frozen(case, runner, found, row, original, calibration)


def write(frozen: Frozen, folder: Path) -> Manifest:
    """Fill the empty ``folder``; returns the manifest that it now holds."""
    names = list(frozen.record("evaluate").result["tasks"])
    local = freeze_data.tasks(frozen.case.evaluation, names)
    if isinstance(frozen.runner, custom.Runner):
        _copy_user(frozen.runner.folder, folder)
        requirements = freeze_pins.requirements(frozen.runner, freeze_pins.named_by(frozen.runner.folder))
    else:
        requirements = _write_programs(frozen, folder)
    _text(folder / REQUIREMENTS, requirements)
    _text(folder / "evaluate.py", freeze_code.evaluation())
    _template(folder / "run.sh", {"THREADS": str(frozen.record("evaluate").result["threads"])})
    for name, content in local.items():
        (folder / TASKS / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / TASKS / name).write_bytes(content)
    assert frozen.records.documents is not None
    shutil.copyfile(frozen.records.documents, folder / DOCUMENTS)
    manifest = _manifest(frozen, folder, requirements, tasks_folder=TASKS if local else None)
    code, model = manifest.code_bytes, manifest.model_bytes
    sums = {"code_bytes": code, "model_bytes": model, "total_bytes": code + model}
    manifest = dataclasses.replace(manifest, sums=sums)
    _text(folder / NAME, json.dumps(to_json(manifest), indent=1, ensure_ascii=False) + "\n")
    return manifest


def entries(folder: Path) -> dict[str, FileEntry]:
    """Every file that is part of a frozen folder, by its path: not the manifest, nor what a run has made."""
    files = (path for path in custom.code(folder) if path != folder / NAME)
    return {p.relative_to(folder).as_posix(): FileEntry(sha256_file(p), p.stat().st_size) for p in files}


def _copy_user(source: Path, folder: Path) -> None:
    for path in list(custom.code(source)):
        target = folder / path.relative_to(source)
        if path.name != NAME:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def _write_programs(frozen: Frozen, folder: Path) -> str:
    """All that is not data; returns the text of requirements.txt."""
    old = freeze_pins.transformers_version(frozen.runner).startswith("4.")
    code = freeze_code.programs(frozen.case, frozen.runner, frozen.calibration, old_transformers=old)
    for name, text in code.items():
        _text(folder / name, text)
    if frozen.calibration:
        _text(folder / "compression" / "calibration.jsonl", frozen.calibration.text)
    found = libraries.needed(code.values())
    for library in found:
        _write_library(library, folder)
    more = freeze_pins.distributions(name for library in found for name in library.imports)
    requirements = freeze_pins.requirements(frozen.runner, more)
    words = {
        **_words(frozen),
        "DEPENDENCIES": "\n".join(
            f'    "{pin}",' for pin in freeze_pins.direct(frozen.runner, requirements, more)
        ),
        "PACKAGES": json.dumps([library.name for library in found]),
        "LIBRARIES": "".join(LIBRARY_ROW.format(library.name) for library in found),
    }
    for name in ("build.sh", "README.md", "pyproject.toml"):
        _template(folder / name, words)
    return requirements


def _write_library(library: Library, folder: Path) -> None:
    for name, content in library.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _words(frozen: Frozen) -> dict[str, str]:
    """What stands in the templates in place of ``@WORD@``."""
    claims, case = claimed(frozen), frozen.case
    return {
        "CASE": case.id,
        "MODEL": case.model.source,
        "RUNNER": f"{case.config.runner} ({', '.join(frozen.runner.requires) or 'no library of its own'})",
        "ACCURACY": f"{claims.mean_accuracy} ± {claims.mean_accuracy_stderr}",
        "SIZE": f"{claims.size_bytes:,} bytes",
        "SCORE": str(claims.score),
        "DESCRIPTION": f"{case.id}, frozen",
        "THREADS": str(frozen.record("evaluate").result["threads"]),
    }


def _template(path: Path, words: Mapping[str, str]) -> None:
    text = (PROGRAMS / TEMPLATES.get(path.name, path.name)).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    _text(path, text)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# -- the manifest ------------------------------------------------------------------------------------


def _manifest(frozen: Frozen, folder: Path, requirements: str, tasks_folder: str | None) -> Manifest:
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
