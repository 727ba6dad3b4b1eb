"""``fetch``: from a model entry to a verified local folder, once per machine however many ask for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from scorecard.errors import SourceError, SpecError, VerificationError, nearest
from scorecard.sources import local
from scorecard.sources.contents import check_contents, select
from scorecard.sources.folder import ModelFolder
from scorecard.sources.manifest import FileEntry, Manifest, canonical_sha256, hash_folder
from scorecard.sources.scheme import Brought, Request
from scorecard.spec import ModelSpec

SCHEMES = ("embedded", "path", "hf", "s3", "https", "http")


@dataclass(frozen=True)
class Fetched:
    """A model on this machine.

    ``sha256`` is over the manifest of all ``files`` (relative path to entry); ``seconds`` is what this
    call took. ``origin`` is the folder the files came from and might still be read at (``path:``,
    ``embedded:``, the model's folder in the hub's cache); ``revision`` the hub's commit.
    """

    path: Path
    sha256: str
    files: Mapping[str, FileEntry]
    seconds: float
    origin: Path | None
    revision: str | None = None


def default_models_dir() -> Path:
    """``$SCORECARD_MODELS_DIR``, else ``~/.scorecard-models``."""
    chosen = os.environ.get("SCORECARD_MODELS_DIR")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".scorecard-models"


def fetch(model: ModelSpec, models_dir: Path, *, offline: bool = False, verify: bool = False) -> Fetched:
    """The model in ``<models_dir>/<set>/<name>@<version>/``, fetched if it is not there yet.

    What is there and unchanged (by size and time; by sha256 with ``verify``) is returned at once. Several
    processes may ask for the same model: one fetches, the others wait for it. A killed call leaves nothing
    under the final name, and the next one goes on from its part files. ``offline`` allows no network.

    Raises SpecError (the source makes no sense), SourceError (it cannot be had) and VerificationError
    (wrong sha256, a pickle, a broken file), each with one line that says what mends it.
    """
    started = time.perf_counter()
    scheme, reference = _split(model)
    origin = local.origin_of(scheme, reference)
    folder = ModelFolder(models_dir.expanduser().absolute(), model)
    with _one_line(folder):
        manifest = folder.published(origin, verify=verify)
        if manifest is None or _is_touched(folder, manifest):
            folder.lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.lock):
                manifest = _fetch_alone(folder, scheme, reference, origin, offline, verify)
    came_from = origin or (Path(manifest.origin) if manifest.origin else None)
    seconds = time.perf_counter() - started
    return Fetched(folder.path, manifest.sha256, manifest.files, seconds, came_from, manifest.revision)


def _split(model: ModelSpec) -> tuple[str, str]:
    scheme, colon, reference = model.source.partition(":")
    if not colon or not reference or scheme not in SCHEMES:
        hint = nearest(scheme, SCHEMES[:-1]) if colon else "write embedded:NAME, path:FOLDER or hf:org/name"
        raise SpecError(f"{model.id}: unknown source '{scheme}'; {hint}")
    return scheme, reference


def _is_touched(folder: ModelFolder, manifest: Manifest) -> bool:
    """Whether times need noting again; in a read-only models folder they are compared by hash each time."""
    times = {n: (folder.path / n).stat().st_mtime_ns for n in manifest.files}
    changed = any(times[n] != e.mtime_ns for n, e in manifest.files.items())
    return changed and os.access(folder.models_dir, os.W_OK)


def _fetch_alone(
    folder: ModelFolder, scheme: str, reference: str, origin: Path | None, offline: bool, verify: bool
) -> Manifest:
    manifest = folder.published(origin, verify=verify)  # another process may have been faster
    if manifest is not None:
        return folder.refresh(manifest)
    manifest = folder.adopt()
    if manifest is not None:
        return manifest
    staged, downloads = folder.partial / "files", folder.partial / "downloads"
    if scheme != "s3":  # s3 downloads straight into it and goes on with what is there
        shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True, exist_ok=True)
    downloads.mkdir(exist_ok=True)
    brought = _bring(scheme, origin, Request(folder.model, reference, staged, downloads, offline))
    manifest = _verified(folder, staged, brought)
    folder.publish(staged, manifest)
    return manifest


def _bring(scheme: str, origin: Path | None, request: Request) -> Brought:
    if origin is not None:
        return local.bring(request, origin)
    # Imported here: most runs need no network, and these pull in its libraries.
    if scheme == "hf":
        from scorecard.sources import hub

        return hub.bring(request)
    if scheme == "s3":
        from scorecard.sources import s3

        return s3.bring(request)
    from scorecard.sources import https

    return https.bring(request)


def _verified(folder: ModelFolder, staged: Path, brought: Brought) -> Manifest:
    model = folder.model
    files = hash_folder(staged)
    check_contents(staged, select(files, model), model)
    for name, source in brought.hashed.items():
        if files[name].sha256 != source.name:
            raise VerificationError(
                f"{model.id}: {name}: damaged in the hub's cache; delete {source} and run again"
            )
    found = canonical_sha256(files)
    if brought.download_sha256 is None and folder.promised not in (None, found):
        raise VerificationError(
            f"{model.id}: the source has sha256 {found}, the entry says {model.sha256}; correct the entry if "
            f"the model was changed on purpose, else remove {folder.partial} and fetch again"
        )
    return Manifest(
        request=folder.request,
        sha256=found,
        files=files,
        origin=str(brought.origin) if brought.origin else None,
        origin_files=brought.origin_files,
        revision=brought.revision,
        download_sha256=brought.download_sha256,
    )


@contextlib.contextmanager
def _one_line(folder: ModelFolder) -> Iterator[None]:
    """What the disk refuses is for the user to mend; any other OSError is a bug and passes."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder.models_dir
        where = f"{folder.model.id}: {place}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space and run again (it goes on from there), or set SCORECARD_MODELS_DIR"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            mend = "make it accessible, or set SCORECARD_MODELS_DIR to a folder of your own"
        else:
            raise
        raise SourceError(f"{where}; {mend}") from None
