"""A private package index on loopback: answers only to a user's password, as a company's would."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote


@dataclass
class Index:
    url: str
    files: dict[str, Path]
    answered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def wheels_of_pips_find_links() -> dict[str, Path]:
    """The wheels in the folders that pip on this machine is told to look into, if any: builds of torch."""
    shown = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    places = re.findall(r"^\S+\.find-links='(.*)'$", shown, re.MULTILINE)
    folders = {Path(place) for line in places for place in line.replace("\\n", " ").split()}
    return {file.name: file for folder in folders for file in folder.glob("*.whl")}


@contextmanager
def serve(user: str, password: str, files: dict[str, Path]) -> Iterator[Index]:
    """The wheels ``files`` by PEP 503; ``url`` has the user and the password in it."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                index.refused.append(self.path)
                return self.answer(401, b"", {"WWW-Authenticate": 'Basic realm="packages"'})
            index.answered.append(self.path)
            name = unquote(self.path).rstrip("/").rpartition("/")[2]
            if name in files:
                return self.answer(200, files[name].read_bytes(), {"Content-Type": "application/zip"})
            found = [file for file in files if re.sub("[-_.]+", "-", file.partition("-")[0]).lower() == name]
            links = "".join(f'<a href="/files/{file}">{file}</a>\n' for file in found).replace("+", "%2B")
            return self.answer(200 if found else 404, links.encode(), {"Content-Type": "text/html"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://{user}:{password}@127.0.0.1:{server.server_port}/simple"
        index = Index(url, files)
        Thread(target=server.serve_forever, daemon=True).start()
        yield index
        server.shutdown()
