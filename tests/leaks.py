"""Looks for a token in all places where one could be left: files, images, command lines, environments."""

from __future__ import annotations

import base64
import gzip
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

BLOCK = 1 << 22


class Token:
    """A token and the forms it takes in headers and settings: as it is, quoted, hexadecimal, base64 at each
    of the three places where a group of it can begin."""

    def __init__(self, text: str) -> None:
        self.text, raw = text, text.encode()
        inner = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
        self.forms = {raw, quote(text, safe="").encode(), raw.hex().encode(), *inner}
        self.longest = max(map(len, self.forms))

    def within(self, data: bytes) -> bool:
        return any(form in data for form in self.forms)

    def in_stream(self, stream: IO[bytes] | gzip.GzipFile) -> bool:
        kept = b""
        while block := stream.read(BLOCK):
            if self.within(kept + block):
                return True
            kept = block[-self.longest :]
        return False

    def in_tree(self, folder: Path) -> list[str]:
        """The files below ``folder`` that hold it, or have it in their name or target."""
        found = []
        for path in folder.rglob("*"):
            name = str(path.relative_to(folder)) + (str(path.readlink()) if path.is_symlink() else "")
            if self.within(name.encode(errors="replace")) or (
                path.is_file() and not path.is_symlink() and self._in_file(path)
            ):
                found.append(str(path.relative_to(folder)))
        return found

    def _in_file(self, path: Path) -> bool:
        with path.open("rb") as stream:
            return self.in_stream(stream)

    def in_image(self, archive: Path) -> list[str]:
        """The members of a ``docker save`` archive that hold it: layers (a file that a later layer deletes is
        still in its own), configuration, history."""
        with tarfile.open(archive) as members:
            return [name for name, stream in _unpacked(members) if self.in_stream(stream)]


def _unpacked(members: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    for member in members:
        stream = members.extractfile(member) if member.isreg() else None
        if stream:
            zipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            yield member.name, gzip.GzipFile(fileobj=stream) if zipped else stream


class Watch:
    """While it is entered, the command line of every process (what ``ps`` shows to everybody) and its
    environment are read again and again. Root sees all environments."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self.seen = set[bytes]()
        self.command_lines = set[str]()
        self.environments = set[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    line = (process / "cmdline").read_bytes()
                    environment = (process / "environ").read_bytes()
                except OSError:  # it has ended
                    continue
                self.seen.add(line)
                shown = line.replace(b"\0", b" ").decode(errors="replace")
                if self.token.within(line):
                    self.command_lines.add(shown)
                if self.token.within(environment):
                    self.environments.add(shown)
            time.sleep(0.05)
