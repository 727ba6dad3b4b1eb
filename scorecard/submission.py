"""From a frozen folder to a zip that a third party can verify, after the checks that the zip has to pass.

The zip holds the folder as ``user/`` and ``user.py`` once more at its top. Nothing in it depends on when,
where or by whom it was made: equal folders give equal bytes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from scorecard.artifact import regular_files
from scorecard.errors import ArtifactError, SubmissionError
from scorecard.manifest import NAME, FileEntry, Manifest
from scorecard.pickles import pickled
from scorecard.plain import plain
from scorecard.requirements import read_requirements
from scorecard.store import sha256_file
from scorecard.strict_manifest import read_strictly
from scorecard.token_scan import scan
from scorecard.unpack import UnpackLimits, check_name

TOP, USER = "user", "user.py"
REQUIRED = ("build.sh", "run.sh", USER, "compression/compress.py", "README.md", NAME)
PROJECT = ("pyproject.toml", "setup.py")
_MADE = re.compile(r"(^|/)(__pycache__|results|build|dist|[^/]+\.egg-info|\.[^/]+)(/|$)|\.pyc$")
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


@dataclass(frozen=True)
class Submission:
    """What ``submit`` packed."""

    files: int
    code_bytes: int
    model_bytes: int
    sha256: str


def submit(folder: Path, target: Path, allowed: Collection[str] = ()) -> Submission:
    """Check ``folder`` and pack it into ``target``, whole or not at all.

    ``allowed`` are places, ``FILE:LINE``, where what looks like a secret is none. Raises SubmissionError,
    ArtifactError and ManifestError with the first thing that is wrong.
    """
    if target.suffix != ".zip":
        raise SubmissionError(f"{target}: is no name of a zip; write FILE.zip")
    if not folder.is_dir():
        raise SubmissionError(f"{folder}: there is no such folder; freeze a case first")
    if target.resolve().is_relative_to(folder.resolve()):
        raise SubmissionError(f"{target}: lies in the folder that is packed; write it elsewhere")
    manifest = read_strictly(folder)
    names = packed_names(folder, manifest)
    check_folder(folder, names, manifest)
    check_secrets(folder, names, manifest, allowed)
    _write(folder, names, target)
    return Submission(len(names), manifest.code_bytes, manifest.model_bytes, sha256_file(target))


def packed_names(folder: Path, manifest: Manifest) -> list[str]:
    """All files of the folder but what a run leaves there; every one a regular file in it."""
    named = {*manifest.code, *(f"{manifest.artifact_folder}/{name}" for name in manifest.artifact)}
    names = [path.relative_to(folder).as_posix() for path in regular_files(folder)]
    return [name for name in names if name in named or not _MADE.search(name)]


def check_folder(folder: Path, names: Collection[str], manifest: Manifest) -> None:
    """Required files are there, no file is a pickle, and all are those that the manifest names."""
    for name in REQUIRED:
        if name not in names:
            raise SubmissionError(f"{name}: is missing; freeze again")
    if not set(PROJECT) & set(names):
        raise SubmissionError(f"{' or '.join(PROJECT)}: is missing; freeze again")
    for name in names:
        check_name(name)
        if reason := pickled(folder / name):
            raise ArtifactError(f"{plain(name)}: {reason}; use safetensors or JSON")
    _check_limits(folder, names)
    for fault in hash_faults(folder, names, manifest):
        raise SubmissionError(fault)
    read_requirements(folder / manifest.requirements)


def hash_faults(folder: Path, names: Collection[str], manifest: Manifest) -> Iterator[str]:
    """Where files and manifest differ, a line each."""
    artifact = {f"{manifest.artifact_folder}/{name}": entry for name, entry in manifest.artifact.items()}
    named = {**manifest.code, **artifact}
    for name in sorted({*names, *named} - {NAME}):
        if name not in named:
            yield f"{plain(name)}: is not in the manifest; remove it or freeze again"
        elif name not in names:
            yield f"{plain(name)}: is in the manifest and not in the folder; freeze again"
        elif (found := entry_of(folder / name)) != named[name]:
            what = "size" if found.size_bytes != named[name].size_bytes else "sha256"
            yield f"{plain(name)}: its {what} is not the manifest's; freeze again"


def entry_of(path: Path) -> FileEntry:
    return FileEntry(sha256_file(path), path.stat().st_size)


def check_secrets(folder: Path, names: Collection[str], manifest: Manifest, allowed: Collection[str]) -> None:
    """In the model's files, whose vocabularies look random, only tokens with a known form are found."""
    for name in names:
        entropy = not name.startswith(f"{manifest.artifact_folder}/") and name != NAME
        for found in scan(folder / name, name, entropy=entropy):
            place = f"{found.file}:{found.line}"
            if place not in allowed:
                mend = f"remove it, or write --allow {plain(place)} if it is none"
                raise SubmissionError(f"{plain(place)}: holds {found.what}; {mend}")


def _check_limits(folder: Path, names: Collection[str]) -> None:
    limits, total = UnpackLimits(), 0
    if len(names) + 1 > limits.files:
        raise SubmissionError(f"{folder}: holds {len(names)} files, more than {limits.files}; remove some")
    for name in names:
        size = (folder / name).stat().st_size
        total += size
        if size > limits.file_bytes or total > limits.total_bytes:
            raise SubmissionError(f"{plain(name)}: too large for the limits of 'verify'; shrink the model")


def _write(folder: Path, names: Collection[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    inside = {USER: folder / USER, **{f"{TOP}/{name}": folder / name for name in names}}
    try:
        with partial.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zipped:
                for name in sorted(inside):
                    _add(zipped, name, inside[name])
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _add(zipped: zipfile.ZipFile, name: str, path: Path) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system = _UNIX
    info.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
    info.file_size = path.stat().st_size
    with path.open("rb") as source, zipped.open(info, "w") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
