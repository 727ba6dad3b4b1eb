"""A coded matrix as bytes and back: the payload of one tensor, see `docs/rdq-format.md`.

Which indices and classes are read depends on integers only, so every platform reads the same; weights are
made by products of float32 in a fixed order. A payload is checked against its checksum before anything is
decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rdq import lanes, lanes_numpy, side
from rdq.coded import (
    NEXT_STATE,
    QUANTIZER_OF_STATE,
    CodedMatrix,
    reconstructions,
    scales,
)
from rdq.compiled import COMPILED
from rdq.errors import RdqError
from rdq.symbols import varint, varints
from rdq.tables import Tables

if COMPILED:
    from rdq import lanes_numba

Array = npt.NDArray[Any]
Data = bytes | bytearray | memoryview

MAGIC = b"rdq\x01"
LARGEST = 1 << 36
"""Indices of a matrix, fewer than these."""
_FIXED = struct.Struct("<4sBfI")
"""magic, states, step, checksum of the tables; varints, centroids, side vectors and panels follow."""


def kernels() -> Any:
    """The module of the kernels: compiled where numba is, else numpy's."""
    return lanes_numba if COMPILED else lanes_numpy


@dataclass(frozen=True)
class Header:
    """What a payload says before its panels."""

    rows: int
    columns: int
    stack: int
    transposed: bool
    panel: int
    """Columns of a panel; the last may have fewer."""
    lanes: int
    states: int
    step: float
    tables_crc: int
    centroids: Array
    side: bytes
    words: tuple[int, ...]
    """Number of 16-bit words of each panel."""
    end: int
    """Place of the first panel in the payload."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights."""
        sides = (self.rows // self.stack, self.columns)
        return (self.stack,) * (self.stack > 1) + (sides[::-1] if self.transposed else sides)

    def panels(self) -> Iterator[tuple[int, int, int, int]]:
        """(first column, columns, lanes, words) of each panel."""
        for number, words in enumerate(self.words):
            first = number * self.panel
            width = min(self.panel, self.columns - first)
            yield first, width, min(self.lanes, width), words


def encode(
    m: CodedMatrix,
    tables: Tables,
    *,
    stack: int = 1,
    transposed: bool = False,
    threads: int = 1,
    module: Any = None,
) -> bytes:
    """The payload of a matrix.

    tables: need not suit it (what they hold no frequency for is escaped), but reading needs the same ones.
    stack: the rows are those of so many matrices of equal shape, one after the other: a tensor of three
    dimensions. transposed: the weights are stored with their last two dimensions exchanged, as `Conv1D` has
    them. threads: so many panels are coded at once; the bytes are the same for any number.
    """
    rows, columns = m.shape
    if stack < 1 or rows % stack:
        raise RdqError(f"coded matrix: {rows} rows are not those of {stack} matrices of equal shape")
    panel, many = lanes.panels(rows, columns)
    kernel = module or kernels()
    look = lanes.lookup(tables)
    codes = np.require(
        m.codes, requirements=["C", "W"]
    )  # of one kind, so that one compiled kernel serves all
    arguments = np.array(m.row_spread), np.array(m.column_spread), *_trellis(m.states)

    def coded(first: int) -> tuple[Array, Array]:
        width = min(panel, columns - first)
        states = np.zeros(min(many, width), np.int64)
        out = np.empty(2 * rows * width, np.uint16)  # only what is written takes memory
        start = kernel.encode_panel(codes, first, width, *arguments, *look[1:], states, out)
        return states.astype("<u4"), out[start:].astype("<u2")

    parts = _mapped(coded, range(0, columns, panel), threads)
    vectors = side.pack(m.row_scale, m.column_scale, m.row_spread, m.column_spread)
    out = bytearray(_FIXED.pack(MAGIC, m.states | transposed << 7, m.step, tables.crc))
    for number in (stack, rows, columns, panel, many, len(vectors), *(words.size for _, words in parts)):
        out += varint(number)
    out += m.centroids.astype("<f2").tobytes() + vectors
    for states, words in parts:
        out += states.tobytes() + words.tobytes()
    return bytes(out + struct.pack("<I", zlib.crc32(out)))


def decode(
    data: Data, tables: Tables, *, where: str = "matrix", threads: int = 1, module: Any = None
) -> CodedMatrix:
    """The matrix whose payload this is; RdqError, beginning with `where`, if it is damaged."""
    header = parse(data, where)
    codes = np.empty((header.rows, header.columns), np.int16)
    vectors = _decode(data, header, tables, where, threads, module, codes=codes)
    return CodedMatrix(codes, *vectors, header.step, header.centroids, header.states)


def decode_weights(
    data: Data,
    tables: Tables,
    dtype: torch.dtype = torch.bfloat16,
    *,
    where: str = "matrix",
    threads: int = 1,
    module: Any = None,
) -> torch.Tensor:
    """The weights of a payload, on the CPU: those of `dequantize`, rounded once to dtype, in their own shape.

    float32 and bfloat16 are made in the same pass as the indices are decoded; other types from a float32
    matrix.
    """
    header = parse(data, where)
    own = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    out = torch.empty(header.rows, header.columns, dtype=own)
    if own == torch.bfloat16:
        halves = out.view(torch.int16).numpy().view(np.uint16)
        _decode(data, header, tables, where, threads, module, halves=halves)
    else:
        _decode(data, header, tables, where, threads, module, floats=out.numpy())
    out = out.to(dtype).reshape(header.stack, -1, header.columns)
    if header.transposed:
        out = out.transpose(1, 2).contiguous()
    return out if header.stack > 1 else out[0]


def parse(data: Data, where: str = "matrix") -> Header:
    """The header of a payload, after its checksum; RdqError, beginning with `where`, if it is damaged."""
    view = memoryview(data)
    if len(view) < _FIXED.size + 4 or view[:3] != MAGIC[:3]:
        raise RdqError(f"{where}: not a coded matrix; is it the right file, and whole?")
    if view[:4] != MAGIC:
        raise RdqError(f"{where}: version {view[3]} of the format, this reads 1; take a newer rdq")
    if zlib.crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise RdqError(f"{where}: damaged, its checksum does not fit; get the file again")
    try:
        header = _parsed(view)
    except (IndexError, ValueError, struct.error) as error:
        raise RdqError(f"{where}: its header makes no sense ({error}); write it again") from None
    return header


def _parsed(view: memoryview) -> Header:
    """The header of a payload whose checksum fits; ValueError or IndexError if no encoder wrote it."""
    _, kind, step, crc = _FIXED.unpack_from(view)
    states = kind & 127
    (stack, rows, columns, panel, many, size), place = varints(view, _FIXED.size, 6)
    if not 0 < rows * columns < LARGEST or not 0 < many <= panel <= columns or states not in NEXT_STATE:
        raise ValueError(f"{rows} × {columns}, panels of {panel}, {many} lanes, {states} states")
    if not stack or rows % stack:
        raise ValueError(f"{rows} rows in {stack} matrices")
    words, place = varints(view, place, -(-columns // panel))
    centroids = np.frombuffer(view[place : place + 16], "<f2").reshape(2, 4).astype(np.float16)
    end = place + 16 + size
    header = Header(
        rows, columns, stack, kind > 127, panel, many, states, step, crc, centroids,
        bytes(view[place + 16 : end]), tuple(words), end,
    )  # fmt: skip
    if end + sum(4 * many + 2 * words for _, _, many, words in header.panels()) + 4 != len(view):
        raise ValueError("its parts are not as long as it says")
    return header


def _decode(
    data: Data, header: Header, tables: Tables, where: str, threads: int, module: Any, **outputs: Array
) -> tuple[Array, Array, Array, Array]:
    """Decodes all panels into codes=, floats= or halves= [rows, columns]; the four side vectors."""
    if header.tables_crc != tables.crc:
        raise RdqError(f"{where}: coded with other tables; read it with those of its own file")
    kernel = module or kernels()
    vectors = side.unpack(header.side, header.rows, header.columns)
    row_scale, column_scale, row_spread, column_spread = vectors
    look = lanes.lookup(tables)
    blanks = {"codes": np.int16, "floats": np.float32, "halves": np.uint16}
    out = [outputs.get(name, np.empty((0, 0), dtype)) for name, dtype in blanks.items()]
    arguments = (
        row_spread, column_spread, *_trellis(header.states), look.decode, look.table_of,
        np.float32(header.step) * scales(row_scale), scales(column_scale),
        reconstructions(header.centroids, header.states).reshape(-1), *out,
    )  # fmt: skip

    def panel(part: tuple[int, int, int, int, int]) -> int:
        first, width, many, count, place = part
        states = np.frombuffer(data, "<u4", many, place).astype(np.int64)
        words = np.zeros(count + 2 * width, np.uint16)
        words[:count] = np.frombuffer(data, "<u2", count, place + 4 * many)
        return int(kernel.decode_panel(words, count, states, first, width, *arguments))

    parts, place = [], header.end
    for first, width, many, count in header.panels():
        parts.append((first, width, many, count, place))
        place += 4 * many + 2 * count
    if any(_mapped(panel, parts, threads)):
        raise RdqError(f"{where}: its words do not fit its tables; write it again")
    return vectors


def _trellis(states: int) -> tuple[Array, Array]:
    return NEXT_STATE[states].reshape(-1), QUANTIZER_OF_STATE[states]


def _mapped(function: Callable[[Any], Any], items: Any, threads: int) -> list[Any]:
    """The function of each item, in order, so many at once."""
    if threads <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
