"""Which files are pickles, whatever their names: loading one runs the code that its author put into it."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
_PROTOCOLS = (2, 3, 4, 5)
_NUMPY = b"\x93NUMPY"
_HEAD_BYTES = 65536


def pickled(path: Path) -> str | None:
    """Why ``path`` is, or holds, a pickle; ``None`` where it is none.

    Seen are: the PROTO opcode of protocols 2 to 5 at the start, the zip and the legacy form of
    ``torch.save``, numpy arrays of objects (``.npy`` and ``.npz``), and the usual names.
    """
    if path.suffix.lower() in _SUFFIXES:
        return f"is named like a pickle ('{path.suffix}')"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[:1] == b"\x80" and head[1:2] and head[1] in _PROTOCOLS:
        return "begins as a pickle does"
    if head.startswith(_NUMPY) and _has_objects(head):
        return "is a numpy array of objects, which is a pickle"
    if zipfile.is_zipfile(path):
        return _in_zip(path)
    return None


def _in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist()[:10_000]:
                if info.filename.rpartition("/")[2] == "data.pkl":
                    return "was written by torch.save and holds a pickle"
                with archive.open(info) as stream:
                    head = stream.read(_HEAD_BYTES)
                if head[:1] == b"\x80" and head[1:2] and head[1] in _PROTOCOLS:
                    return f"is a zip with a pickle in it ({info.filename})"
                if head.startswith(_NUMPY) and _has_objects(head):
                    return f"is a zip with numpy objects in it ({info.filename})"
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError):
        return "is a zip that cannot be looked into"
    return None


def _has_objects(head: bytes) -> bool:
    """Whether the header of the .npy format names a type with objects (``|O``), or cannot be read."""
    major = head[6] if len(head) > 6 else 0
    width = 2 if major == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    try:
        told = ast.literal_eval(head[8 + width : 8 + width + length].decode("latin-1").strip())
        return "|O" in str(told["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return True
