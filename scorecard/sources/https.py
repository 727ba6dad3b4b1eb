"""``https://…``: one file, or a .zip or .tar(.gz|.bz2|.xz) archive, pinned by the entry's ``sha256``.

Plain http is taken from loopback addresses only. What is shown of a URL never includes its query, which
may be a signature.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit

from scorecard.errors import SourceError, SpecError, VerificationError
from scorecard.sources.archive import extract, is_archive
from scorecard.sources.contents import check_name, select
from scorecard.sources.manifest import sha256_file
from scorecard.sources.scheme import Brought, Request
from scorecard.sources.transfer import Dropped, Open, Reply, Restart, download, part_of

TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 256 * 1024
_FOR_NOW = (408, 425, 429, 500, 502, 503, 504)


def bring(request: Request) -> Brought:
    """Download, compare with ``sha256`` and unpack.

    Raises SpecError for a URL that is not taken or has no sha256, SourceError for what the network or the
    server refuses, VerificationError for other bytes than promised or an unsafe archive.
    """
    url, promised = _checked(request), (request.model.sha256 or "").lower()
    if not promised:
        raise SpecError(f"{request.where}: an https source needs 'sha256: …' of the file that is downloaded")
    name = unquote(posixpath.basename(url.path))
    check_name(name, request.where)
    if not is_archive(name):
        select([name], request.model)
    if request.offline:
        raise SourceError(f"{request.where}: offline, and not fetched yet; run once with the network")
    target = request.downloads / name
    where = f"{request.where}: {url.hostname}{url.path}"
    _download(_open(url, where), target, promised, where)
    if is_archive(name):
        extract(target, request.files, request.model)
    else:
        (request.files / name).hardlink_to(target)
    return Brought(download_sha256=promised)


def _download(opener: Open, target: Path, promised: str, where: str) -> None:
    """Use what an earlier call left, and start over where that turns out to be of another version."""
    fresh = not target.exists() and not part_of(target).exists()
    if not target.exists():
        download(opener, target, where)
    found = sha256_file(target)
    if found != promised and not fresh:
        target.unlink()
        download(opener, target, where)
        found = sha256_file(target)
    if found != promised:
        target.unlink()
        raise VerificationError(
            f"{where}: the download has sha256 {found}, the entry says {promised}; "
            "correct the entry if the file was changed on purpose, else do not use it"
        )


def _checked(request: Request) -> SplitResult:
    url = urlsplit(request.model.source)
    if url.username is not None or url.password is not None:
        raise SpecError(f"{request.where}: a source holds no user or password; use a link that needs none")
    if not url.hostname or not posixpath.basename(url.path):
        raise SpecError(f"{request.where}: the source names no file; write https://host/path/file")
    if not _is_safe(url):
        raise SpecError(f"{request.where}: http:// can be read and changed on its way; write https://")
    return url


def _is_safe(url: SplitResult) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.hostname or ""))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_safe(urlsplit(newurl)):
            raise SourceError(f"{req.host}: redirects to an address that is not https; use another source")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: SplitResult, where: str) -> Open:
    handlers: list[Any] = [_SafeRedirects()]
    if _is_loopback(url.hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)

    def open_at(offset: int, tag: str | None) -> Reply:
        headers = {"Accept-Encoding": "identity", "User-Agent": "scorecard"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if tag:
                headers["If-Range"] = tag
        problem: Exception
        try:
            asked = urllib.request.Request(url._replace(fragment="").geturl(), headers=headers)
            return _reply(opener.open(asked, timeout=TIMEOUT_SECONDS), offset)
        except urllib.error.HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{offset}"):
                return Reply(offset, offset, tag, iter(()))  # the part is the whole file
            problem = _refused(error.code, where)
        except urllib.error.URLError as error:
            problem = _unreachable(error.reason, url.hostname or "", where)
        except (HTTPException, OSError) as error:
            problem = Dropped(type(error).__name__)
        raise problem

    return open_at


def _reply(response: HTTPResponse, offset: int) -> Reply:
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    start, total = 0, int(length) if length.isdigit() else None
    if response.status == 206 and span:
        start, total = int(span[1]), int(span[2])
    etag = response.headers.get("ETag", "")
    # A weak ETag does not promise equal bytes, so it cannot be used in If-Range (RFC 9110, 13.1.5).
    tag = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    return Reply(start, total, tag, _chunks(response))


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        with response:
            while chunk := response.read1(_CHUNK_BYTES):
                yield chunk
    except (HTTPException, OSError) as error:  # from the socket: nothing is written here
        raise Dropped(type(error).__name__) from None


def _refused(code: int, where: str) -> Exception:
    if code in _FOR_NOW:
        return Dropped(f"the server answers {code}")
    if code == 416:
        return Restart("the file at the server is shorter than what was fetched")
    if code in (401, 403):
        return SourceError(f"{where}: the server refuses it ({code}); use a link that is public and fresh")
    if code in (404, 410):
        return SourceError(f"{where}: there is no such file ({code}); check the address")
    return SourceError(f"{where}: the server answers {code}; check the address")


def _unreachable(reason: object, host: str, where: str) -> Exception:
    import socket
    import ssl

    if isinstance(reason, socket.gaierror):
        return SourceError(f"{where}: {host} is not known here; check the network and DNS, or use path:")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SourceError(f"{where}: the certificate is not accepted; check the address and the clock")
    if isinstance(reason, TimeoutError | ConnectionResetError):
        return Dropped(type(reason).__name__)
    return SourceError(f"{where}: {host} cannot be reached ({type(reason).__name__}); check the network")
