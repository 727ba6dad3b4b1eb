"""A folder of safetensors seen as a model: its tensors, what each is for, and the modules they belong to.

What a tensor is for is read from its name; the rules are those of the formats that transformers,
bitsandbytes, GPTQModel (GPTQ and AWQ), compressed-tensors and this project's ``rtn`` write, and they are
listed in docs/measuring.md.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scorecard.errors import ArtifactError
from scorecard.safetensors_header import BITS, Tensor, read_header

Kind = Literal["linear", "embedding", "lm_head", "norm", "other"]

# The last part of the name of a tensor that only serves to read another one.
_SIDE = re.compile(
    r"_?(?:weight_|input_|output_|[qkv]_|nested_|packed_|per_tensor_|pre_quant_)*"
    r"(?:scales?(?:_inv|_2)?|global_scale|q?zeros?(?:_points?)?|g_idx|absmax|quant_map|SCB|format|shape"
    r"|shift|amax|nbits|axis|group_size|packing|min|codebooks?|lut|perm|permutation|row_offsets?|bitsandbytes__\w+)"
)
_CODED = "_rdq"  # what rdq adds to the name of a parameter that it has coded
_HEADS = ("lm_head", "embed_out", "output_layer", "output")
_BUFFERS = ("inv_freq", "masked_bias", "position_ids")
_INDEX = "model.safetensors.index.json"


def is_side_data(name: str) -> bool:
    """Scales, zero points, codebooks, index and shape tensors: bytes that serve to read the codes."""
    return _SIDE.fullmatch(name.rpartition(".")[2]) is not None


def head_or_embedding(name: str) -> Literal["lm_head", "embedding"] | None:
    """Whether a tensor or module, with any suffix, is of the output head or of an embedding table.

    Nothing inside a numbered layer qualifies.
    """
    parts = name.split(".")
    if any(part.isdigit() for part in parts):
        return None
    if any(part in _HEADS for part in parts):
        return "lm_head"
    return "embedding" if any("embed" in part or part in ("wte", "wpe") for part in parts) else None


@dataclass(frozen=True)
class Module:
    """A layer of the original and its tensors there."""

    name: str
    kind: Kind
    tensors: tuple[Tensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors if not is_side_data(tensor.name))

    @property
    def full_width_bits(self) -> int:
        """Bits of a weight stored without compression: as in the original, but 16 where that has more."""
        widths = [BITS.get(t.dtype, 16) for t in self.tensors if not is_side_data(t.name)]
        return min(16, max(widths, default=16))


@dataclass(frozen=True)
class Checkpoint:
    """The tensors that a loader takes from ``folder``, by name."""

    folder: Path
    tensors: Mapping[str, Tensor]

    @functools.cached_property
    def modules(self) -> dict[str, Module]:
        """Every module that holds parameters of its own, by name, in the order of the files."""
        groups: dict[str, list[Tensor]] = {}
        for tensor in self.tensors.values():
            if not _is_buffer(tensor):
                groups.setdefault(_module_name(tensor.name), []).append(tensor)
        return {name: Module(name, _kind(name, group), tuple(group)) for name, group in groups.items()}

    @functools.cached_property
    def tied_head(self) -> Module | None:
        """The lm_head when its bytes are those of an embedding, so that it is no weight of its own."""
        tables = [m for m in self.modules.values() if m.kind == "embedding"]
        heads = [m for m in self.modules.values() if m.kind == "lm_head"]
        return next((h for h in heads for t in tables if _same(h.tensors, t.tensors)), None)

    @functools.cached_property
    def parameters(self) -> int | None:
        """Number of weights, a tied lm_head counted once; ``None`` when they are already packed here."""
        modules = [m for m in self.modules.values() if m is not self.tied_head]
        tables = [t for m in modules for t in m.tensors if len(t.shape) > 1 and not is_side_data(t.name)]
        if any(not table.is_float for table in tables):
            return None
        return sum(module.parameters for module in modules) or None

    def owners(self, other: Checkpoint) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """Tensors of ``other`` by the module of this one that they stand for, and those without one."""
        owned: dict[str, list[Tensor]] = {name: [] for name in self.modules}
        unknown = []
        for tensor in other.tensors.values():
            owner = self._owner(tensor.name)
            if owner:
                owned[owner].append(tensor)
            elif not _is_buffer(tensor):
                unknown.append(tensor)
        return owned, unknown

    def _owner(self, name: str) -> str | None:
        """The longest beginning of the name that is a module, with or without a prefix of its own."""
        name = name.removesuffix(_CODED)
        for spelling in (name, name.partition(".")[2], f"model.{name}", f"transformer.{name}"):
            end = len(spelling)
            while end > 0:
                if spelling[:end] in self.modules:
                    return spelling[:end]
                end = spelling.rfind(".", 0, end)
        return None


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The safetensors model in a folder, ``None`` when there is none. Raises ArtifactError when it is broken.

    The files are those named by model.safetensors.index.json; without one, model.safetensors; without
    that, every safetensors file of the folder, in the order of their paths.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for tensor in read_header(path).tensors:
            tensors.setdefault(tensor.name, tensor)
    return Checkpoint(folder, tensors) if tensors else None


def weight_files(folder: Path) -> list[Path]:
    """The files that ``read_checkpoint`` reads."""
    index, single = folder / _INDEX, folder / "model.safetensors"
    if index.is_file():
        return list(_indexed_files(index))
    return [single] if single.is_file() else sorted(folder.rglob("*.safetensors"))


def _indexed_files(index: Path) -> Iterator[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{index.name}: has no readable 'weight_map'; save the model again") from None
    for name in names:
        path = index.parent / name
        if not path.resolve().is_relative_to(index.parent.resolve()) or not path.is_file():
            raise ArtifactError(f"{index.name}: names '{name}', which is not in the folder; save it again")
        yield path


def _module_name(name: str) -> str:
    """A parameter that is neither ``weight`` nor ``bias`` (fused experts, for one) is a module by itself."""
    module, _, part = name.rpartition(".")
    return module if module and (part in ("weight", "bias") or is_side_data(part)) else name


def _is_buffer(tensor: Tensor) -> bool:
    """Saved by some models although it is computed: rotary frequencies, causal masks, positions."""
    causal_mask = tensor.name.endswith(".bias") and len(tensor.shape) == 4
    return causal_mask or tensor.name.endswith(_BUFFERS)


def _kind(name: str, tensors: list[Tensor]) -> Kind:
    outer = head_or_embedding(name)
    if outer:
        return outer
    last = name.rpartition(".")[2].lower()
    if "norm" in last or re.match(r"ln(_|\d|$)", last):
        return "norm"
    weight = max(tensors, key=lambda tensor: len(tensor.shape))
    wanted = 2 if weight.name != name else 3
    return "linear" if len(weight.shape) >= wanted and "conv" not in last else "other"


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    if [(t.dtype, t.shape) for t in first] != [(t.dtype, t.shape) for t in second]:
        return False
    pairs = zip(first, second, strict=True)
    return all(a == b for left, right in pairs for a, b in zip(left.chunks(), right.chunks(), strict=True))
