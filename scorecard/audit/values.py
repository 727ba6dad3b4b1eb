"""Values that cannot be right: not finite, or codes or scales that are all zero. Every value is looked at."""

from __future__ import annotations

from collections.abc import Sequence

from scorecard.audit.finding import Finding, Findings, some
from scorecard.audit.layer import Layer
from scorecard.checkpoint import Checkpoint, is_side_data
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


def check(source: Checkpoint, layers: Sequence[Layer]) -> Findings:
    """What the original has as well is not the artifact's fault."""
    broken: list[str] = []
    empty: list[str] = []
    for layer in layers:
        for tensor in layer.stored:
            finite, zero = scan(tensor, codes=_holds_codes(layer, tensor))
            if finite and not (zero and _must_not_be_zero(tensor)):
                continue
            twin = source.tensors.get(tensor.name)
            if twin is None or twin.dtype != tensor.dtype or scan(twin, codes=False) != (finite, zero):
                (empty if zero else broken).append(tensor.name)
    if broken:
        yield Finding("error", f"{some(broken)}: holds values that are not finite; compress this layer again")
    if empty:
        yield Finding("error", f"{some(empty)}: all zero; compress this layer again")


def _holds_codes(layer: Layer, tensor: Tensor) -> bool:
    """Codes may be declared as 16- or 32-bit floats (bitsandbytes' ``quant_storage``): no floats to check."""
    bits = layer.packed.held_in_bits if layer.packed else None
    return (
        bits is not None and bits < 8 and not is_side_data(tensor.name) and not tensor.name.endswith("bias")
    )


def _must_not_be_zero(tensor: Tensor) -> bool:
    """Codes and float scales; zero points, indices and biases may well be zero."""
    if not is_side_data(tensor.name):
        return len(tensor.shape) > 1
    part = tensor.name.rpartition(".")[2]
    return tensor.is_float and ("scale" in part or part in ("absmax", "SCB"))


def scan(tensor: Tensor, *, codes: bool) -> tuple[bool, bool]:
    """Whether all values are finite (``codes`` always are), and whether all bytes are zero."""
    import numpy as np

    kind, mask = ("u1", None) if codes else _NOT_FINITE.get(tensor.dtype, ("u1", None))
    finite, zero = True, tensor.count > 0
    for chunk in tensor.chunks():
        values = np.frombuffer(chunk, dtype=kind)
        zero = zero and not values.any()
        finite = finite and (mask is None or not ((values & values.dtype.type(mask)) == mask).any())
    return finite, zero
