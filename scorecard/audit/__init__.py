"""Did the compression really happen: what the artifact stores for each layer of the original.

Only files are read, with numpy alone: headers, some rows of every weight, and all values once, a few
megabytes at a time, for those that are not finite or all zero. Memory is bounded for a model of any size;
entropy-coded matrices, which only ``rdq`` reads, are decoded whole, one at a time.

``numbers`` and ``grid`` decode; ``layouts*`` know the formats; ``layer`` and ``look`` say what is there;
``asked`` says what should be; ``compressed``, ``compared``, ``copies`` and ``values`` find where they differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scorecard.audit import asked, compared, compressed, copies, values
from scorecard.audit.finding import Finding, Findings, some
from scorecard.audit.layer import Layer, read_layer, rescaled
from scorecard.checkpoint import Checkpoint, head_or_embedding, read_checkpoint
from scorecard.safetensors_header import Tensor

__all__ = ["audit"]


def audit(artifact: Path, original: Path, claims: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``layers`` (one for each module of the original, then what only the artifact has) and ``findings``.

    ``claims`` is ``None`` for a case that does not compress; otherwise the runner's name as ``runner`` with
    its options, of which ``bits``, ``format``, ``scheme``, ``group_size``, ``symmetric``, ``lm_head``,
    ``embeddings`` and the recipe are compared with what is stored. Raises ArtifactError for a broken
    safetensors file.
    """
    source, here = read_checkpoint(original), read_checkpoint(artifact)
    if claims is not None and claims.get("runner") == "baseline":
        claims = None
    owned, unknown = source.owners(here) if source and here else ({}, [])
    if not source or not here or not any(owned.values()):
        what = "cannot see inside: it holds no tensors of the original's layers in safetensors files"
        return {"layers": [], "findings": [vars(Finding("warning", f"artifact: {what}"))]}
    methods = asked.methods(claims or {}, asked.applied_recipe(artifact))
    moved = methods.beyond_rounding == "AWQ" or rescaled(source, here)
    layers = _layers(source, here, owned, moved=moved)
    findings = [*_missing(source, layers, unknown), *values.check(source, layers)]
    tied = source.tied_head is not None or _says_tied(original)
    findings += copies.check(source, here, claims or {}, tied=tied)
    if claims is not None:
        findings += compressed.check(layers, claims, asked.quantization_config(artifact), methods)
        findings += compared.check(layers, methods)
    rows = [*(layer.row() for layer in layers if layer.stored), *_unknown_rows(unknown)]
    return {"layers": rows, "findings": [vars(finding) for finding in findings]}


def _layers(
    source: Checkpoint, here: Checkpoint, owned: Mapping[str, list[Tensor]], *, moved: bool
) -> list[Layer]:
    config = asked.quantization_config(here.folder)
    model_type = str(asked.model_config(source.folder).get("model_type"))
    return [
        read_layer(source.modules[name], stored, config, model_type=model_type, rescaled=moved)
        for name, stored in owned.items()
    ]


def _missing(source: Checkpoint, layers: Sequence[Layer], unknown: Sequence[Tensor]) -> Findings:
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
        what = f"not stored under this name; {len(others)} other layers are"
        yield Finding("warning", f"{some(missing)}: {what}")
    else:
        yield Finding("error", f"{some(missing)}: missing; write every layer into $OUTPUT_MODEL")


def _says_tied(folder: Path) -> bool:
    return asked.model_config(folder).get("tie_word_embeddings") is True


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
            **dict.fromkeys(
                (
                    "format",
                    "bits",
                    "group_size",
                    "symmetric",
                    "relative_error",
                    "rounding_difference",
                    "zeros",
                )
            ),
        }
