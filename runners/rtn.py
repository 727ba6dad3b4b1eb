"""Plain round-to-nearest: the yardstick that every cleverer method must beat at equal bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import _outer
from runners._hf import (
    copy_side_files,
    empty_model,
    is_tied,
    linear_size,
    load_tokenizer,
    model_from_state,
    stored_turned,
    to_lm,
    weight_files,
)
from runners._rounding import PARTS, Note, dequantize, note, quantize, stored_grid
from runners._shapes import Shapes, check_group_size
from runners.base import BaseRunner
from scorecard.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits per weight", "choices": (2, 3, 4, 5, 6, 7, 8)})
    group_size: int = field(
        default=128, metadata={"doc": "input features that share a scale; -1: the whole row"}
    )
    symmetric: bool = field(
        default=True, metadata={"doc": "zero in the middle of the grid; false: a zero point for each group"}
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    embeddings: bool = field(default=False, metadata={"doc": "the input embeddings too"})
    outer_bits: int | None = _outer.option()

    def __post_init__(self) -> None:
        if self.outer_bits is not None and (self.lm_head or self.embeddings):
            raise ValueError("outer_bits: packs lm_head and embeddings; leave those two out")


class Runner(BaseRunner):
    """Round-to-nearest on a uniform grid per group of input features; no calibration.

    The grid is GPTQ's: with ``symmetric`` the scale is ``2 * max|w| / (2**bits - 1)`` and the zero point
    ``2**(bits - 1)``; otherwise it spans the least to the greatest weight of the group, 0 included.

    Files: ``rtn-*.safetensors``. For a packed matrix ``NAME.weight`` of shape [out, in] they hold
    ``NAME.qweight``, ``NAME.scales`` and, if asymmetric, ``NAME.zeros``: see ``runners/_rounding.py``.
    The metadata key ``rtn`` is JSON: the options, and ``packed``: NAME.weight -> [in, dtype].
    All other tensors are the original's. ``load`` turns the codes into plain weights. A weight that the
    original stores as [in, out] (GPT-2's Conv1D) is packed as [out, in] like any other.

    With tied embeddings there is one tensor: ``lm_head`` or ``embeddings`` packs it.
    """

    Options = Options

    def check_shapes(self, shapes: Shapes) -> None:
        # The embeddings are as wide as the head.
        layers = shapes.layers(lm_head=self.options.lm_head or self.options.embeddings)
        check_group_size(self.case, layers, self.options.group_size)

    def compress(self) -> None:
        o, model = self.options, empty_model(self.model_dir, self.case)
        targets, turned = self._targets(model), stored_turned(model)
        tied = is_tied(self.model_dir, self.case)
        said = {key: value for key, value in asdict(o).items() if key != "outer_bits"}
        shards = _Shards(self.output_model, said)
        for name, tensor in _tensors(weight_files(self.model_dir)):
            if tied and name == "lm_head.weight":
                continue  # some folders hold the tied tensor twice
            if name not in targets:
                shards.add({name: tensor})
                continue
            weight = tensor.T if name in turned else tensor
            size = o.group_size if o.group_size > 0 else int(weight.shape[1])
            stem, parts = name.removesuffix("weight"), quantize(weight, o, size)
            shards.add({stem + part: value for part, value in parts.items()}, {name: note(weight)})
        shards.flush()
        _outer.pack(self.case, self.model_dir, self.output_model, o.outer_bits, o.group_size)
        copy_side_files(self.model_dir, self.output_model, self.case)

    def _targets(self, model: PreTrainedModel) -> set[str]:
        """Name of every weight to pack."""
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        tied = is_tied(self.model_dir, self.case)
        with_head = self.options.lm_head and not tied
        with_embeddings = self.options.embeddings or (self.options.lm_head and tied)
        found = set()
        for name, module in model.named_modules():
            body = linear_size(module) is not None and module is not head
            if body or (module is head and with_head) or (module is embeddings and with_embeddings):
                found.add(f"{name}.weight")
        return found

    def load(self) -> LM:
        tokenizer = load_tokenizer(self.output_model, self.case)
        return to_lm(load_model(self), tokenizer, self.case)


def load_model(runner: Runner) -> PreTrainedModel:
    """The model with every packed matrix turned back into plain weights of the model's dtype."""
    files = sorted(_outer.restored(runner.output_model).glob("rtn-*.safetensors"))
    if not files:
        raise ArtifactError(f"{runner.output_model}: no rtn-*.safetensors; compress again")
    turned = stored_turned(empty_model(runner.output_model, runner.case))
    weights = {name: w.T.contiguous() if name in turned else w for name, w in _restored(files)}
    return model_from_state(runner.output_model, runner.case, weights)


class _Shards:
    """Collects tensors and writes them, a file at a time: never the whole model in memory."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options, self.written = folder, options, 0
        self.tensors: dict[str, torch.Tensor] = {}
        self.packed: dict[str, Note] = {}

    def add(self, tensors: dict[str, torch.Tensor], packed: dict[str, Note] | None = None) -> None:
        self.tensors.update({name: tensor.contiguous() for name, tensor in tensors.items()})
        self.packed.update(packed or {})
        if sum(tensor.nbytes for tensor in self.tensors.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        from safetensors.torch import save_file

        if not self.tensors:
            return
        self.written += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        # One metadata key only: safetensors writes several in an order that differs from run to run.
        notes = json.dumps({**self.options, "packed": self.packed}, sort_keys=True)
        save_file(self.tensors, self.folder / f"rtn-{self.written:05d}.safetensors", {"rtn": notes})
        self.tensors, self.packed = {}, {}


def _restored(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for path in files:
        with safe_open(str(path), framework="pt") as file:
            packed = json.loads(file.metadata()["rtn"])["packed"]
            names = set(file.keys())
            for name in sorted(names):
                stem, _, part = name.rpartition(".")
                if part not in PARTS or f"{stem}.qweight" not in names:  # a bias, or a layer left alone
                    yield name, file.get_tensor(name)
                elif part == "qweight":
                    parts = {p: file.get_tensor(f"{stem}.{p}") for p in PARTS if f"{stem}.{p}" in names}
                    noted = packed[f"{stem}.weight"]
                    yield f"{stem}.weight", dequantize(parts, stored_grid(parts, noted[0]), noted)


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
