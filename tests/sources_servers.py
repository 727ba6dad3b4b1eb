"""Real servers on loopback for the tests of sources: a file server that can fail, and a small hub."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from scorecard.sources import Fetched, fetch
from scorecard.spec import ModelSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors_bytes(values: int = 64, fill: int = 1) -> bytes:
    """A valid safetensors file with one tensor of ``values`` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([fill]) * values


def model_files(values: int = 64) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": safetensors_bytes(values),
        "tokenizer.json": b"{}",
    }


def write_model(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (files or model_files()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def spec(source: str, **other: Any) -> ModelSpec:
    return ModelSpec(set="tiny", name="llama", version="1", source=source, **other)


def fetch_here(model: ModelSpec, models_dir: Path, environment: dict[str, str] | None = None) -> Fetched:
    """What a second process runs: importable by name, so that ``spawn`` can start it."""
    import os

    os.environ.update(environment or {})
    return fetch(model, models_dir)


@dataclass
class Behaviour:
    """What a server does; ``cut`` holds where in the file the next replies are cut off."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: bool = True
    cut: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    redirect: str | None = None
    chunk_pause_seconds: float = 0.0
    sent_bytes: int = 0
    asked: list[str] = field(default_factory=list)
    gated: bool = False
    token_seen: list[str] = field(default_factory=list)


class FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        b, path = self.behaviour, unquote(urlsplit(self.path).path).lstrip("/")
        b.asked.append(f"{path} {self.headers.get('Range', '')}".strip())
        if b.status:
            self.answer(b.status.pop(0))
        elif b.redirect:
            self.answer(302, {"Location": b.redirect})
        elif path not in b.files:
            self.answer(404)
        else:
            self.send_file(b.files[path])

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        b, start, tag = self.behaviour, 0, f'"{hashlib.md5(data).hexdigest()}"'
        span = self.headers.get("Range")
        if span and b.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(data):
            self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if b.etag:
            self.send_header("ETag", tag)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(data[start : b.cut.pop(0) if b.cut else None])

    def send_body(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), 64 * 1024):
                self.wfile.write(data[at : at + 64 * 1024])
                self.behaviour.sent_bytes += len(data[at : at + 64 * 1024])
                time.sleep(self.behaviour.chunk_pause_seconds)
        except ConnectionError:
            pass
        self.close_connection = True


class HubHandler(FileHandler):
    """Enough of the hub for snapshot_download: revision, tree, and files with their hashes as ETag."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        b, path = self.behaviour, unquote(urlsplit(self.path).path)
        b.asked.append(path)
        b.token_seen.append(self.headers.get("Authorization", ""))
        if b.status:
            self.answer(b.status.pop(0))
        elif "/org/tiny" not in path:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif "/revision/" in path:
            known = path.rpartition("/")[2] in ("main", COMMIT)
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode()
            headers = {} if known else {"X-Error-Code": "RevisionNotFound"}
            self.answer(200 if known else 404, headers, body if known else b"")
        elif "/tree/" in path:
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(self.tree()).encode())
        elif b.gated:
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            tag = f'"{self.blob(name)}"'
            self.send_file(b.files[name], {"X-Repo-Commit": COMMIT, "X-Linked-Etag": tag})

    def blob(self, name: str) -> str:
        data = self.behaviour.files[name]
        if name.endswith((".safetensors", ".bin")):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": self.blob(name)}
            for name, data in self.behaviour.files.items()
        ]


@contextmanager
def serve(
    behaviour: Behaviour, handler: type[FileHandler] = FileHandler, address: str = "127.0.0.1"
) -> Iterator[str]:
    bound = type("Bound", (handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer((address, 0), bound)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
