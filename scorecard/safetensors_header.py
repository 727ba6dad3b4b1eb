"""Read the header of a safetensors file: which tensors it holds, of which type, at which bytes.

The layout is that of https://github.com/huggingface/safetensors#format: eight bytes with the length N of
the header (little-endian), N bytes of JSON, then the tensors, which must fill the rest without a hole.
Nothing but the standard library is needed, and no tensor is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard.errors import ArtifactError

CHUNK_BYTES = 8 * 2**20
_MOST_HEADER_BYTES = 100_000_000

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; ``start`` is its offset from the beginning of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size_bytes: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("F", "BF"))

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The tensor's bytes, in order, at most ``size`` (a multiple of 8) at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size_bytes
            while left:
                chunk = file.read(min(size, left))
                if not chunk:
                    raise ArtifactError(f"{self.path.name}: ends inside tensor '{self.name}'; write it again")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Header:
    """The tensors of one file in the order of their bytes; ``size_bytes`` is the header's own size."""

    tensors: tuple[Tensor, ...]
    size_bytes: int


def read_header(path: Path) -> Header:
    """Raises ArtifactError when the file is cut short, has holes or overlaps, or is not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise _invalid(path, f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid(path, f"its header cannot be read ({type(error).__name__})") from None
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    _check_filled(path, tensors, 8 + length, size)
    return Header(tuple(tensors), 8 + length)


def _tensor(path: Path, name: str, entry: dict[str, Any], data: int) -> Tensor:
    begin, end = entry["data_offsets"]
    tensor = Tensor(name, str(entry["dtype"]), tuple(entry["shape"]), path, data + begin, end - begin)
    bits = BITS.get(tensor.dtype)
    if bits is not None and tensor.count * bits != 8 * tensor.size_bytes:
        raise ValueError(name)
    return tensor


def _check_filled(path: Path, tensors: list[Tensor], start: int, size: int) -> None:
    for tensor in tensors:
        if tensor.start != start or tensor.size_bytes < 0:
            raise _invalid(path, f"tensor '{tensor.name}' leaves a hole or overlaps another")
        start += tensor.size_bytes
    if start != size:
        raise _invalid(path, f"its tensors end at byte {start}, the file at {size}")


def _invalid(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path.name}: not a valid safetensors file: {what}; save the model again")
