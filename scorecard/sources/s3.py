"""``s3://bucket/prefix``: the objects under a prefix, or one object, through boto3.

Where ``prefix/<set>/<name>@<version>/`` exists, that is the model; else it is what lies under ``prefix/``.
Credentials, region and ``AWS_ENDPOINT_URL`` are found by boto3 itself; without any, requests are unsigned.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from scorecard.errors import SourceError, SpecError
from scorecard.sources.contents import select
from scorecard.sources.manifest import walk
from scorecard.sources.scheme import Brought, Request
from scorecard.sources.transfer import CHUNK_BYTES, Dropped, Reply, Restart, download, require_space, tag_of

_FOR_NOW = {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "500", "502", "503"}
_REFUSED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


def bring(request: Request) -> Brought:
    """Download what is not there yet. Raises SourceError: no bucket, object, credentials or network."""
    if request.offline:
        raise SourceError(f"{request.where}: offline, and not fetched yet; run once with the network")
    bucket, _, prefix = request.reference.removeprefix("//").partition("/")
    if not bucket:
        raise SpecError(f"{request.where}: the source names no bucket; write s3://bucket/prefix")
    client = _client(request)
    objects = _find(client, request, bucket, prefix.rstrip("/"))
    chosen = select(objects, request.model)
    for stale in set(walk(request.files)) - set(chosen):
        (request.files / stale).unlink()
    waiting = [n for n in chosen if not _is_there(request, n, objects[n])]
    missing_bytes = sum(objects[n]["Size"] for n in waiting)
    require_space(request.files, missing_bytes - _size_of_parts(request), request.where)
    for name in waiting:
        _get(client, request, bucket, objects[name], name)
    return Brought()


def _client(request: Request) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise SourceError(f"{request.where}: s3 needs boto3; run 'pip install boto3'") from None
    options = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 3}}
    try:
        session = boto3.Session()
        signature = {} if session.get_credentials() else {"signature_version": UNSIGNED}
        return session.client("s3", config=Config(**options, **signature))
    except (BotoCoreError, ValueError) as error:
        problem = SourceError(f"{request.where}: s3 settings are wrong ({type(error).__name__}); check AWS_…")
    raise problem


def _find(client: Any, request: Request, bucket: str, prefix: str) -> dict[str, Any]:
    """The objects of the model by their path in it: under the model's own folder, the prefix, or the key."""
    model = request.model
    own = posixpath.join(prefix, model.set, f"{model.name}@{model.version}")
    for folder in (f"{own}/", f"{prefix}/" if prefix else ""):
        found = _list(client, request, bucket, folder)
        objects = {o["Key"].removeprefix(folder): o for o in found if not o["Key"].endswith("/")}
        if objects:
            return objects
    exact = [o for o in _list(client, request, bucket, prefix) if o["Key"] == prefix]
    if not exact:
        raise SourceError(f"{request.where}: s3://{bucket} holds nothing under '{prefix}'; check the prefix")
    return {posixpath.basename(prefix): exact[0]}


def _list(client: Any, request: Request, bucket: str, prefix: str) -> list[Any]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item for page in pages for item in page.get("Contents", [])]
    except (ClientError, BotoCoreError) as error:
        problem = _explain(request, bucket, error)
    raise problem


def _explain(request: Request, bucket: str, error: Exception) -> SourceError:
    code = _code(error)
    where = f"{request.where}: s3://{bucket}"
    if code == "NoSuchBucket":
        return SourceError(f"{where}: there is no such bucket; check the name and AWS_ENDPOINT_URL")
    if code in _REFUSED or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return SourceError(
            f"{where}: access is refused ({code or 'no credentials'}); set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for an account that may read it"
        )
    if code == "PreconditionFailed":
        return SourceError(f"{where}: an object changed while it was read; run again")
    if code:
        return SourceError(f"{where}: the server answers {code}; check the address and the region")
    return SourceError(
        f"{where}: no connection ({type(error).__name__}); check the network and AWS_ENDPOINT_URL"
    )


def _code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _is_there(request: Request, name: str, item: Any) -> bool:
    done, tag = request.files / name, tag_of(request.downloads / name)
    if not done.is_file() or not tag.is_file():
        return False
    return bool(done.stat().st_size == item["Size"] and tag.read_text() == item["ETag"])


def _size_of_parts(request: Request) -> int:
    return sum((request.downloads / n).stat().st_size for n in walk(request.downloads) if n.endswith(".part"))


def _get(client: Any, request: Request, bucket: str, item: Any, name: str) -> None:
    def open_at(offset: int, tag: str | None) -> Reply:
        if offset and (tag != item["ETag"] or offset > item["Size"]):
            raise Restart("the object has changed")
        if offset == item["Size"]:
            return Reply(offset, item["Size"], item["ETag"], iter(()))
        reply = _open(client, request, bucket, item, offset)
        return Reply(_start(reply), item["Size"], item["ETag"], _chunks(reply["Body"]))

    target = request.downloads / name
    download(open_at, target, f"{request.where}: {name}")
    (request.files / name).parent.mkdir(parents=True, exist_ok=True)
    target.replace(request.files / name)


def _open(client: Any, request: Request, bucket: str, item: Any, offset: int) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    problem: Exception
    try:
        # IfMatch: all ranges of a file come from one version of the object.
        span = {"Range": f"bytes={offset}-"} if offset else {}
        return client.get_object(Bucket=bucket, Key=item["Key"], IfMatch=item["ETag"], **span)
    except ClientError as error:
        passing = _code(error) in _FOR_NOW
        problem = Dropped(_code(error)) if passing else _explain(request, bucket, error)
    except BotoCoreError as error:
        problem = Dropped(type(error).__name__)
    raise problem


def _start(reply: Any) -> int:
    span = reply.get("ContentRange") or "bytes 0-"
    return int(span.removeprefix("bytes ").partition("-")[0])


def _chunks(body: Any) -> Iterator[bytes]:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        yield from body.iter_chunks(CHUNK_BYTES)
    except (BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
        raise Dropped(type(error).__name__) from None
