"""Which layout a layer is stored in, told from the names, types and shapes of its tensors alone.

One function a family; each returns ``None`` for tensors that are not its own. A layout that no function
knows stays unknown: nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scorecard.audit import layouts_blocks, layouts_floats, layouts_integers, layouts_packed, layouts_rdq
from scorecard.audit.grid import Stored
from scorecard.audit.parts import Parts
from scorecard.checkpoint import is_side_data
from scorecard.safetensors_header import Tensor

WIDE_FLOATS = ("F64", "F32", "F16", "BF16")

FAMILIES: tuple[Callable[[Parts], Stored | None], ...] = (
    layouts_packed.gptq,
    layouts_packed.awq,
    layouts_integers.pack_quantized,
    layouts_integers.int8,
    layouts_packed.rtn,
    layouts_packed.torchao,
    layouts_floats.bitsandbytes_4bit,
    layouts_floats.fp4,
    layouts_floats.fp8,
    layouts_blocks.hqq,
    layouts_blocks.quanto,
    layouts_blocks.modelopt_int4,
    layouts_rdq.rdq,
)


def _flat(tensor: Tensor) -> tuple[int, ...]:
    """Experts held in one tensor [experts, out, in] are so many more rows."""
    return (math.prod(tensor.shape[:-1]), *tensor.shape[-1:])


def recognise(parts: Parts) -> Stored | None:
    """``None`` for a layout that is not known."""
    weight = parts.tensors.get("weight")
    beside = [name for name in parts.tensors if name not in ("weight", "bias") and not is_side_data(name)]
    if weight and not beside and weight.dtype in WIDE_FLOATS and _flat(weight) == parts.shape:
        return Stored("plain")  # scales that nothing is scaled with may lie about
    return next((stored for family in FAMILIES if (stored := family(parts))), None)
