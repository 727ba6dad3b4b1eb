"""Frequency tables of the entropy coder: one for each class and quantizer, shared by all matrices of a file.

A table gives each index |k| <= WIDEST and one escape a whole number of 4096ths; k and -k have the same. An
index without a frequency of its own is coded as the escape followed by RAW_BITS plain bits, so nothing is
ever clipped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import CLASS_OFFSET, CLASSES, MAX_CODE, CodedMatrix
from rdq.counting import magnitudes
from rdq.errors import RdqError

Array = npt.NDArray[Any]

PRECISION = 12
TOTAL = 1 << PRECISION
WIDEST = 127
"""The largest magnitude that a table can hold."""
ESCAPE = 2 * WIDEST + 1
"""The symbol of an escape; that of an index k is k + WIDEST."""
SYMBOLS = ESCAPE + 1
RAW_BITS = 9
"""Plain bits after an escape: k + MAX_CODE."""
CENTRE_CLASS = 2 * 128 - CLASS_OFFSET
"""The class whose indices have the standard deviation 1."""


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequencies in 4096ths, uint16 [CLASSES, 2, SYMBOLS]: symmetric, every escape at least 1."""

    frequencies: Array

    def __post_init__(self) -> None:
        f = self.frequencies
        if f.shape != (CLASSES, 2, SYMBOLS) or f.dtype != np.uint16:
            raise RdqError(f"tables: {f.dtype} {f.shape}; give uint16 {(CLASSES, 2, SYMBOLS)}")
        symmetric = np.array_equal(f[..., :WIDEST], f[..., WIDEST + 1 : ESCAPE][..., ::-1])
        if not symmetric or (f.sum(-1, dtype=np.int64) != TOTAL).any() or (f[..., ESCAPE] == 0).any():
            raise RdqError("tables: not symmetric, not of 4096ths or without an escape; make them with `fit`")

    def lengths(self) -> Array:
        """float32 [CLASSES, 2, 2 * MAX_CODE + 1]: ideal bits of index k at place k + MAX_CODE."""
        bits = PRECISION - np.log2(np.maximum(self.frequencies, 2.0**-60))
        out = np.broadcast_to(bits[..., ESCAPE:] + RAW_BITS, (CLASSES, 2, 2 * MAX_CODE + 1)).copy()
        middle = out[..., MAX_CODE - WIDEST : MAX_CODE + WIDEST + 1]  # a view: what is written lands in `out`
        own = self.frequencies[..., :ESCAPE] > 0
        middle[own] = bits[..., :ESCAPE][own]
        return out.astype(np.float32)

    @cached_property
    def distinct(self) -> tuple[Array, Array]:
        """(uint16 [n, SYMBOLS] without repetition, int32 [CLASSES * 2]: each class × quantizer's place there)"""
        rows, place = np.unique(self.frequencies.reshape(-1, SYMBOLS), axis=0, return_inverse=True)
        return rows, place.reshape(-1).astype(np.int32)

    @cached_property
    def crc(self) -> int:
        """The checksum that a matrix names its tables by."""
        return zlib.crc32(self.frequencies.astype("<u2").tobytes())

    @classmethod
    def gaussian(cls) -> Tables:
        """What is assumed before anything is counted: a normal distribution of each class's standard
        deviation.

        Made with floating-point functions that may round differently elsewhere, so a file always brings its
        own.
        """
        return cls(np.stack([_frequencies(share) for share in _gaussian().reshape(-1, MAX_CODE + 1)])
                   .reshape(CLASSES, 2, SYMBOLS))  # fmt: skip

    def to_bytes(self) -> bytes:
        """Deflated: one byte for each class × quantizer, and the frequencies of each table not seen before."""
        out = bytearray()
        before = np.zeros(SYMBOLS, np.uint16)
        for table in self.frequencies.transpose(1, 0, 2).reshape(-1, SYMBOLS):
            if np.array_equal(table, _UNUSED):
                out.append(0)
                continue
            if np.array_equal(table, before):
                out.append(1)
                continue
            before = table
            widest = int(np.flatnonzero(table[WIDEST:ESCAPE]).max())
            out.append(2 + widest)
            for value in (table[ESCAPE], *table[WIDEST + 1 : WIDEST + 1 + widest]):
                out += _varint(int(value))
        return zlib.compress(bytes(out), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """What `to_bytes` wrote; RdqError if it is not that."""
        try:
            plain = zlib.decompress(data)
            return cls(_parsed(plain))
        except (zlib.error, IndexError, OverflowError, ValueError) as error:
            raise RdqError(f"tables: damaged ({error}); get the file again") from None

    def pruned(self, counts: Array) -> Tables:
        """The same, but with the tables that code nothing left out, which makes them smaller to store.

        counts: int64 [CLASSES, 2, MAX_CODE + 1], as of `magnitudes`.
        """
        kept = self.frequencies.copy()
        kept[counts.sum(-1) == 0] = _UNUSED
        return Tables(kept)


def fit(matrices: Iterable[CodedMatrix]) -> Tables:
    """Tables for these matrices, from the counts of their indices."""
    counts = np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64)
    for m in matrices:
        counts += magnitudes(m)
    return from_counts(counts)


def from_counts(counts: Array) -> Tables:
    """Tables for counted indices, int64 [CLASSES, 2, MAX_CODE + 1] (|k|); what was never seen is Gaussian.

    Neighbouring classes share a table where two would cost more bytes to store than they save.
    """
    gaussian = _gaussian()
    out = np.zeros((CLASSES, 2, SYMBOLS), np.uint16)
    for quantizer in range(2):
        for group in _groups(counts[:, quantizer]):
            members = counts[group, quantizer].sum(0)
            prior = gaussian[group, quantizer].mean(0)
            out[group, quantizer] = _frequencies(members + _PRIOR_WEIGHT * prior)
        for unseen in np.flatnonzero(counts[:, quantizer].sum(-1) == 0):
            out[unseen, quantizer] = _frequencies(gaussian[unseen, quantizer])
    return Tables(out)


def entropy_bits(counts: Array) -> float:
    """Empirical entropy, in bits in all, of indices so counted, within each class × quantizer."""
    return float(sum(_entropy(row) for row in counts.reshape(-1, counts.shape[-1])))


def ideal_bits(counts: Array, tables: Tables) -> float:
    """Code length, in bits in all, that an ideal coder would need with these tables."""
    return float((counts * tables.lengths()[..., MAX_CODE:].astype(np.float64)).sum())


_PRIOR_WEIGHT = 4.0
"""Indices that the Gaussian counts for beside those really counted."""
_UNUSED = np.zeros(SYMBOLS, np.uint16)
_UNUSED[[WIDEST, ESCAPE]] = TOTAL - 1, 1
"""The table of a class that codes nothing: zero, or an escape."""


def _gaussian() -> Array:
    """float64 [CLASSES, 2, MAX_CODE + 1]: probability of |k| for normal indices of the class's deviation.

    Q0 has its points at 2k and Q1 at 2k - sign(k), so zero's cell of Q1 is half as wide.
    """
    edges = [np.arange(MAX_CODE + 2) - 0.5, np.arange(MAX_CODE + 2) - 0.75]
    edges[1][1] = 0.25
    out = np.zeros((CLASSES, 2, MAX_CODE + 1))
    for row in range(CLASSES):
        deviation = 2.0 ** ((row - CENTRE_CLASS) / 4)
        for quantizer in range(2):
            below = np.array([math.erf(max(edge, 0) / deviation / math.sqrt(2)) for edge in edges[quantizer]])
            below[-1] = 1.0
            out[row, quantizer] = np.diff(below)
    return out


def _frequencies(weights: Array) -> Array:
    """uint16 [SYMBOLS] for weights float64 [MAX_CODE + 1] of |k|: whole 4096ths by largest remainder."""
    share = weights[: WIDEST + 1] / weights.sum() * TOTAL
    share[1:] /= 2  # of one sign
    worth = np.flatnonzero(share >= 0.5)
    widest = int(worth.max()) if worth.size else 0
    share = np.maximum(share[: widest + 1], 1e-9)
    outside = TOTAL - share[0] - 2 * share[1:].sum()
    escape = max(1, round(outside))
    zero = max(1, round(share[0]))
    zero += (TOTAL - escape - zero) % 2 if widest else TOTAL - escape - zero
    whole = _whole(share[1:], (TOTAL - escape - zero) // 2)
    out = np.zeros(SYMBOLS, np.uint16)
    out[WIDEST], out[ESCAPE] = zero, escape
    out[WIDEST + 1 : WIDEST + 1 + widest] = whole
    out[WIDEST - widest : WIDEST] = whole[::-1]
    return out


def _whole(share: Array, total: int) -> Array:
    """int64 as near as can be to the shares, each at least 1 and `total` in all (total >= their number)."""
    if not share.size:
        return np.zeros(0, np.int64)
    share = share * (total / share.sum())
    out = np.maximum(np.floor(share), 1).astype(np.int64)
    while (missing := total - int(out.sum())) != 0:
        # where one more (or less) changes the code length most for the better
        gain = share / out if missing > 0 else -share / np.maximum(out - 1, 0.5) - 1e9 * (out == 1)
        places = np.argsort(-gain, kind="stable")[: max(1, min(abs(missing), share.size // 2))]
        out[places] += 1 if missing > 0 else -1
    return out


def _entropy(counts: Array) -> float:
    """Bits in all of one table's |k| counts; a sign costs one bit."""
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum() + counts[1:].sum()) if seen.size else 0.0


def _groups(counts: Array) -> list[Array]:
    """Classes that share a table, merged greedily while that saves bits; counts: int64 [CLASSES, |k|]."""

    def cost(members: Array) -> float:
        return _entropy(members) + 16 + 8 * np.count_nonzero(members * TOTAL > members.sum())

    groups = [np.array([c]) for c in np.flatnonzero(counts.sum(-1))]
    while len(groups) > 1:
        sums = [counts[g].sum(0) for g in groups]
        costs = [cost(s) for s in sums]
        saved = [costs[i] + costs[i + 1] - cost(sums[i] + sums[i + 1]) for i in range(len(groups) - 1)]
        best = int(np.argmax(saved))
        if saved[best] <= 0:
            break
        groups[best : best + 2] = [np.concatenate(groups[best : best + 2])]
    return groups


def _varint(value: int) -> bytes:
    """LEB128: seven bits a byte, least first, the top bit set on all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _parsed(data: bytes) -> Array:
    """The frequencies in what `Tables.to_bytes` deflated; ValueError, IndexError, OverflowError if damaged."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while data[place] & 128:
            value, shift, place = value | (data[place] & 127) << shift, shift + 7, place + 1
        value, place = value | data[place] << shift, place + 1
        return value

    out = np.zeros((2 * CLASSES, SYMBOLS), np.uint16)
    before = _UNUSED
    for table in out:
        code, place = data[place], place + 1
        if code == 0:
            table[:] = _UNUSED
        elif code == 1:
            table[:] = before
        else:
            widest = code - 2
            values = [varint() for _ in range(widest + 1)]
            table[ESCAPE] = values[0]
            table[WIDEST + 1 : WIDEST + 1 + widest] = values[1:]
            table[WIDEST - widest : WIDEST] = values[:0:-1]
            table[WIDEST] = TOTAL - values[0] - 2 * sum(values[1:])
            before = table
    if place != len(data):
        raise ValueError("bytes are left over")
    return out.reshape(2, CLASSES, SYMBOLS).transpose(1, 0, 2).copy()
