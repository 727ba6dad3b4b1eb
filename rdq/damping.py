"""Damping of the model's matrices chosen by measuring: the one whose codes cost least at equal divergence.

Damping keeps the error feedback from trusting H where little text was seen, and how much of it is right
depends on how much text there was. So it is judged by an H of sequences that were not calibrated on: some
rows of some matrices are quantized with each, and what they lose there is set off against the bits that they
take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rdq.coded import dequantize
from rdq.importance import Read, settings_of
from rdq.lengths import entropy_bits
from rdq.matrices import Matrix
from rdq.quantize import Settings, prepare, quantize
from rdq.statistics import Statistics

CHOICES = 0.003, 0.01, 0.03, 0.1
USUAL = 1  # the place of the one that is kept where nothing is measured
MATRICES = 10  # that are tried
ROWS = 32  # of each
MARGIN = 0.01  # bits per weight that another than the usual one must save: less is noise
WIDER = 2**0.25  # by how much steps differ from which the worth of a bit is read

Fresh = Callable[[Sequence[Matrix]], Mapping[str, Statistics]]


def chosen(
    matrices: Sequence[Matrix],
    statistics: Mapping[str, Statistics],
    read: Read,
    fresh: Fresh,
    c: float,
    settings: Settings,
) -> float:
    """One of ``CHOICES``.

    ``fresh``: statistics of some of the matrices over text that ``statistics`` have not seen. ``c``: about
    the step constant that will be used.
    """
    body = [matrix for matrix in matrices if matrix.kind == "body" and not matrix.stack]
    if not body:
        return CHOICES[USUAL]
    some = [body[i] for i in _spaced(len(body), MATRICES)]
    other = fresh(some)
    total, weights = np.zeros(len(CHOICES)), 0
    for matrix in some:
        found = costs(
            read(matrix),
            statistics[matrix.name],
            other[matrix.name].hessian,
            c,
            settings_of(matrix, settings),
        )
        total += matrix.rows * matrix.columns * found
        weights += matrix.rows * matrix.columns
    least = int(np.argmin(total))
    return CHOICES[least if total[least] < -MARGIN * weights else USUAL]


def costs(
    weight: torch.Tensor, statistics: Statistics, fresh: torch.Tensor, c: float, settings: Settings
) -> NDArray[np.float64]:
    """Bits per weight that each of ``CHOICES`` takes at equal divergence, less those of the usual one.

    ``weight`` [rows, columns]; ``fresh`` [columns, columns]: E[x x^T] over other text.
    """
    rows = _spaced(len(weight), ROWS)
    few = Statistics(statistics.hessian, statistics.sensitivity[rows])
    tried = weight[torch.from_numpy(rows)]
    judge = fresh.double().cpu()

    def measured(damping: float, step: float) -> tuple[float, float]:
        how = replace(settings, damping=damping)
        found = quantize(tried, prepare(few, how), step, how)
        away = tried.double().cpu() - torch.from_numpy(dequantize(found.coded)).double()
        losses = ((away @ judge) * away).sum(1).numpy()
        return entropy_bits(found.counts) / tried.numel(), float(np.log2(few.sensitivity @ losses + 1e-300))

    points = np.array([measured(damping, c) for damping in CHOICES])
    bits, loss = measured(CHOICES[USUAL], c * WIDER)
    # what a doubled divergence saves
    worth = max(0.0, points[USUAL, 0] - bits) / max(1e-3, loss - points[USUAL, 1])
    away = points - points[USUAL]
    return np.asarray(away[:, 0] + worth * away[:, 1])


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of ``range(count)``, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
