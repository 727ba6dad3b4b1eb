"""Embeddings and output layer in few bits, for backends that can compress the Linear layers of the body only.

In a checkpoint of few bits the embeddings, left at 16, weigh as much as all the rest. ``pack`` rounds them to
nearest in the artifact that a backend has written, and ``restored`` gives the backend's own loader a folder
in which they are plain again: the bytes on disk are those of the codes, the weights that run are the rounded
ones.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._hf import empty_model, is_tied, metadata_of, read_tensors, weight_files, write_tensors
from runners._rounding import PARTS, Uniform, dequantize, note, quantize, stored_grid
from scorecard.errors import ArtifactError
from scorecard.spec import Case

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "outer"  # of a file's metadata: JSON of what `pack` did there
INDEX = "model.safetensors.index.json"
BITS = (None, 2, 3, 4, 5, 6, 7, 8)
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def option() -> Any:
    """The field ``outer_bits`` of a runner's options."""
    doc = (
        "bits of the embeddings and of an output layer that the method leaves alone, rounded to nearest in "
        "groups of the body's size; null: left as they are"
    )
    return field(default=None, metadata={"doc": doc, "choices": BITS})


def names(model: PreTrainedModel, *, tied: bool) -> set[str]:
    """Names of the weights of the embeddings and of the output layer (one tensor if ``tied``)."""
    found = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    return {f"{name}.weight" for name, module in model.named_modules() if any(module is f for f in found)}


def pack(case: Case, model_dir: Path, output_model: Path, bits: int | None, group_size: int) -> None:
    """Round the outer weights in the safetensors of ``output_model`` to ``bits``; ``None``: do nothing.

    ``NAME.weight`` becomes ``NAME.qweight`` and ``NAME.scales`` of ``runners/_rounding.py``, symmetric, in
    groups of ``group_size`` input features, or of the whole row where that does not divide it. A weight that
    is packed already stays. Each file is held in memory by itself. Raises ArtifactError where there is
    nothing to round.
    """
    if bits is None:
        return
    targets = names(empty_model(model_dir, case), tied=is_tied(model_dir, case))
    renamed: dict[str, tuple[str, ...]] = {}
    for path in weight_files(output_model):
        tensors, metadata = read_tensors(path)
        packed = {}
        for name in sorted(targets & tensors.keys()):
            weight, stem = tensors.pop(name), name.removesuffix("weight")
            size = group_size if group_size > 0 and weight.shape[1] % group_size == 0 else weight.shape[1]
            parts = quantize(weight, Uniform(bits), size)
            tensors |= {stem + part: tensor.contiguous() for part, tensor in parts.items()}
            packed[name] = note(weight)
            renamed[name] = tuple(stem + part for part in parts)
        if packed:
            # One metadata key only: safetensors writes several in an order that differs from run to run.
            said = json.dumps({"metadata": metadata, "packed": packed}, sort_keys=True)
            write_tensors(tensors, path, {KEY: said})
    if not renamed:
        what = " and ".join(sorted(targets))
        raise ArtifactError(f"{output_model}: holds no plain {what}; write outer_bits: null")
    _rename_in_index(output_model / INDEX, renamed)


@functools.cache
def restored(folder: Path) -> Path:
    """``folder`` as its backend wrote it: itself, or links to it beside files with plain outer weights."""
    packed = {path: metadata for path in weight_files(folder) if KEY in (metadata := metadata_of(path))}
    if not packed:
        return folder
    _folders.append(tempfile.TemporaryDirectory(prefix="scorecard-", ignore_cleanup_errors=True))
    view = Path(_folders[-1].name)
    renamed: dict[str, tuple[str, ...]] = {}
    for path in folder.iterdir():
        if path not in packed:
            (view / path.name).symlink_to(path.resolve())
    for path, metadata in packed.items():
        tensors, said = read_tensors(path)[0], json.loads(metadata[KEY])
        for name, noted in said["packed"].items():
            stem = name.removesuffix("weight")
            parts = {part: tensors.pop(stem + part) for part in PARTS if stem + part in tensors}
            tensors[name] = dequantize(parts, stored_grid(parts, noted[0]), tuple(noted))
            renamed |= {stem + part: (name,) for part in parts}
        write_tensors(tensors, view / path.name, said["metadata"])
    _rename_in_index(view / INDEX, renamed)
    return view


def _rename_in_index(path: Path, renamed: Mapping[str, tuple[str, ...]]) -> None:
    """Write other names for tensors into the index of a checkpoint in many files, where there is one."""
    if not path.is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    files = index["weight_map"].items()
    index["weight_map"] = {new: file for name, file in files for new in renamed.get(name, (name,))}
    path.unlink()  # a link is replaced, not what it leads to
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
