"""``embedded:NAME`` (a folder of ``embedded/`` in this repository) and ``path:FOLDER``."""

from __future__ import annotations

from pathlib import Path

import scorecard
from scorecard.errors import SourceError, VerificationError, nearest
from scorecard.sources.contents import select
from scorecard.sources.manifest import walk
from scorecard.sources.placement import place
from scorecard.sources.scheme import Brought, Request
from scorecard.spec import ModelSpec

EMBEDDED = Path(scorecard.__file__).parents[1] / "embedded"


def origin_of(scheme: str, reference: str) -> Path | None:
    """The folder that a local source names, whether it exists or not; None for a remote source.

    A relative ``path:`` starts at the current folder; ``~`` is the home folder.
    """
    if scheme == "embedded":
        return EMBEDDED / reference
    return Path(reference).expanduser().absolute() if scheme == "path" else None


def state(origin: Path, model: ModelSpec) -> dict[str, str]:
    """Size and modification time (ns) of each file of the model, as "size mtime_ns".

    Raises VerificationError for links that leave the folder, and what ``select`` raises.
    """
    root, found = origin.resolve(), {}
    for name in select(walk(origin), model):
        path = origin / name
        if not path.resolve().is_relative_to(root):
            raise VerificationError(
                f"{model.id}: {name} is a link out of {origin}; put the file itself there ('cp -L')"
            )
        if not path.is_file():
            raise VerificationError(f"{model.id}: {path} is not a regular file; put the file itself there")
        stat = path.stat()
        found[name] = f"{stat.st_size} {stat.st_mtime_ns}"
    return found


def bring(request: Request, origin: Path) -> Brought:
    """Place the model's files. Raises SourceError where there is no such folder."""
    if not origin.is_dir():
        raise SourceError(f"{request.where}: {_absent(origin)}")
    files = state(origin, request.model)
    for name in files:
        place(origin / name, request.files / name)
    return Brought(origin=origin, origin_files=files)


def _absent(origin: Path) -> str:
    if origin.is_file():
        return f"{origin} is a file; write the folder that holds it"
    if origin.parent != EMBEDDED:
        return f"there is no folder {origin}; mend 'source: path:…'"
    known = [p.name for p in EMBEDDED.glob("*/") if any(p.glob("*.safetensors"))]
    return f"embedded model '{origin.name}' is unknown; {nearest(origin.name, known)}"
