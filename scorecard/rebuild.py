"""Make the compressed model again from the original, with the submission's own build.sh, in a box."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorecard.artifact import regular_files
from scorecard.box import Box
from scorecard.box_python import environment, places, prefixes
from scorecard.claims import Verdict
from scorecard.errors import SourceError, SubmissionError
from scorecard.manifest import NAME, Manifest
from scorecard.plain import plain
from scorecard.provenance import differing, original_folder
from scorecard.sandbox import Boxed, empty_root

if TYPE_CHECKING:
    from scorecard.scoring import BoxSettings
    from scorecard.unpacked import Parts
    from scorecard.verified import VerifyOptions

_CODE, _ORIGINAL, _OUTPUT = "/submission", "/original", "/output"
_LAST_CHARACTERS = 300


def rebuilt(
    manifest: Manifest,
    parts: Parts,
    settings: BoxSettings,
    options: VerifyOptions,
    rescored: Callable[[Path], Verdict],
) -> Verdict:
    """Whether ``build.sh --compress`` gives the files of the submission, or others of that size and accuracy.

    Raises SourceError where the original is not at hand, SubmissionError where build.sh fails.
    """
    original = original_folder(manifest, options.original)
    wrong = differing(original, manifest.original)
    if wrong:
        raise SourceError(f"{plain(wrong[0])}: is not the original's that the manifest names")
    room = settings.limits.scratch_bytes + 2 * manifest.model_bytes
    settings = replace(settings, limits=replace(settings.limits, scratch_bytes=room))
    with tempfile.TemporaryDirectory(prefix="scorecard-rebuild-", ignore_cleanup_errors=True) as scratch:
        output, copy = Path(scratch, "output"), Path(scratch, "code")
        output.mkdir()
        shutil.copytree(parts.code, copy)
        shutil.copyfile(parts.hidden / NAME, copy / NAME)  # its code checks the original by it
        for folder in (output, copy, *(path for path in copy.rglob("*") if path.is_dir())):
            folder.chmod(0o777)  # inside it is another user
        _run(settings, copy, original, output, options)
        return _compared(output, manifest, rescored)


def _run(settings: BoxSettings, code: Path, original: Path, output: Path, options: VerifyOptions) -> None:
    needed = places(prefixes(settings.python), network=options.network)
    shown = {_CODE: code, _ORIGINAL: original, _OUTPUT: output}
    where = {inside: inside if settings.isolated else str(path) for inside, path in shown.items()}
    variables = {"MODEL_DIR": where[_ORIGINAL], "OUTPUT_MODEL": where[_OUTPUT]}
    with empty_root() as root:
        home = None if settings.isolated else root
        box = Box(
            command=("/bin/bash", f"{where[_CODE]}/build.sh", "--compress"),
            root=str(root),
            readable={**needed.readable, _ORIGINAL: str(original)},
            writable={_CODE: str(code), _OUTPUT: str(output)},
            links=needed.links,
            environment={**environment(settings.python, home, settings.threads), **variables},
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
    different = sorted({*differing(output, manifest.artifact), *(found.keys() - manifest.artifact.keys())})
    if not different:
        return Verdict("rebuild", True, f"{len(found)} files, each with the sha256 of the manifest")
    told = f"{len(different)} of {len(manifest.artifact)} files differ; {size:,} bytes"
    details = tuple(map(plain, different[:20]))
    if size != manifest.claims.size_bytes:
        return Verdict("rebuild", False, f"{told}, claimed {manifest.claims.size_bytes:,}", details)
    again = rescored(output)
    return Verdict("rebuild", again.holds, f"{told} as claimed, accuracy {again.text}", details)
