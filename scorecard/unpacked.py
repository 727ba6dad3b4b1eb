"""An unpacked submission: whether it has the challenge's layout, and its parts, to be shown one by one."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path

from scorecard.artifact import regular_files
from scorecard.errors import SubmissionError
from scorecard.manifest import NAME, Manifest
from scorecard.plain import plain
from scorecard.submission import PROJECT, REQUIRED, TOP, USER


def check_names(names: list[str], folder: Path) -> None:
    """The challenge's layout: ``user/…``, and ``user.py`` at the top, the same as the one inside."""
    stray = [name for name in names if name != USER and not name.startswith(f"{TOP}/")]
    if stray:
        raise SubmissionError(f"{plain(stray[0])}: lies outside of {TOP}/; pack with 'scorecard submit'")
    for name in (USER, *(f"{TOP}/{required}" for required in REQUIRED)):
        if name not in names:
            raise SubmissionError(f"{name}: is missing; pack with 'scorecard submit'")
    if not any(f"{TOP}/{name}" in names for name in PROJECT):
        raise SubmissionError(f"{TOP}/{' or '.join(PROJECT)}: is missing; freeze again")
    if not filecmp.cmp(folder / USER, folder / TOP / USER, shallow=False):
        raise SubmissionError(f"{USER}: is not the one in {TOP}/; pack with 'scorecard submit'")


@dataclass(frozen=True)
class Parts:
    """The unpacked folder, taken apart so that a box can be shown one part and not another."""

    code: Path
    artifact: Path
    hidden: Path
    documents: Path | None
    code_bytes: int

    @classmethod
    def of(cls, folder: Path, scratch: Path, manifest: Manifest) -> Parts:
        artifact, hidden = scratch / "artifact", scratch / "hidden"
        hidden.mkdir()
        if not (folder / manifest.artifact_folder).is_dir():
            raise SubmissionError(f"{plain(manifest.artifact_folder)}: is no folder; pack the model too")
        (folder / manifest.artifact_folder).rename(artifact)
        (folder / NAME).rename(hidden / NAME)
        code_bytes = sum(path.stat().st_size for path in regular_files(folder))
        documents = None
        if manifest.documents and (folder / manifest.documents).is_file():
            documents = (folder / manifest.documents).rename(hidden / "documents.parquet")
        if manifest.tasks_folder and (folder / manifest.tasks_folder).is_dir():
            (folder / manifest.tasks_folder).rename(hidden / "tasks")  # it has the answers
        return cls(folder, artifact, hidden, documents, code_bytes)
