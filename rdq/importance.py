"""What each matrix of a model gets from the sums of ``statistics``: H and the sensitivity of its rows.

Three modes: ``sensitivity`` uses inputs and gradients, so that one step constant is right for all matrices;
``calibrated`` uses inputs alone, and takes an output to matter in inverse proportion to the power of its
matrix's outputs; ``data-free`` uses nothing, and takes weights to matter by their power alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rdq.matrices import Matrix
from rdq.quantize import Settings
from rdq.statistics import Inputs, Site, Statistics, Sums

MODES = ("sensitivity", "calibrated", "data-free")
HEAD_FLOOR = 0.3  # added to every row of lm_head, in means: a token that never occurs still has a logit
EMBEDDING_FLOOR = 1.0  # added to the frequency of every token, in means
COARSER = {"body": 1.0, "head": 1.3, "embedding": 1.7, "tied": 1.3}  # steps, measured (docs/rdq.md)
OUTER_RANGE = 30.0  # of the steps of the rows of head and embedding
EMBEDDING_DAMPING = 0.2
SOME = 4096  # rows of a matrix that are float32 at a time
FEW = 256  # tokens of its siblings that an expert's own statistics are mixed with

_EXPERT = re.compile(r"(?<=\bexperts\.)\d+(?=\.)|(?<=\[)\d+(?=\]$)")

Read = Callable[[Matrix], torch.Tensor]  # the weight as [rows, columns]


def settings_of(matrix: Matrix, settings: Settings) -> Settings:
    """The settings that suit the kind of matrix."""
    if matrix.kind == "body":
        return settings
    damping = max(settings.damping, EMBEDDING_DAMPING) if matrix.kind == "embedding" else settings.damping
    return replace(settings, row_range=OUTER_RANGE, row_part=1.0, damping=damping)


def statistics_of(
    matrices: Sequence[Matrix], sums: Sums | None, mode: str, read: Read
) -> dict[str, Statistics]:
    """Name -> statistics. Without ``sums`` the mode is ``data-free``, whatever it says."""
    found: dict[str, Statistics] = {}
    importance = Importance(mode, read, found)
    if sums is not None:
        importance.add(matrices, sums)
    importance.complete(matrices)
    return found


@dataclass
class Importance:
    """Fills ``kept``: the statistics of each matrix, by its name, from the sums of one part after another."""

    mode: str
    read: Read
    kept: MutableMapping[str, Statistics]
    _powers: list[float] = field(default_factory=list)

    def add(self, matrices: Sequence[Matrix], sums: Sums) -> None:
        """``matrices``: all those whose sites may be in ``sums``, and all their siblings."""
        if self.mode == "data-free":
            return
        families = _families([part for matrix in matrices for part in matrix.parts], sums)
        for matrix in matrices:
            own = [self._of_part(part, sums, families) for part in matrix.parts]
            known = [one for one in own if one is not None]
            if len(known) == len(own):
                self.kept[matrix.name] = _together(known)

    def _of_part(self, part: Matrix, sums: Sums, families: Mapping[str, list[Site]]) -> Statistics | None:
        known = _known(part, sums, families)
        if known is None:
            return None
        if self.mode == "calibrated":
            known.sensitivity = known.sensitivity / _output_power(known.hessian, self.read(part))
        known.sensitivity = known.sensitivity / COARSER[part.kind] ** 2
        if part.kind == "body":
            power = float(known.hessian.diagonal().mean()) * _power(self.read(part))
            self._powers.append(float(known.sensitivity.mean()) * power)
        return known

    def complete(self, matrices: Sequence[Matrix]) -> None:
        """Those of ``matrices`` that no token reached matter as much, by their power, as the median."""
        usual = float(np.median(self._powers)) if self._powers else 1.0
        for matrix in matrices:
            if matrix.name not in self.kept:
                own = [_unknown(part, self.read(part), usual) for part in matrix.parts]
                self.kept[matrix.name] = _together(own)


def _together(parts: Sequence[Statistics]) -> Statistics:
    """Those of a stack; of anything else, its own."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.sensitivity for part in parts])
    return Statistics(torch.stack([part.hessian for part in parts]), rows)


def _known(matrix: Matrix, sums: Sums, families: Mapping[str, list[Site]]) -> Statistics | None:
    """``None`` for a matrix that no token reached."""
    body, looked = _of_site(matrix, sums, families), _of_look(matrix, sums)
    if body is None or looked is None:
        return body or looked
    # One tensor for both: the sum of two Kronecker products, taken as the product of sums.
    weights = body.sensitivity.mean(), looked.sensitivity.mean()
    shapes = [part.sensitivity / max(part.sensitivity.mean(), 1e-30) for part in (body, looked)]
    scales = [
        float(w * part.hessian.diagonal().mean()) for w, part in zip(weights, (body, looked), strict=True)
    ]
    share = scales[0] / max(sum(scales), 1e-30)
    rows = share * shapes[0] + (1 - share) * shapes[1]
    return Statistics(weights[0] * body.hessian + weights[1] * looked.hessian, rows)


def _of_site(matrix: Matrix, sums: Sums, families: Mapping[str, list[Site]]) -> Statistics | None:
    site = sums.sites.get(matrix.key)
    group = families.get(_family(matrix.name), [])
    if site is None and not group:
        return None
    width = matrix.columns
    if site is None:
        device = group[0].squares.device
        nothing = torch.zeros(width, width, device=device), torch.zeros(matrix.outputs, device=device)
        site = Site(Inputs(nothing[0]), nothing[1])
    squares = site.squares.cpu()
    if len(group) > 1:
        share = FEW / max(1, sum(other.inputs.tokens for other in group))
        products = site.inputs.total() + share * sum(other.inputs.total() for other in group)
        squares = squares + share * sum(other.squares.cpu() for other in group)
        hessian = products / (site.inputs.tokens + FEW)
    else:
        hessian = site.inputs.mean()
    if matrix.kind in ("head", "tied") and sums.doubt is not None:
        doubt = sums.doubt.double().cpu().numpy()[: matrix.rows] / sums.tokens
        return Statistics(hessian, doubt + HEAD_FLOOR * doubt.mean())
    if not sums.sensitivity:
        return Statistics(hessian, np.ones(matrix.rows))
    rows = squares[matrix.first : matrix.first + matrix.rows].double().numpy() / sums.tokens
    return Statistics(hessian, rows)


def _of_look(matrix: Matrix, sums: Sums) -> Statistics | None:
    seen = sums.looked.get(matrix.address)
    if seen is None:
        return None
    frequency = seen.counts.double().cpu().numpy() / max(1.0, float(seen.counts.sum()))
    rows = frequency + EMBEDDING_FLOOR * frequency.mean()
    if not sums.sensitivity:
        return Statistics(_identity(matrix.columns).to(seen.counts.device), rows / rows.mean())
    return Statistics(seen.products / max(1.0, float(seen.counts.sum())), rows)


def _family(name: str) -> str:
    """The name without the number of the expert; empty for any other matrix."""
    found, count = _EXPERT.subn("*", name)
    return found if count else ""


def _families(matrices: Sequence[Matrix], sums: Sums) -> dict[str, list[Site]]:
    """The sites of the experts of one layer that do the same: they borrow from each other."""
    found: dict[str, list[Site]] = {}
    for matrix in matrices:
        if _family(matrix.name) and matrix.key in sums.sites:
            found.setdefault(_family(matrix.name), []).append(sums.sites[matrix.key])
    return found


def _output_power(hessian: torch.Tensor, weight: torch.Tensor) -> float:
    """Mean of the squares of the outputs."""
    hessian, total = hessian.cpu(), 0.0
    for part in torch.split(weight, SOME):
        part = part.float()
        total += float(((part @ hessian) * part).sum(dtype=torch.float64))
    return max(total / len(weight), 1e-30)


def _power(weight: torch.Tensor) -> float:
    """Mean of the squares of the weights."""
    parts = torch.split(weight, SOME)
    return sum(float(part.float().square().sum(dtype=torch.float64)) for part in parts) / weight.numel()


def _unknown(matrix: Matrix, weight: torch.Tensor, usual: float) -> Statistics:
    power = max(_power(weight), 1e-30)
    rows: NDArray[np.float64] = np.full(matrix.rows, usual / power)
    return Statistics(_identity(matrix.columns), rows)


@functools.lru_cache(maxsize=4)
def _identity(columns: int) -> torch.Tensor:
    """One for all matrices of a width."""
    return torch.eye(columns)
