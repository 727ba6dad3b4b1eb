"""Whole numbers of 2 to 8 bits packed densely into bytes, along the last dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in ``[0, 2**bits)``, shape ``[..., n]`` -> uint8 of shape ``[..., ceil(n / 8) * bits]``.

    Eight codes fill ``bits`` bytes: code ``i`` of the eight takes the bits from ``i * bits`` on, and the
    bytes are in little-endian order. The last eight are filled up with zeros.
    """
    import torch

    missing = -codes.shape[-1] % 8
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, missing))
    eights = padded.reshape(*padded.shape[:-1], -1, 8)
    word = torch.zeros(eights.shape[:-1], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= eights[..., i].to(torch.int64) << (i * bits)
    return torch.stack([(word >> (8 * k)) & 0xFF for k in range(bits)], -1).to(torch.uint8).flatten(-2)


def unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """The inverse of ``pack``: uint8 codes of shape ``[..., n]``."""
    import torch

    parts = packed.reshape(*packed.shape[:-1], -1, bits).to(torch.int64)
    word = torch.zeros(parts.shape[:-1], dtype=torch.int64, device=packed.device)
    for k in range(bits):
        word |= parts[..., k] << (8 * k)
    mask = (1 << bits) - 1
    codes = torch.stack([(word >> (i * bits)) & mask for i in range(8)], -1).to(torch.uint8)
    return codes.flatten(-2)[..., :n]
