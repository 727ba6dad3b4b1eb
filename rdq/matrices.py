"""Which tensors of a checkpoint are quantized, and where each of them is in the model that runs.

Quantized is every weight of a Linear, a Conv1D or an Embedding, and every expert, whether the model keeps its
experts apart or stacked in one parameter. Norms, biases, routers and whatever else is small stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rdq.errors import RdqError
from rdq.stacked import addresses, layouts
from rdq.statistics import Key

_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.\w*)?\.weight$")
FLOATS = "BF16", "F16", "F32"
SMALLEST = 1024  # weights: less is not worth the side information
NARROWEST = 16  # of either side of a stacked matrix: less is a convolution's kernel
Fingerprint = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True)
class Matrix:
    """A tensor of the checkpoint to quantize.

    ``kind``: "body", "head", "embedding", or "tied" (one tensor for both). ``turned``: stored as [in, out].
    ``address``, ``outputs``: the weight of the running model that it is, or is a part of, beginning with row
    ``first``. ``stack``: the addresses of its matrices, for a tensor of three dimensions, whose last two
    ``shape`` has; ``number``: which of them, for one of ``parts``.
    """

    name: str
    shape: tuple[int, int]
    kind: str
    turned: bool = False
    address: int = 0
    outputs: int = 0
    first: int = 0
    stack: tuple[int, ...] = ()
    number: int | None = None

    @property
    def rows(self) -> int:
        """Of all matrices of a stack."""
        return self.shape[1 if self.turned else 0] * max(1, len(self.stack))

    @property
    def columns(self) -> int:
        return self.shape[0 if self.turned else 1]

    @property
    def key(self) -> Key:
        return self.address, self.outputs

    @property
    def parts(self) -> list[Matrix]:
        """The matrices of a stack, each on its own; for any other only itself."""
        if not self.stack:
            return [self]
        return [
            replace(self, name=f"{self.name}[{i}]", address=address, stack=(), number=i)
            for i, address in enumerate(self.stack)
        ]


def weight(tensors: Mapping[str, Path], matrix: Matrix) -> torch.Tensor:
    """As [rows, columns], from the files."""
    name = matrix.name
    if matrix.number is not None:
        name = name.removesuffix(f"[{matrix.number}]")
    with safe_open(tensors[name], "pt") as file:
        found: torch.Tensor = (
            file.get_tensor(name) if matrix.number is None else file.get_slice(name)[matrix.number]
        )
    found = found.transpose(-1, -2) if matrix.turned else found
    return found.reshape(-1, matrix.columns) if matrix.stack else found


def files(folder: Path) -> list[Path]:
    """The safetensors files of a model, each weight once. Raises RdqError where there are none."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    raise RdqError(f"{folder}: no model.safetensors; convert the weights with save_pretrained")


def stored(folder: Path) -> dict[str, Path]:
    """Name -> file of every tensor, in the files' order."""
    found: dict[str, Path] = {}
    for path in files(folder):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def read(path: Path, name: str) -> torch.Tensor:
    """One tensor."""
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def matrices(model: PreTrainedModel, tensors: Mapping[str, Path]) -> list[Matrix]:
    """What to quantize of the checkpoint that ``model`` was loaded from, in the order of ``tensors``."""
    modules = dict(model.named_modules(remove_duplicate=False))
    slices, stacks = _slices(model), _stacks(model, tensors)
    found = []
    for name, path in tensors.items():
        with safe_open(path, "pt") as file:
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
        if dtype in FLOATS and name in stacks:
            found.append(stacks[name])
        if len(shape) != 2 or dtype not in FLOATS or shape[0] * shape[1] < SMALLEST:
            continue
        if _ROUTER.search(name):
            continue
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if module is not None:
            matrix = _of_module(model, module, name, (shape[0], shape[1]))
        else:
            part_of = slices.get(_fingerprint(read(path, name)))
            matrix = replace(part_of, name=name) if part_of else None
        if matrix:
            found.append(matrix)
    return found


def _of_module(
    model: PreTrainedModel, module: torch.nn.Module, name: str, shape: tuple[int, int]
) -> Matrix | None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or tuple(weight.shape) != shape:
        return None
    address = weight.data_ptr()
    if isinstance(module, Conv1D):
        return Matrix(name, shape, "body", turned=True, address=address, outputs=shape[1])
    if weight is embedding.weight and tied:
        return Matrix(name, shape, "tied", address=address, outputs=shape[0])
    if isinstance(module, torch.nn.Embedding):
        return Matrix(name, shape, "embedding", address=address, outputs=shape[0])
    if isinstance(module, torch.nn.Linear):
        return Matrix(name, shape, "head" if module is head else "body", address=address, outputs=shape[0])
    return None


def _stacks(model: PreTrainedModel, tensors: Mapping[str, Path]) -> dict[str, Matrix]:
    """The tensors of the checkpoint that are stacked matrices, as the model has them.

    One that no product of a short run has met is taken for [out, in], if its name says that it is of experts.
    """
    found: dict[str, Matrix] = {}
    candidates = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name in tensors and parameter.ndim == 3 and min(parameter.shape[1:]) >= NARROWEST
    ]
    turned = layouts(model) if candidates else {}
    for name, parameter in candidates:
        stack = addresses(parameter)
        seen = [turned[address] for address in stack if address in turned]
        if not seen and ".experts." not in name:
            continue
        lying = seen[0] if seen else False
        _, first, second = parameter.shape
        outputs = second if lying else first
        found[name] = Matrix(name, (first, second), "body", lying, stack[0], outputs, stack=tuple(stack))
    return found


def _slices(model: PreTrainedModel) -> dict[Fingerprint, Matrix]:
    """Every part of a stacked parameter that may be a tensor of its own in the checkpoint."""
    found = {}
    for parameter in model.parameters():
        if parameter.ndim == 3:
            for expert in parameter.data:
                for part, matrix in _parts(expert):
                    found[_fingerprint(part)] = matrix
    return found


def _parts(expert: torch.Tensor) -> Iterator[tuple[torch.Tensor, Matrix]]:
    """The matrix [A, B] as outputs × inputs and as inputs × outputs, whole and in halves of its outputs.

    A checkpoint holds a part as [out, in] either way.
    """
    address = expert.data_ptr()
    for laid_out in (expert, expert.T):
        outputs, width = laid_out.shape
        for count in (outputs, outputs // 2):
            for first in range(0, outputs - count + 1, max(1, count)):
                part = laid_out[first : first + count]
                yield part, Matrix("", (count, width), "body", False, address, outputs, first)


def _fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """Shape and some values: enough to tell the matrices of one model apart."""
    some = torch.cat([tensor[0, :64], tensor[-1, :64], tensor[:64, 0]]).float().cpu()
    return tuple(tensor.shape), some.numpy().tobytes()
