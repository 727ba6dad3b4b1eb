"""Make the compressed model again from the original, with the submission's own build.sh, in a box."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorecard.artifact import regular_files
from scorecard.box import Box
from scorecard.box_python import environment, places, prefixes
from scorecard.claims import Verdict
from scorecard.documents import locate
from scorecard.errors import SourceError, SubmissionError
from scorecard.manifest import FileEntry, Manifest
from scorecard.plain import plain
from scorecard.sandbox import Boxed, empty_root
from scorecard.store import sha256_file

if TYPE_CHECKING:
    from scorecard.scoring import BoxSettings
    from scorecard.verified import VerifyOptions

_CODE, _ORIGINAL, _OUTPUT = "/submission", "/original", "/output"
_LAST_CHARACTERS = 300


def rebuilt(
    manifest: Manifest,
    code: Path,
    settings: BoxSettings,
    options: VerifyOptions,
    rescored: Callable[[Path], Verdict],
) -> Verdict:
    """Whether ``build.sh --compress`` gives the files of the submission, or others of that size and accuracy.

    Raises SourceError where the original is not at hand, SubmissionError where build.sh fails.
    """
    original = _original(manifest, options.original)
    differing = _differing(original, manifest.original)
    if differing:
        raise SourceError(f"{plain(differing[0])}: is not the original's that the manifest names")
    room = settings.limits.scratch_bytes + 2 * manifest.model_bytes
    settings = replace(settings, limits=replace(settings.limits, scratch_bytes=room))
    with tempfile.TemporaryDirectory(prefix="scorecard-rebuild-", ignore_cleanup_errors=True) as scratch:
        output, copy = Path(scratch, "output"), Path(scratch, "code")
        output.mkdir()
        shutil.copytree(code, copy)
        for folder in (output, copy, *(path for path in copy.rglob("*") if path.is_dir())):
            folder.chmod(0o777)  # inside it is another user
        _run(settings, copy, original, output, options)
        return _compared(output, manifest, rescored)


def _original(manifest: Manifest, given: Path | None) -> Path:
    """Never a path that the manifest names: it would say what of this machine to show to its code."""
    source = manifest.model.get("source")
    if given is not None:
        if not given.is_dir():
            raise SourceError(f"--original {given}: there is no such folder")
        return given.resolve()
    if source == "embedded:tiny-llama":
        return locate(source)
    raise SourceError("the original model is not at hand; give its folder with --original")


def _differing(folder: Path, entries: Mapping[str, FileEntry]) -> list[str]:
    """Files that ``entries`` name and ``folder`` has not, or has otherwise."""
    return [
        name
        for name, entry in entries.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != entry.sha256
    ]


def _run(settings: BoxSettings, code: Path, original: Path, output: Path, options: VerifyOptions) -> None:
    needed = places(prefixes(settings.python), network=options.network)
    shown = {_CODE: code, _ORIGINAL: original, _OUTPUT: output}
    where = {inside: inside if settings.isolated else str(path) for inside, path in shown.items()}
    variables = {"MODEL_DIR": where[_ORIGINAL], "OUTPUT_MODEL": where[_OUTPUT]}
    with empty_root() as root:
        box = Box(
            command=("/bin/bash", f"{where[_CODE]}/build.sh", "--compress"),
            root=str(root),
            readable={**needed.readable, _ORIGINAL: str(original)},
            writable={_CODE: str(code), _OUTPUT: str(output)},
            links=needed.links,
            environment={**environment(settings.python, None if settings.isolated else root), **variables},
            limits=settings.limits,
            network=options.network,
            isolated=settings.isolated,
        )
        printed, ended = Boxed(box).wait()
    if ended.error:
        raise SubmissionError(f"build.sh: the box cannot be made: {plain(ended.error)}")
    if ended.limit:
        raise SubmissionError(f"build.sh: passed {ended.limit}")
    if ended.code:
        last = printed.strip()[-_LAST_CHARACTERS:]
        raise SubmissionError(f"build.sh: exit code {ended.code}: {plain(last)}")


def _compared(output: Path, manifest: Manifest, rescored: Callable[[Path], Verdict]) -> Verdict:
    found = {path.relative_to(output).as_posix(): path for path in regular_files(output)}
    size = sum(path.stat().st_size for path in found.values())
    differing = sorted({*_differing(output, manifest.artifact), *(found.keys() - manifest.artifact.keys())})
    if not differing:
        return Verdict("rebuild", True, f"{len(found)} files, each with the sha256 of the manifest")
    told = f"{len(differing)} of {len(manifest.artifact)} files differ; {size:,} bytes"
    details = tuple(map(plain, differing[:20]))
    if size != manifest.claims.size_bytes:
        return Verdict("rebuild", False, f"{told}, claimed {manifest.claims.size_bytes:,}", details)
    again = rescored(output)
    return Verdict("rebuild", again.holds, f"{told} as claimed, accuracy {again.text}", details)
