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
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rdq.coded import CLASS_OFFSET, CLASSES, MAX_CODE, CodedMatrix
from rdq.counting import magnitudes
from rdq.errors import RdqError
from rdq.symbols import ESCAPE, PRECISION, RAW_BITS, SYMBOLS, TOTAL, UNUSED, WIDEST, packed, unpacked

Array = npt.NDArray[Any]

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
        """(uint16 [n, SYMBOLS] without repetition, int32 [CLASSES * 2]: where each class × quantizer is)"""
        rows, place = np.unique(self.frequencies.reshape(-1, SYMBOLS), axis=0, return_inverse=True)
        return rows, place.reshape(-1).astype(np.int32)

    @cached_property
    def crc(self) -> int:
        """The checksum that a matrix names its tables by."""
        return zlib.crc32(self.frequencies.astype("<u2").tobytes())

    @staticmethod
    @cache
    def gaussian() -> Tables:
        """What is assumed before anything is counted: a normal distribution of each class's standard
        deviation.

        Made with floating-point functions that may round differently elsewhere, so a file brings its own.
        """
        rows = [_frequencies(share) for share in _gaussian().reshape(-1, MAX_CODE + 1)]
        return Tables(np.stack(rows).reshape(CLASSES, 2, SYMBOLS))

    def to_bytes(self) -> bytes:
        """A few hundred bytes: see `symbols.packed`."""
        return packed(self.frequencies)

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """What `to_bytes` wrote; RdqError if it is not that."""
        try:
            return cls(unpacked(data))
        except (zlib.error, IndexError, OverflowError, StopIteration, ValueError) as error:
            raise RdqError(f"tables: damaged ({error}); get the file again") from None

    def pruned(self, counts: Array) -> Tables:
        """The same, but with the tables that code nothing left out, which makes them smaller to store.

        counts: int64 [CLASSES, 2, MAX_CODE + 1], as of `magnitudes`.
        """
        kept = self.frequencies.copy()
        kept[counts.sum(-1) == 0] = UNUSED
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
    out = Tables.gaussian().frequencies.copy()
    for quantizer in range(2):
        for group in _groups(counts[:, quantizer]):
            members = counts[group, quantizer].sum(0)
            prior = gaussian[group, quantizer].mean(0)
            out[group, quantizer] = _frequencies(members + _PRIOR_WEIGHT * prior)
    return Tables(out)


def entropy_bits(counts: Array) -> float:
    """Empirical entropy, in bits in all, of indices so counted, within each class × quantizer."""
    return float(sum(_entropy(row) for row in counts.reshape(-1, counts.shape[-1])))


def ideal_bits(counts: Array, tables: Tables) -> float:
    """Code length, in bits in all, that an ideal coder would need with these tables."""
    return float((counts * tables.lengths()[..., MAX_CODE:].astype(np.float64)).sum())


_PRIOR_WEIGHT = 4.0
"""Indices that the Gaussian counts for beside those really counted."""


@cache
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
    """uint16 [SYMBOLS] for weights float64 [MAX_CODE + 1] of |k|: whole 4096ths by largest remainder.

    What is worth less than half a 4096th has none and goes by the escape.
    """
    share = weights[: WIDEST + 1] / weights.sum() * TOTAL
    share[1:] /= 2  # of one sign
    worth = 1 + np.flatnonzero(share[1:] >= 0.5)
    escape = max(1, min(round(TOTAL - share[0] - 2 * share[worth].sum()), TOTAL - 2 - 2 * worth.size))
    zero = max(1, min(round(share[0]), TOTAL - escape - 2 * worth.size))
    zero += (TOTAL - escape - zero) % 2 if worth.size else TOTAL - escape - zero
    whole = _whole(share[worth], (TOTAL - escape - zero) // 2)
    out = np.zeros(SYMBOLS, np.uint16)
    out[WIDEST], out[ESCAPE] = zero, escape
    out[WIDEST + worth] = out[WIDEST - worth] = whole
    return out


def _whole(share: Array, total: int) -> Array:
    """int64 as near as can be to the shares, each at least 1 and `total` in all (total >= their number)."""
    if not share.size:
        return np.zeros(0, np.int64)
    share = share * (total / share.sum())
    out: Array = np.maximum(np.floor(share), 1).astype(np.int64)
    while (missing := total - int(out.sum())) != 0:
        # where one more (or less) changes the code length most for the better
        gain = share / out if missing > 0 else -share / np.maximum(out - 1, 0.5) - 1e9 * (out == 1)
        places = np.argsort(-gain, kind="stable")[: min(abs(missing), share.size)]
        places = places[: max(1, places.size // 2)]
        out[places] += 1 if missing > 0 else -1
        out = np.maximum(out, 1)
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
