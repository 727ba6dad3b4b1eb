"""A folder with a compressed model, opened: its matrices, its other tensors, its configuration.

Nothing is read but headers until a tensor is asked for, and a tensor is given only if its checksum fits.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdq.coded import CodedMatrix
from rdq.coding import Header, decode, decode_weights, parse
from rdq.errors import RdqError
from rdq.headers import SUFFIX, Entry, FileHeader, read_header
from rdq.tables import Tables

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64":
    torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32":
    torch.uint32, "U64": torch.uint64, }  # fmt: skip


class Container:
    """The tensors of one or several files, by their names in the model; closed at the end of a `with`."""

    def __init__(self, paths: list[Path]) -> None:
        """Reads and checks the headers; RdqError, naming the file, for one that is damaged or not ours."""
        self.paths = paths
        self._headers: list[FileHeader] = [read_header(path) for path in paths]
        self._maps: list[mmap.mmap | None] = [None] * len(paths)
        self._where: dict[str, tuple[int, Entry]] = {}
        self.matrices: list[str] = []
        """The names of the coded tensors."""
        for number, header in enumerate(self._headers):
            for entry in header.entries:
                name = entry.name.removesuffix(SUFFIX) if entry.crc is None else entry.name
                if name in self._where:
                    raise RdqError(f"{paths[number]}: {name}: stored twice; write the folder again")
                self._where[name] = number, entry
        self.matrices += [name for name, (_, entry) in self._where.items() if entry.crc is None]

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the files back; tensors that were read stay valid."""
        for mapped in self._maps:
            if mapped is not None:
                mapped.close()
        self._maps = [None] * len(self.paths)

    def __iter__(self) -> Iterator[str]:
        """The names of all tensors, in the order of the files."""
        return iter(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def size_bytes(self, name: str) -> int:
        """Bytes of the tensor in its file."""
        _, entry = self._entry(name)
        return entry.end - entry.begin

    def tables(self, name: str) -> Tables:
        """The frequency tables that the tensor is coded with: those of its file."""
        return self._headers[self._entry(name)[0]].tables

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor's weights."""
        _, entry = self._entry(name)
        return entry.shape if entry.crc is not None else self.header(name).shape

    def header(self, name: str) -> Header:
        """What a coded tensor says of itself: how its matrix lies in the weights, what it is coded with."""
        if self._entry(name)[1].crc is not None:
            raise RdqError(f"{self.where(name)}: stored as it is, not coded; read it with `read`")
        return parse(self._bytes(name), self.where(name))

    def read_matrix(self, name: str, *, threads: int = 1) -> CodedMatrix:
        """A coded tensor's indices and steps."""
        if self._entry(name)[1].crc is not None:
            raise RdqError(f"{self.where(name)}: stored as it is, not coded; read it with `read`")
        return decode(self._bytes(name), self.tables(name), where=self.where(name), threads=threads)

    def read(self, name: str, dtype: torch.dtype | None = None, *, threads: int = 1) -> torch.Tensor:
        """A tensor's values, on the CPU, in memory of its own.

        dtype: of the result; by default the stored one, and bfloat16 for coded tensors.
        """
        _, entry = self._entry(name)
        if entry.crc is None:
            return decode_weights(
                self._bytes(name),
                self.tables(name),
                dtype or torch.bfloat16,
                where=self.where(name),
                threads=threads,
            )
        data = self._bytes(name)
        if zlib.crc32(data) != entry.crc:
            raise RdqError(f"{self.where(name)}: damaged, its checksum does not fit; get the file again")
        plain = (
            torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            .view(DTYPES[entry.dtype])
            .reshape(entry.shape)
        )
        return plain.to(dtype) if dtype and plain.is_floating_point() else plain

    def tail(self, name: str) -> bytes:
        """The last 16 bytes of the tensor, by which a payload is known again."""
        return self._bytes(name)[-16:]

    def verify(self) -> None:
        """Checks every checksum; RdqError, naming file and tensor, at the first that does not fit."""
        for name, (_, entry) in self._where.items():
            if entry.crc is None:
                parse(self._bytes(name), self.where(name))
            else:
                self.read(name)

    def where(self, name: str) -> str:
        """`file: tensor`, as errors begin."""
        return f"{self.paths[self._entry(name)[0]]}: {name}"

    def _entry(self, name: str) -> tuple[int, Entry]:
        if name not in self._where:
            raise RdqError(f"{self.paths[0].parent}: {name}: there is no such tensor")
        return self._where[name]

    def _bytes(self, name: str) -> bytes:
        """A copy of the tensor's bytes, so that nothing keeps the file open."""
        number, entry = self._entry(name)
        mapped = self._maps[number]
        if mapped is None:
            with self.paths[number].open("rb") as file:
                mapped = self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._headers[number].data
        found = mapped[start + entry.begin : start + entry.end]
        if hasattr(mmap, "MADV_DONTNEED"):  # or the whole file would come to count as memory of this process
            first = (start + entry.begin) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, first, start + entry.end - first)
        return found


def open_container(path: str | Path) -> Container:
    """The container in a folder (or of one file); RdqError if there is none or it is damaged."""
    path = Path(path)
    if path.is_file():
        return Container([path])
    return Container(files_of(path))


def files_of(folder: Path) -> list[Path]:
    """The files with the tensors of a folder, in order."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / ONE_FILE]
    try:
        names = dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise RdqError(f"{index}: damaged; get the file again") from None
    if not names:
        raise RdqError(f"{index}: names no files; get the file again")
    return [folder / Path(name).name for name in names]


def quantization_config(**extra: Any) -> dict[str, Any]:
    """What the model's config.json says, by which transformers finds the reader."""
    return {"quant_method": "rdq", "version": 1, **extra}
