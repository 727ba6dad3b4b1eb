"""The header of a safetensors file of ours: where each tensor lies, the tables, and what they are checked by.

Written and read here, not by the safetensors library, because every byte is to be covered by a checksum,
and because a header that fits is what makes a file one of ours. To that library it is a file like any
other.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from rdq.errors import RdqError
from rdq.tables import Tables

VERSION = 1
SUFFIX = "_rdq"
"""What is added to the name of a tensor that is stored as a payload."""
CODED = "U8"
LARGEST = 100_000_000
"""Bytes of a header at most, as in safetensors."""
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
_SIZES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
_NO_CRC = "00000000"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    """As in the file: with SUFFIX if it is coded."""
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    begin: int
    """Place in the data, which begin after the header."""
    end: int
    crc: int | None
    """Checksum of a tensor stored as it is; a payload ends with its own."""


@dataclass(frozen=True)
class FileHeader:
    """What one file says of itself."""

    tables: Tables
    entries: tuple[Entry, ...]
    data: int = field(default=0)
    """Place of the data in the file."""


def item_size(dtype: str) -> int:
    """Bytes of an element of a dtype, by its name in safetensors."""
    return _SIZES[dtype]


def header_bytes(header: FileHeader) -> bytes:
    """The beginning of the file, up to its data."""
    entries = {
        e.name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
        for e in header.entries
    }
    plain = {
        "format": "pt",
        "rdq": str(VERSION),
        "rdq_tables": base64.b64encode(header.tables.to_bytes()).decode(),
        "rdq_plain": " ".join(f"{e.crc:08x}" for e in header.entries if e.crc is not None),
        "rdq_crc": _NO_CRC,
    }
    text = json.dumps({"__metadata__": plain, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little")
    crc = f"{zlib.crc32(start + text):08x}"
    blank = f'"rdq_crc":"{_NO_CRC}"'.encode()
    return start + text.replace(blank, f'"rdq_crc":"{crc}"'.encode(), 1)


def read_header(path: Path) -> FileHeader:
    """The header of a file; RdqError if its checksum or the size of the file does not fit."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(LARGEST, size - 8):
                raise RdqError(f"{path}: cut short or not a safetensors file; get the file again")
            text = file.read(length)
    except OSError as error:
        raise RdqError(f"{path}: cannot be read ({error.strerror}); get the file again") from None
    header = _parsed(path, start, text)
    end = max((e.end for e in header.entries), default=0)
    if header.data + end != size:
        raise RdqError(f"{path}: {size} bytes long instead of {header.data + end}; get the file again")
    return header


def _parsed(path: Path, start: bytes, text: bytes) -> FileHeader:
    try:
        content = json.loads(text)
        metadata = content.pop("__metadata__", {})
        version, crc = metadata.get("rdq"), metadata.get("rdq_crc")
    except (ValueError, AttributeError):
        raise RdqError(f"{path}: its header is damaged; get the file again") from None
    if version is None or crc is None:
        raise RdqError(f"{path}: not written by rdq, or its header is damaged; give a folder made by rdq")
    if version != str(VERSION):
        raise RdqError(f"{path}: version {version} of the format, this reads {VERSION}; take a newer rdq")
    blank = text.replace(f'"rdq_crc":"{crc}"'.encode(), f'"rdq_crc":"{_NO_CRC}"'.encode(), 1)
    if f"{zlib.crc32(start + blank):08x}" != crc:
        raise RdqError(f"{path}: its header is damaged, the checksum does not fit; get the file again")
    try:
        entries = _entries(content, [int(word, 16) for word in metadata["rdq_plain"].split()])
        tables = Tables.from_bytes(base64.b64decode(metadata["rdq_tables"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RdqError(f"{path}: its header makes no sense ({error}); write it again") from None
    return FileHeader(tables, entries, 8 + len(text))


def _entries(content: dict[str, dict[str, list[int]]], crcs: list[int]) -> tuple[Entry, ...]:
    """The tensors, which lie in the data one after the other; ValueError, KeyError or TypeError if not."""
    found, place, plain = [], 0, iter(crcs)
    for name, described in content.items():
        begin, end = described["data_offsets"]
        dtype, shape = str(described["dtype"]), tuple(described["shape"])
        if begin != place or end - begin != math.prod(shape) * item_size(dtype):
            raise ValueError(f"{name} is not where it should be")
        crc = None if name.endswith(SUFFIX) and dtype == CODED else next(plain)
        found.append(Entry(name, dtype, shape, begin, end, crc))
        place = end
    return tuple(found)
