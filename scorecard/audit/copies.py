"""The same bytes more than once: tensors, tied embeddings, weights beside weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scorecard.audit.finding import Finding, Findings, some
from scorecard.checkpoint import Checkpoint, head_or_embedding, is_side_data, weight_files
from scorecard.safetensors_header import Tensor, read_header

SMALLEST_BYTES = 4096  # smaller equal tensors (norms of ones, lookup tables) are not worth a line


def check(source: Checkpoint, here: Checkpoint, claims: Mapping[str, Any], *, tied: bool) -> Findings:
    yield from _equal(source, here, tied=tied)
    if tied:
        yield from _tie(source, here, claims)
    yield from _files(here.folder)


def _equal(source: Checkpoint, here: Checkpoint, *, tied: bool) -> Findings:
    groups: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    for tensor in here.tensors.values():
        if tensor.size_bytes >= SMALLEST_BYTES and not is_side_data(tensor.name):
            groups.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
    for group in groups.values():
        for first, second in _pairs(group):
            if tied and head_or_embedding(first.name) and head_or_embedding(second.name):
                continue
            twins = [source.tensors.get(tensor.name) for tensor in (first, second)]
            if twins[0] and twins[1] and same_bytes(twins[0], twins[1]):
                continue
            what = f"the same {first.size_bytes} bytes are stored as {second.name} too"
            yield Finding("error", f"{first.name}: {what}; store each weight once, in its own place")


def _pairs(group: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal tensors, each with the first of its kind; compared in full only where the beginnings agree."""
    kinds: dict[bytes, list[Tensor]] = {}
    for tensor in group if len(group) > 1 else ():
        alike = kinds.setdefault(next(tensor.chunks(SMALLEST_BYTES)), [])
        first = next((other for other in alike if same_bytes(other, tensor)), None)
        if first is None:
            alike.append(tensor)
        elif not _constant(tensor):
            yield first, tensor


def same_bytes(first: Tensor, second: Tensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(a == b for a, b in zip(first.chunks(), second.chunks(), strict=True))


def _constant(tensor: Tensor) -> bool:
    """One value throughout: an initial value, or what another finding is about."""
    chunk = next(tensor.chunks(SMALLEST_BYTES))
    return len({chunk[i : i + 4] for i in range(0, len(chunk), 4)}) == 1


def _tie(source: Checkpoint, here: Checkpoint, claims: Mapping[str, Any]) -> Findings:
    """Embeddings and lm_head, one tensor in the original, are one here too, unless asked to be parted."""
    heads = [t for t in here.tensors.values() if head_or_embedding(t.name) == "lm_head" and _matrix(t)]
    tables = [t for t in here.tensors.values() if head_or_embedding(t.name) == "embedding" and _matrix(t)]
    if not heads or not tables:
        return
    if any(same_bytes(head, table) for head in heads for table in tables):
        if source.tied_head is None:  # an original that holds both may be copied as it is
            what = f"tied to {tables[0].name} in the original, here stored twice"
            yield Finding("error", f"{heads[0].name}: {what}; store it once")
        return
    asked = claims.get("lm_head") is True or any(value and "untie" in key for key, value in claims.items())
    what = f"tied to {tables[0].name} in the original, here it is a tensor of its own: the tie is broken"
    yield Finding("warning" if asked else "error", f"{heads[0].name}: {what}; store one of them")


def _matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and not is_side_data(tensor.name)


def _files(folder: Path) -> Findings:
    """A tensor in two files, and safetensors files beside those that a loader takes."""
    owner: dict[str, Path] = {}
    twice: list[str] = []
    paths = sorted(folder.rglob("*.safetensors"))
    for path in paths:
        for tensor in read_header(path).tensors:
            if owner.setdefault(tensor.name, path) != path:
                twice.append(tensor.name)
    if twice:
        files = sorted({str(path.relative_to(folder)) for path in paths})
        what = f"in more than one file of {', '.join(files[:3])}"
        yield Finding("error", f"{some(twice)}: {what}; leave only the files that are loaded")
        return
    loaded = {path.resolve() for path in weight_files(folder)}
    extra = [str(path.relative_to(folder)) for path in paths if path.resolve() not in loaded]
    if extra:
        yield Finding("warning", f"{some(extra)}: no loader takes it, but its bytes count; leave it out")
