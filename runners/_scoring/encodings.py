"""Token ids of texts, kept by the case that is scored first for all cases with its tokenizer.

One safetensors file, its metadata saying which tokenizer it is of:

    keys    uint8  [texts, 16]    BLAKE2b of the text and of its settings, in ascending order
    starts  int64  [texts + 1]    where the ids of each text begin
    ids     int32  [all ids]

A text that is not in it, or whose tokenizer is another, is tokenized as if there were no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIMIT_BYTES = 2**28  # of ids in a file; beyond that it is not worth its place
Special = bool | None


def identity(tokenizer: Any) -> str | None:
    """A hash of everything that decides a fast tokenizer's ids; ``None`` for a slow one."""
    if not tokenizer.is_fast:
        return None
    import transformers

    content = f"{transformers.__version__}\n{tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class Encodings:
    """What is known of one tokenizer's texts: read from ``path``, or collected to be written to it."""

    def __init__(self, tokenizer: Any, path: Path) -> None:
        self._path, self._identity = path, identity(tokenizer)
        self._places: dict[bytes, int] = {}
        self._starts: list[int] = []
        self._ids: Any = None
        self._new: dict[bytes, Sequence[int]] = {}
        if self._identity and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("tokenizer") != self._identity:
                return
            keys = file.get_tensor("keys").tobytes()
            self._starts = file.get_tensor("starts").tolist()
            self._ids = file.get_tensor("ids")
        self._places = {keys[i : i + 16]: i // 16 for i in range(0, len(keys), 16)}

    def get(self, text: str, special: Special) -> list[int] | None:
        """The ids of ``text`` tokenized with ``add_special_tokens=special``, ``None`` where not known."""
        place = self._places.get(_key(text, special))
        if place is None:
            return None
        ids: list[int] = self._ids[self._starts[place] : self._starts[place + 1]].tolist()
        return ids

    def add(self, texts: Iterable[str], special: Special, ids: Iterable[Sequence[int]]) -> None:
        """Note what was tokenized, for ``write``."""
        if self._identity:
            self._new |= {_key(text, special): found for text, found in zip(texts, ids, strict=True)}

    def write(self) -> None:
        """Write what was added, unless it is too much to be of use."""
        if self._identity and 0 < 4 * sum(map(len, self._new.values())) <= LIMIT_BYTES:
            _write(self._path, self._new, self._identity)


def _key(text: str, special: Special) -> bytes:
    content = f"{special}\n{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _write(path: Path, known: Mapping[bytes, Sequence[int]], tokenizer: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    keys = sorted(known)
    starts = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(known[key]) for key in keys], out=starts[1:])
    tensors = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        "starts": starts,
        "ids": np.concatenate([np.asarray(known[key], np.int32) for key in keys]),
    }
    save_file(tensors, path, metadata={"tokenizer": tokenizer})
