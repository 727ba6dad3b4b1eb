"""Which layout a layer is stored in, told from the names, types and shapes of its tensors alone.

One function a family; each returns ``None`` for tensors that are not its own. A layout that no function
knows stays unknown: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable

from scorecard.audit import layouts_blocks, layouts_floats, layouts_integers, layouts_packed
from scorecard.audit.grid import Stored
from scorecard.audit.parts import Parts

WIDE_FLOATS = ("F64", "F32", "F16", "BF16")

FAMILIES: tuple[Callable[[Parts], Stored | None], ...] = (
    layouts_packed.gptq,
    layouts_packed.awq,
    layouts_integers.pack_quantized,
    layouts_integers.int8,
    layouts_packed.rtn,
    layouts_floats.bitsandbytes_4bit,
    layouts_floats.fp4,
    layouts_floats.fp8,
    layouts_blocks.hqq,
    layouts_blocks.quanto,
    layouts_blocks.modelopt_int4,
)


def recognise(parts: Parts) -> Stored | None:
    """``None`` for a layout that is not known."""
    if set(parts.tensors) <= {"weight", "bias"} and parts.tensors.get("weight"):
        weight = parts.tensors["weight"]
        if weight.dtype in WIDE_FLOATS and weight.shape == parts.shape:
            return Stored("plain")
    return next((stored for family in FAMILIES if (stored := family(parts))), None)
