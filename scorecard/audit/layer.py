"""A layer of the original, the tensors of the artifact that stand for it, and what can be seen in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scorecard.audit.grid import Stored
from scorecard.audit.layouts import WIDE_FLOATS, recognise
from scorecard.audit.look import Look, look
from scorecard.audit.parts import Parts
from scorecard.checkpoint import Checkpoint, Module, is_side_data
from scorecard.safetensors_header import Tensor

_NEARLY = 0.95  # of the full width: still uncompressed
_TRANSPOSED = ("gpt2", "openai-gpt")  # their Conv1D layers hold [in, out]
_CONV1D = ("c_attn", "c_proj", "c_fc")


@dataclass(frozen=True)
class Layer:
    """``look`` is ``None`` where the layout is not known, or there is no matrix in the original."""

    module: Module
    stored: tuple[Tensor, ...]
    layout: Stored | None = None
    look: Look | None = None

    @property
    def name(self) -> str:
        return self.module.name

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
        return not self.packed and bits is not None and bits >= _NEARLY * self.module.full_width_bits

    @property
    def plain(self) -> bool:
        """Stored as floats of 16 bits or more, not as codes."""
        return all(tensor.dtype in WIDE_FLOATS for tensor in self.codes)

    @property
    def packed(self) -> Stored | None:
        """The layout of the codes; ``None`` for plain floats too."""
        return self.layout if self.layout and self.layout.format != "plain" else None

    @property
    def width(self) -> int:
        """Input features."""
        return max((t.shape[-1] for t in self.module.tensors if len(t.shape) > 1), default=0)

    def row(self) -> dict[str, Any]:
        layout, seen = self.layout or Stored("unknown"), self.look
        return {
            "module": self.name,
            "kind": self.module.kind,
            "original_bytes": self.module.size_bytes,
            "stored_bytes": self.stored_bytes,
            "bits_per_weight": self.bits_per_weight,
            "dtypes": sorted({tensor.dtype for tensor in self.stored}),
            "format": self.layout.format if self.layout else None,
            "bits": layout.bits,
            "group_size": layout.group_size,
            "symmetric": layout.symmetric,
            "relative_error": seen.relative_error if seen else None,
            "rounding_difference": seen.rounding_difference if seen else None,
            "zeros": seen.zeros if seen else None,
        }


def read_layer(
    module: Module, stored: list[Tensor], config: Mapping[str, Any], *, model_type: str, rescaled: bool
) -> Layer:
    """``rescaled``: the method moved scales between layers, so compare up to scales of rows and columns."""
    weight = next((t for t in module.tensors if len(t.shape) > 1 and not is_side_data(t.name)), None)
    if weight is None or not weight.is_float or not stored:
        return Layer(module, tuple(stored))
    flat = (math.prod(weight.shape[:-1]), weight.shape[-1])
    conv1d = model_type in _TRANSPOSED and module.name.rpartition(".")[2] in _CONV1D
    tensors = {_rest(tensor.name, module.name): tensor for tensor in stored}
    for transposed in (False, True) if conv1d else (False,):
        shape = (flat[1], flat[0]) if transposed else flat
        layout = recognise(Parts(module.name, shape, tensors, config))
        if layout:
            moved = rescaled or any("pre_quant_scale" in name for name in tensors)
            seen = look(weight, stored, layout, shape, transposed=transposed, rescaled=moved)
            return Layer(module, tuple(stored), layout, seen)
    return Layer(module, tuple(stored))


def _rest(name: str, module: str) -> str:
    """The name of a tensor without its module, whatever either begins with."""
    for spelling in (module, module.partition(".")[2]):
        if spelling and f"{spelling}." in name:
            return name.partition(f"{spelling}.")[2]
    return "weight" if name.endswith(module) else name


def rescaled(source: Checkpoint, here: Checkpoint) -> bool:
    """Whether a norm differs from the original's: AWQ and SmoothQuant move scales from there into weights."""
    norms = [t for m in source.modules.values() if m.kind == "norm" for t in m.tensors]
    pairs = [(norm, here.tensors[norm.name]) for norm in norms if norm.name in here.tensors]
    return any(_differ(old, new) for old, new in pairs)


def _differ(old: Tensor, new: Tensor) -> bool:
    import numpy as np

    from scorecard.audit.numbers import floats, readable

    if old.shape != new.shape or not readable(old) or not readable(new):
        return old.shape != new.shape
    return not np.allclose(floats(old), floats(new), rtol=2**-7, atol=1e-6)
