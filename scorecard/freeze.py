"""A case of the store as a folder that stands alone: code, pins, data, per-document results, manifest.

docs/freezing.md describes the layout. Nothing is computed here but the manifest; what a case's stages have
not made is refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from runners import base, custom
from scorecard import freeze_code, freeze_data, freeze_manifest, freeze_pins, libraries, results, sources
from scorecard.errors import ManifestError
from scorecard.freeze_code import PROGRAMS
from scorecard.freeze_manifest import DOCUMENTS, REQUIREMENTS, Frozen, claimed
from scorecard.libraries import Library
from scorecard.manifest import NAME, Manifest
from scorecard.run import Run
from scorecard.spec import Case, to_json

TASKS = "tasks"
TEMPLATES = {
    "pyproject.toml": "pyproject.in"
}  # a file of that name would be read by the tools of this project
NEEDED = ("compress", "audit", "evaluate")
LIBRARY_ROW = (
    "| `{0}/` | the package `{0}`, which compress.py and user.py import from here; for "
    "`lm_eval/models/user.py` install it (`pip install .`) |\n"
)


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
    manifest = freeze_manifest.manifest(frozen, folder, requirements, tasks_folder=TASKS if local else None)
    code, model = manifest.code_bytes, manifest.model_bytes
    sums = {"code_bytes": code, "model_bytes": model, "total_bytes": code + model}
    manifest = dataclasses.replace(manifest, sums=sums)
    _text(folder / NAME, json.dumps(to_json(manifest), indent=1, ensure_ascii=False) + "\n")
    return manifest


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
        **_words(
            frozen, [*frozen.runner.requires, *(f"{library.name}, in this folder" for library in found)]
        ),
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


def _words(frozen: Frozen, backend: Sequence[str]) -> dict[str, str]:
    """What stands in the templates in place of ``@WORD@``. ``backend``: the distributions that compress."""
    claims, case = claimed(frozen), frozen.case
    return {
        "CASE": case.id,
        "MODEL": case.model.source,
        "RUNNER": f"{case.config.runner} ({', '.join(backend) or 'no library of its own'})",
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
