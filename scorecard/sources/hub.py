"""``hf:org/name@revision``: a model of the Hugging Face hub, through huggingface_hub's own cache.

The cache is the user's (``$HF_HOME``): what is there already is not fetched again, and offline it is all
there is. The token is found by huggingface_hub itself (``$HF_TOKEN`` or its login) and appears nowhere.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from scorecard.errors import ScorecardError, SourceError, SpecError, VerificationError
from scorecard.sources.contents import WEIGHTS, allowed, check_name, ignored, select
from scorecard.sources.manifest import walk
from scorecard.sources.placement import place
from scorecard.sources.scheme import Brought, Request


def bring(request: Request) -> Brought:
    """Fetch the snapshot into the hub's cache and place it; ``revision`` is the commit it resolved to.

    Raises SourceError: not found, gated, no network; VerificationError: a damaged file in the cache.
    """
    repository, _, revision = request.reference.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise SpecError(f"{request.where}: 'hf:{request.reference}' is no model; write hf:org/name@revision")
    snapshot = _snapshot(request, repository, revision or "main")
    blobs = {name: (snapshot / name).resolve() for name in select(walk(snapshot), request.model)}
    for name, blob in blobs.items():
        _check_small(blob, f"{request.where}: {name}")
        place(blob, request.files / name)
    hashed = {name: blob for name, blob in blobs.items() if len(blob.name) == 64}
    return Brought(origin=snapshot.parents[1], revision=snapshot.name, hashed=hashed)


def _snapshot(request: Request, repository: str, revision: str) -> Path:
    """The folder of the snapshot; pickles are asked for only where there are no safetensors."""
    snapshot = _download(request, repository, revision, pickles=False)
    weights = [n for n in walk(snapshot) if any(Path(n).match(p) for p in WEIGHTS)]
    if not weights and request.model.allow_pickle:
        snapshot = _download(request, repository, revision, pickles=True)
    for name in walk(snapshot):
        check_name(name, request.where)
    return snapshot


def _download(request: Request, repository: str, revision: str, *, pickles: bool) -> Path:
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise SourceError(f"{request.where}: run 'pip install huggingface_hub' for hf: sources") from None
    problem: ScorecardError
    offline = request.offline or constants.HF_HUB_OFFLINE
    # An HTTP error of the hub is an OSError as well; a ValueError is a name or a revision it does not take.
    expected: tuple[type[Exception], ...] = (OSError, ValueError, *_client_errors())
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(allowed(request.model, pickles=pickles)),
                ignore_patterns=list(ignored(pickles=pickles)),
                local_files_only=offline,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )
    except expected as error:
        problem = _explain(request, repository, revision, error, offline=offline)
    # Raised outside of the handler: the caught error holds the request, whose headers hold the token.
    raise problem


def _client_errors() -> tuple[type[Exception], ...]:
    import httpx2
    from huggingface_hub.errors import XetDownloadError

    return (httpx2.HTTPError, httpx2.InvalidURL, XetDownloadError)


def _explain(
    request: Request, repository: str, revision: str, error: Exception, *, offline: bool
) -> ScorecardError:
    """One line for what the hub's client raised, made of our own words only."""
    from huggingface_hub import errors

    causes = _causes(error)
    if offline:
        mend = "run once without --offline and HF_HUB_OFFLINE, or copy the hub's cache to this machine"
        return SourceError(f"{request.where}: {repository}@{revision} is not in the hub's cache; {mend}")
    page = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{repository}"
    known: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"{repository} is gated: accept its licence on {page} and set HF_TOKEN"),
        (
            errors.RepositoryNotFoundError,
            f"{repository} is not there, or private: check the name, and set HF_TOKEN if it is private",
        ),
        (errors.RevisionNotFoundError, f"{repository} has no revision '{revision}'; see {page}/commits/main"),
        (errors.HFValidationError, f"'{repository}' is not a name of the hub; write hf:org/name@revision"),
    ]
    for kind, line in known:
        if any(isinstance(c, kind) for c in causes):
            return SourceError(f"{request.where}: hub: {line}")
    return SourceError(f"{request.where}: hub: {_fault(causes, repository)}")


def _fault(causes: list[BaseException], repository: str) -> str:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    statuses = [c.response.status_code for c in causes if isinstance(c, HfHubHTTPError)]
    full = [c for c in causes if isinstance(c, OSError) and c.errno is not None and not _network(c)]
    if statuses and statuses[0] in (401, 403):
        return f"{repository} is refused ({statuses[0]}); set HF_TOKEN to a token that may read it"
    if statuses:
        return f"the server answers {statuses[0]} for {repository}; run again later, it goes on from there"
    if full:
        return f"{os.strerror(full[0].errno or 0)}: {full[0].filename or ''}; free some space or set HF_HOME"
    if any(isinstance(c, httpx2.HTTPError) for c in causes):
        return f"no connection for {repository}; check the network, DNS and HF_ENDPOINT, or use path:"
    return f"{repository} did not arrive whole ({type(causes[0]).__name__}); run again, it goes on from there"


def _network(error: OSError) -> bool:
    import socket

    return isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _check_small(blob: Path, where: str) -> None:
    """The cache names each file by its hash: sha256 for large ones, git's blob hash for the rest."""
    if len(blob.name) != 40:
        return
    data = blob.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if found != blob.name:
        raise VerificationError(f"{where}: damaged in the hub's cache; delete {blob} and run again")
