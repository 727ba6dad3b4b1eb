"""Round-to-nearest on a uniform grid for each group of input features, and how its codes lie in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runners._packing import pack, unpack

if TYPE_CHECKING:
    import torch

CHUNK_WEIGHTS = 1 << 24  # weights worked on at once, which bounds the memory for a large vocabulary
PARTS = ("qweight", "scales", "zeros")
Note = tuple[int, str]  # in_features and dtype of a packed matrix: what its parts do not tell


class Grid(Protocol):
    """What the grid of a matrix is: bits of a code, and whether zero is in the middle."""

    @property
    def bits(self) -> int: ...

    @property
    def symmetric(self) -> bool: ...


@dataclass(frozen=True)
class Uniform:
    """A grid by itself; the options of the runner ``rtn`` are one too."""

    bits: int
    symmetric: bool = True


def note(weight: torch.Tensor) -> Note:
    """What ``dequantize`` must be told of ``weight`` [out, in]."""
    return int(weight.shape[1]), str(weight.dtype).removeprefix("torch.")


def stored_grid(parts: Mapping[str, torch.Tensor], width: int) -> Uniform:
    """The grid that ``parts`` of a matrix with ``width`` input features were made on."""
    return Uniform(parts["qweight"].shape[-1] // -(-width // 8), symmetric="zeros" not in parts)


def quantize(weight: torch.Tensor, grid: Grid, group_size: int) -> dict[str, torch.Tensor]:
    """Weight [out, in] -> its parts in the file, some rows at a time.

    The parts are ``qweight`` (uint8 [out, ceil(in / 8) * bits], see ``runners/_packing.py``), ``scales``
    (float16 [out, groups]) and, if asymmetric, ``zeros`` (packed like the codes). A weight is
    ``(code - zero) * scale``; symmetric, the scale is ``2 * max|w| / (2**bits - 1)`` and the zero point
    ``2**(bits - 1)``, otherwise the grid spans the least to the greatest weight of the group, 0 included.
    """
    import torch

    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    starts = range(0, weight.shape[0], rows)
    chunks = [_quantize_rows(weight[i : i + rows], grid, group_size) for i in starts]
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _quantize_rows(weight: torch.Tensor, grid: Grid, group_size: int) -> dict[str, torch.Tensor]:
    import torch

    groups = weight.float().reshape(weight.shape[0], -1, group_size)
    levels = 2**grid.bits - 1
    if grid.symmetric:
        high = groups.abs().amax(-1, keepdim=True)
        low = -high
    else:
        high = groups.amax(-1, keepdim=True).clamp(min=0)
        low = groups.amin(-1, keepdim=True).clamp(max=0)
    limits = torch.finfo(torch.float16)
    scales = ((high - low) / levels).clamp(limits.smallest_normal, limits.max).to(torch.float16)
    exact = scales.float()  # codes are chosen for the scale as it is stored
    middle = torch.full_like(exact, 2.0 ** (grid.bits - 1))
    zeros = middle if grid.symmetric else torch.round(-low / exact).clamp(0, levels)
    codes = torch.round(groups / exact).add(zeros).clamp(0, levels)
    parts = {"qweight": pack(codes.flatten(1), grid.bits), "scales": scales.squeeze(-1)}
    return parts if grid.symmetric else {**parts, "zeros": pack(zeros.squeeze(-1), grid.bits)}


def dequantize(parts: Mapping[str, torch.Tensor], grid: Grid, noted: Note) -> torch.Tensor:
    """Parts in the file -> weight [out, in] of the dtype that ``noted`` says."""
    import torch

    width, dtype = noted
    scales = parts["scales"].float().unsqueeze(-1)
    codes = unpack(parts["qweight"], grid.bits, width).float().reshape(*scales.shape[:2], -1)
    zeros: torch.Tensor | float = 2.0 ** (grid.bits - 1)
    if not grid.symmetric:
        zeros = unpack(parts["zeros"], grid.bits, scales.shape[1]).unsqueeze(-1).float()
    weight: torch.Tensor = ((codes - zeros) * scales).flatten(1).to(getattr(torch, dtype))
    return weight
