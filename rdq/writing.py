"""Writes a compressed model, one tensor at a time, so that it may be larger than memory.

The frequency tables suit all matrices of the model, so they are known only at the end. Until then each
matrix waits in a spool file, coded with Gaussian tables; at the end the tables are made from the counts,
every matrix is coded again, and the finished files take their places. A killed writer leaves nothing that
looks like a model.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from rdq.coded import CLASSES, MAX_CODE, CodedMatrix
from rdq.coding import decode, encode, parse
from rdq.container import DTYPES, INDEX, ONE_FILE, quantization_config
from rdq.counting import magnitudes
from rdq.errors import RdqError
from rdq.headers import CODED, SUFFIX, Entry, FileHeader, header_bytes, item_size
from rdq.tables import Tables, from_counts, ideal_bits

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Written:
    """What became of one tensor."""

    name: str
    size_bytes: int
    """In the finished file."""
    weights: int
    ideal_bytes: float | None
    """Ideal code length of the indices with the file's tables; None for a tensor stored as it is."""


@dataclass
class _Waiting:
    """A tensor in the spool."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int
    crc: int | None
    counts: Any = None


class Writer:
    """Makes `folder` and its files: in a `with`, add the tensors, then `close`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        tables: Tables | None = None,
        shard_bytes: int = 4_000_000_000,
        threads: int = 1,
    ) -> None:
        """tables: given, every matrix is coded once, with these; else they are made from all matrices at
        the end.

        shard_bytes: tensors are spread over several files beyond this; one larger tensor gets a file of its
        own.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tables, self._shard_bytes, self._threads = tables, shard_bytes, threads
        self._waiting: dict[str, _Waiting] = {}
        self._spool = self._open("spool")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes what is unfinished."""
        self._spool.close()
        for left in self.folder.glob(".rdq-*.partial"):
            left.unlink()

    def add_matrix(self, name: str, m: CodedMatrix, *, stack: int = 1, transposed: bool = False) -> int:
        """Adds a coded tensor; the bytes that it takes so far.

        name: of the parameter, as in the model's own files. stack, transposed: see `coding.encode`.
        """
        payload = encode(
            m, self._tables or Tables.gaussian(), stack=stack, transposed=transposed, threads=self._threads
        )
        self._add(name, name + SUFFIX, CODED, (len(payload),), payload, None).counts = magnitudes(m)
        return len(payload)

    def add_plain(self, name: str, tensor: torch.Tensor) -> int:
        """Adds a tensor as it is, in its own dtype: norms, biases, buffers; the bytes that it takes."""
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        self._add(name, name, _NAMES[tensor.dtype], tuple(tensor.shape), data, zlib.crc32(data))
        return len(data)

    def _add(
        self, name: str, stored: str, dtype: str, shape: tuple[int, ...], data: bytes, crc: int | None
    ) -> _Waiting:
        if name in self._waiting:
            raise RdqError(f"{self.folder}: {name}: added twice; give every tensor once")
        if crc is not None and name.endswith(SUFFIX):
            raise RdqError(f"{self.folder}: {name}: the ending {SUFFIX} is kept for coded tensors; rename it")
        self._waiting[name] = waiting = _Waiting(stored, dtype, shape, self._spool.tell(), len(data), crc)
        self._spool.write(data)
        return waiting

    def close(self, config: Mapping[str, Any] | None = None, **extra: Any) -> list[Written]:
        """Writes the files; nothing can be added after it.

        config: what config.json is to hold, beside the `quantization_config` that is added to it; extra:
        more keys of that. Without it no config.json is written.
        """
        tables = self._recode() if self._tables is None else self._tables
        # what is stored as it is comes first, widest elements first, so that each is aligned to its own size
        order = sorted(
            self._waiting.values(),
            key=lambda w: (w.crc is None, -item_size(w.dtype) if w.crc is not None else 0),
        )
        shards = self._shards(order)
        names = [
            ONE_FILE if len(shards) == 1 else f"model-{n:05}-of-{len(shards):05}.safetensors"
            for n in range(1, len(shards) + 1)
        ]
        for name, shard in zip(names, shards, strict=True):
            self._write(name, shard, tables)
        self._finish(names, shards)
        if config is not None:
            described = {**config, "quantization_config": quantization_config(**extra)}
            self._put("config.json", json.dumps(described, indent=2).encode() + b"\n")
        return [self._written(name, w, tables) for name, w in self._waiting.items()]

    def _written(self, name: str, w: _Waiting, tables: Tables) -> Written:
        if w.counts is None:
            return Written(name, w.size, int(np.prod(w.shape)), None)
        return Written(name, w.size, int(w.counts.sum()), ideal_bits(w.counts, tables) / 8)

    def _recode(self) -> Tables:
        """Codes every matrix in the spool again, with tables made for all of them."""
        counts = np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64)
        for waiting in self._waiting.values():
            if waiting.counts is not None:
                counts += waiting.counts
        tables = from_counts(counts).pruned(counts)
        before, self._spool = self._spool, self._open("recoded")
        with before:
            for name, waiting in self._waiting.items():
                before.seek(waiting.begin)
                data = before.read(waiting.size)
                if waiting.counts is not None:
                    header = parse(data, name)
                    m = decode(data, Tables.gaussian(), where=name, threads=self._threads)
                    data = encode(
                        m, tables, stack=header.stack, transposed=header.transposed, threads=self._threads
                    )
                    waiting.size, waiting.shape = len(data), (len(data),)
                waiting.begin = self._spool.tell()
                self._spool.write(data)
        return tables

    def _shards(self, order: list[_Waiting]) -> list[list[_Waiting]]:
        shards: list[list[_Waiting]] = [[]]
        for waiting in order:
            if shards[-1] and sum(w.size for w in shards[-1]) + waiting.size > self._shard_bytes:
                shards.append([])
            shards[-1].append(waiting)
        return shards

    def _write(self, name: str, shard: list[_Waiting], tables: Tables) -> None:
        """One file, complete but under its temporary name."""
        entries, place = [], 0
        for w in shard:
            entries.append(Entry(w.name, w.dtype, w.shape, place, place + w.size, w.crc))
            place += w.size
        with self._open(name) as file:
            file.write(header_bytes(FileHeader(tables, tuple(entries))))
            for w in shard:
                self._spool.seek(w.begin)
                _copy(self._spool, file, w.size)
            file.flush()
            os.fsync(file.fileno())

    def _finish(self, names: list[str], shards: list[list[_Waiting]]) -> None:
        """Gives the files their names, the index last; files of an earlier, larger model go."""
        for old in [
            *self.folder.glob("model-*-of-*.safetensors"),
            self.folder / ONE_FILE,
            self.folder / INDEX,
        ]:
            if old.name not in names:
                old.unlink(missing_ok=True)
        for name in names:
            self._partial(name).replace(self.folder / name)
        if len(names) > 1:
            where = {w.name: name for name, shard in zip(names, shards, strict=True) for w in shard}
            total = sum(w.size for shard in shards for w in shard)
            self._put(INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": where}).encode())

    def _put(self, name: str, data: bytes) -> None:
        self._partial(name).write_bytes(data)
        self._partial(name).replace(self.folder / name)

    def _partial(self, name: str) -> Path:
        return self.folder / f".rdq-{name}.partial"

    def _open(self, name: str) -> IO[bytes]:
        return self._partial(name).open("w+b")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """The next `size` bytes of the source, a little at a time."""
    while size:
        part = source.read(min(size, 1 << 24))
        target.write(part)
        size -= len(part)
