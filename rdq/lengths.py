"""How many bits an index is taken to cost while codes are chosen, and how many all of them take."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdq.coded import CLASSES, MAX_CODE

Array = NDArray[Any]
PRIOR_CODES = 24.0  # what a table of one matrix starts from: that many codes as the prior has them
TAPER = 10, 18  # classes: from none of the code length to all of it


@functools.cache
def taper() -> Array:
    """[CLASSES]: how much of its code length counts. Where most codes are zero less does: an error that saves
    bits here is handed on to the columns after it, and costs bits there.
    """
    return np.clip((np.arange(CLASSES) - TAPER[0]) / (TAPER[1] - TAPER[0]), 0, 1)


@functools.cache
def prior_lengths(states: int) -> Array:
    """Bits [CLASSES, 2, MAX_CODE + 1] of an index of a Gaussian whose standard deviation its class says."""
    m = np.arange(MAX_CODE + 1.0)
    lengths = np.empty((CLASSES, 2, MAX_CODE + 1))
    for number in range(CLASSES):
        deviation = 2.0 ** ((number - 20) / 4)
        for quantizer in range(2):
            points = m - 0.5 * quantizer * (m > 0) if states > 1 else m
            lengths[number, quantizer] = _bits(np.exp(-0.5 * (points / max(deviation, 0.3)) ** 2))
    return lengths


def _bits(weights: Array) -> Array:
    """Bits of each magnitude, with its sign, where these are its weights (unsigned)."""
    signed = np.maximum(weights / weights.sum() if weights.sum() else weights, 2.0**-14)
    bits: Array = -np.log2(signed / (signed[0] + 2 * signed[1:].sum()))
    return bits


def measured_lengths(counts: Array, states: int) -> Array:
    """Bits [CLASSES, 2, MAX_CODE + 1] from counts of magnitudes, a few of the prior's among them."""
    signed = np.where(np.arange(MAX_CODE + 1) > 0, 2.0, 1.0)
    mixed = counts + PRIOR_CODES * 2.0 ** -prior_lengths(states) * signed
    shares = mixed / mixed.sum(2, keepdims=True) / signed
    lengths: Array = -np.log2(np.maximum(shares, 2.0**-20))
    return lengths


def entropy_bits(counts: Array) -> float:
    """Bits of the codes that ``counts`` tells of, under a table of their own for each class and quantizer."""
    flat = counts.reshape(-1, counts.shape[-1])
    total = np.maximum(flat.sum(1, keepdims=True), 1)
    logs = np.where(flat > 0, flat * np.log2(np.maximum(flat, 1) / total), 0)
    return float(flat[:, 1:].sum() - logs.sum())
