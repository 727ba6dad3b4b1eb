"""Did the compression really happen: what the artifact stores for each layer of the original.

Only headers are read, and then, a few megabytes at a time, the values: a scale that is not finite or a
layer whose codes are all zero is found wherever it lies. torch is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scorecard.checkpoint import Checkpoint, Module, head_or_embedding, is_side_data, read_checkpoint
from scorecard.safetensors_header import Tensor

# A float is infinite or not a number when all bits of this mask are set: the exponent, or for the types
# without infinity the only pattern (of either sign) that is not a number.
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
}
_WIDE_FLOATS = ("F64", "F32", "F16", "BF16")
_NEARLY = 0.95  # of the full width: still uncompressed


@dataclass(frozen=True)
class Finding:
    """``error``: the artifact is not what it claims to be; ``warning``: worth a look."""

    level: Literal["error", "warning"]
    what: str


@dataclass(frozen=True)
class Layer:
    """A module of the original and the tensors of the artifact that stand for it."""

    module: Module
    stored: tuple[Tensor, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.stored)

    @property
    def bits_per_weight(self) -> float | None:
        """All stored bytes of the layer, side data and bias with them, by the original's weights."""
        count = self.module.parameters
        return 8 * self.stored_bytes / count if count else None

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """What holds the weights themselves, quantized or not."""
        return tuple(t for t in self.stored if not is_side_data(t.name) and not t.name.endswith("bias"))

    @property
    def uncompressed(self) -> bool:
        bits = self.bits_per_weight
        return bits is not None and bits >= _NEARLY * self.module.full_width_bits

    @property
    def plain(self) -> bool:
        """Stored as floats of 16 bits or more, not as codes."""
        return all(tensor.dtype in _WIDE_FLOATS for tensor in self.codes)

    def row(self) -> dict[str, Any]:
        return {
            "module": self.module.name,
            "kind": self.module.kind,
            "original_bytes": self.module.size_bytes,
            "stored_bytes": self.stored_bytes,
            "bits_per_weight": self.bits_per_weight,
            "dtypes": sorted({tensor.dtype for tensor in self.stored}),
        }


def audit(artifact: Path, original: Path, claims: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``layers`` (one for each module of the original, then what only the artifact has) and ``findings``.

    ``claims`` is ``None`` for a case that does not compress; otherwise the runner's name as ``runner`` with
    its options, of which ``bits``, ``format`` (``nf4``, ``int8``: its last number), ``lm_head`` and
    ``embeddings`` are compared with what is stored. Raises ArtifactError for a broken safetensors file.
    """
    source, here = read_checkpoint(original), read_checkpoint(artifact)
    if claims is not None and claims.get("runner") == "baseline":
        claims = None
    owned, unknown = source.owners(here) if source and here else ({}, [])
    if not source or not any(owned.values()):
        what = "cannot see inside: it holds no tensors of the original's layers in safetensors files"
        return {"layers": [], "findings": [vars(Finding("warning", f"artifact: {what}"))]}
    layers = [Layer(source.modules[name], tuple(stored)) for name, stored in owned.items()]
    findings = [
        *_missing(source, layers, unknown),
        *(_widths(layers, claims) if claims is not None else ()),
        *_values(source, layers),
    ]
    rows = [*(layer.row() for layer in layers if layer.stored), *_unknown_rows(unknown)]
    return {"layers": rows, "findings": [vars(finding) for finding in findings]}


def _missing(source: Checkpoint, layers: Sequence[Layer], unknown: Sequence[Tensor]) -> Iterator[Finding]:
    """Layers without any tensor; a tied lm_head need not be stored. Renamed layers cannot be told apart."""
    tied = source.tied_head is not None or _says_tied(source.folder)
    missing = [
        layer.module
        for layer in layers
        if not layer.codes and layer.module.kind != "other" and not (tied and layer.module.kind == "lm_head")
    ]
    if not missing:
        return
    others = {_unknown_module(tensor.name) for tensor in unknown if not head_or_embedding(tensor.name)}
    if len(others) >= len(missing):
        yield Finding(
            "warning", f"{_some(missing)}: not stored under this name; {len(others)} other layers are"
        )
    else:
        yield Finding("error", f"{_some(missing)}: missing; write every layer into $OUTPUT_MODEL")


def _says_tied(folder: Path) -> bool:
    try:
        return (
            json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
            is True
        )
    except (OSError, ValueError, AttributeError):
        return False


def _widths(layers: Sequence[Layer], claims: Mapping[str, Any]) -> Iterator[Finding]:
    body = [layer for layer in layers if layer.module.kind == "linear" and layer.stored]
    whole = [layer for layer in body if layer.uncompressed]
    if body and len(whole) == len(body):
        what = f"nothing was compressed: all {len(body)} Linear layers are stored at their original width"
        yield Finding("error", f"artifact: {what}; check the recipe's targets")
    elif whole:
        yield Finding("warning", f"{_some(whole)}: left uncompressed among compressed layers")
    yield from _wider_than_claimed(body, _claimed_bits(claims))
    for kind, option in (("lm_head", "lm_head"), ("embedding", "embeddings")):
        left = [
            layer for layer in layers if layer.module.kind == kind and layer.stored and layer.uncompressed
        ]
        if left and claims.get(option) is True:
            yield Finding("error", f"{_some(left)}: stored at its original width although '{option}: true'")


def _claimed_bits(claims: Mapping[str, Any]) -> int | None:
    if isinstance(claims.get("bits"), int):
        return int(claims["bits"])
    number = re.fullmatch(r"[a-zA-Z]+(\d+)", str(claims.get("format") or ""))
    return int(number[1]) if number else None


def _wider_than_claimed(body: Sequence[Layer], bits: int | None) -> Iterator[Finding]:
    """More than ``1.6 bits + 1`` per weight: room for scales of small groups, not for the next wider type."""
    if bits is None or not body:
        return
    most = 1.6 * bits + 1
    wide = [layer for layer in body if not layer.plain and (layer.bits_per_weight or 0) > most]
    if wide:
        found = max(layer.bits_per_weight or 0 for layer in wide)
        yield Finding("error", f"{_some(wide)}: {found:.1f} bits per weight are stored, {bits} claimed")
    mean = 8 * sum(layer.stored_bytes for layer in body) / sum(layer.module.parameters for layer in body)
    if mean > most and not wide and not all(layer.uncompressed for layer in body):
        yield Finding("error", f"artifact: the body takes {mean:.1f} bits per weight, {bits} claimed")


def _values(source: Checkpoint, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Values that are not finite, and weights or scales that are all zero, unless the original's are too."""
    broken: list[str] = []
    empty: list[str] = []
    for tensor in (tensor for layer in layers for tensor in layer.stored):
        finite, zero = _scan(tensor)
        if finite and not (zero and _must_not_be_zero(tensor)):
            continue
        twin = source.tensors.get(tensor.name)
        if twin is None or twin.dtype != tensor.dtype or _scan(twin) != (finite, zero):
            (empty if zero else broken).append(tensor.name)
    if broken:
        yield Finding(
            "error", f"{_some(broken)}: holds values that are not finite; compress this layer again"
        )
    if empty:
        yield Finding("error", f"{_some(empty)}: all zero; compress this layer again")


def _must_not_be_zero(tensor: Tensor) -> bool:
    """Codes and float scales; zero points, indices and biases may well be zero."""
    if not is_side_data(tensor.name):
        return len(tensor.shape) > 1
    part = tensor.name.rpartition(".")[2]
    return tensor.is_float and ("scale" in part or part in ("absmax", "SCB"))


def _scan(tensor: Tensor) -> tuple[bool, bool]:
    """Whether all values are finite, and whether all bytes are zero; every value is looked at."""
    import numpy as np

    kind, mask = _NOT_FINITE.get(tensor.dtype, ("u1", None))
    finite, zero = True, tensor.count > 0
    for chunk in tensor.chunks():
        values = np.frombuffer(chunk, dtype=kind)
        zero = zero and not values.any()
        finite = finite and (mask is None or not ((values & values.dtype.type(mask)) == mask).any())
    return finite, zero


def _unknown_module(name: str) -> str:
    """The module of a tensor that the original does not have, by the name alone."""
    return name.rpartition(".")[0].removesuffix(".weight") or name


def _unknown_rows(unknown: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    groups: dict[str, list[Tensor]] = {}
    for tensor in unknown:
        groups.setdefault(_unknown_module(tensor.name), []).append(tensor)
    for name, tensors in groups.items():
        yield {
            "module": name,
            "kind": head_or_embedding(name) or "other",
            "original_bytes": 0,
            "stored_bytes": sum(tensor.size_bytes for tensor in tensors),
            "bits_per_weight": None,
            "dtypes": sorted({tensor.dtype for tensor in tensors}),
        }


def _some(items: Sequence[Layer] | Sequence[Module] | Sequence[str]) -> str:
    """The first of several, and how many there are."""
    first = items[0]
    name = first if isinstance(first, str) else first.module.name if isinstance(first, Layer) else first.name
    return name if len(items) == 1 else f"{name} and {len(items) - 1} more"
