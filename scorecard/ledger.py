"""The byte ledger: what every byte of an artifact is for, and which rules its files must keep.

Sizes are apparent sizes (``st_size``), never disk blocks. Each file is read once, in pieces of a few
megabytes, for its sha256, the sha256 of each tensor, and its size under zstd.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from scorecard.artifact import regular_files
from scorecard.checkpoint import Checkpoint, head_or_embedding, is_side_data, read_checkpoint
from scorecard.errors import ArtifactError
from scorecard.machine import cores
from scorecard.safetensors_header import CHUNK_BYTES, read_header

Category = Literal["weights", "scales", "embeddings", "tokenizer", "config", "code", "other"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

ZSTD_LEVEL = 3
DUPLICATE_TENSOR_BYTES = 4096  # smaller equal tensors (all-ones norms, lookup tables) are not worth a line
_MOST_THREADS = 8  # each holds some 10 MB

_TOKENIZER = re.compile(
    r"(tokenizer.*|vocab.*|merges|special_tokens_map|added_tokens|chat_template|spiece|sentencepiece.*)"
    r"\.(json|txt|model|jinja|bpe)|.*\.(tiktoken|jinja|spm)"
)
_BY_SUFFIX: dict[str, Category] = {
    **dict.fromkeys((".json", ".yaml", ".yml", ".toml", ".ini", ".cfg"), "config"),
    **dict.fromkeys((".py", ".sh", ".so", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".js"), "code"),
    **dict.fromkeys((".md", ".txt", ".rst", ".csv", ".log", ".html", ".pdf", ".png", ".jpg"), "other"),
}
_OTHER = ("LICENSE", "NOTICE", "README", "USE_POLICY", ".gitattributes", ".gitignore")


@dataclass(frozen=True)
class Piece:
    """A run of bytes of one file with one purpose: a tensor, a header, or a whole file."""

    size_bytes: int
    category: Category
    tensor: str | None = None


@dataclass(frozen=True)
class WeighedFile:
    path: str
    size_bytes: int
    sha256: str
    category: Category
    pieces: tuple[Piece, ...] = field(repr=False)
    digests: tuple[str, ...] = field(repr=False)
    zstd_bytes: int | None


def weigh(artifact: Path, original: Path | None = None) -> dict[str, Any]:
    """The ledger of ``artifact``; ``original`` gives the number of weights for bits per weight.

    Returns ``size_bytes``, ``size_gib``, ``files``, ``by_category`` (bytes, adding up to ``size_bytes``),
    ``parameters``, ``bits_per_weight``, ``bits_per_weight_body``, ``duplicates``, ``zstd_bytes`` and
    ``could_shrink_by_bytes``; see docs/measuring.md. Raises ArtifactError for a link, a sparse or special
    file, user attributes, another file system, a broken safetensors file, or no file at all.
    """
    root = artifact.resolve()
    files = [_weigh_file(root, path) for path in regular_files(root)]
    if not files:
        raise ArtifactError(f"{artifact}: holds no file; compress() must write the model into $OUTPUT_MODEL")
    by_category = dict.fromkeys(CATEGORIES, 0)
    for piece in (piece for file in files for piece in file.pieces):
        by_category[piece.category] += piece.size_bytes
    size = sum(file.size_bytes for file in files)
    weight_bytes = sum(file.size_bytes for file in files if file.category == "weights")
    zstd = sum(file.zstd_bytes or 0 for file in files)
    return {
        "size_bytes": size,
        "size_gib": size / 2**30,
        "files": [_row(file) for file in files],
        "by_category": by_category,
        **_bits_per_weight(root, original, weight_bytes),
        "duplicates": duplicates(files),
        "zstd_bytes": zstd,
        "could_shrink_by_bytes": max(0, weight_bytes - zstd),
    }


def category(path: Path) -> Category:
    """What a whole file is for, by its name; a file of unknown kind counts as weights."""
    name = path.name
    if _TOKENIZER.fullmatch(name):
        return "tokenizer"
    if name.startswith(_OTHER):
        return "other"
    return _BY_SUFFIX.get(path.suffix.lower(), "weights")


def pieces(path: Path, size: int) -> tuple[Piece, ...]:
    """The purpose of each byte of a file, in order, adding up to ``size``; only safetensors are split."""
    if path.suffix != ".safetensors":
        return (Piece(size, category(path)),)
    header = read_header(path)
    tensors = (Piece(t.size_bytes, _tensor_category(t.name), t.name) for t in header.tensors)
    return (Piece(header.size_bytes, "config"), *tensors)


def _tensor_category(name: str) -> Category:
    if head_or_embedding(name):
        return "embeddings"
    return "scales" if is_side_data(name) else "weights"


def _weigh_file(root: Path, path: Path) -> WeighedFile:
    size, where = path.stat().st_size, str(path.relative_to(root))
    kind = category(path)
    parts = pieces(path, size)
    sha256, digests, zstd = _read(path, parts, compress=kind == "weights")
    if path.stat().st_size != size:
        raise ArtifactError(f"{where}: changed while it was weighed; leave no writer behind")
    return WeighedFile(where, size, sha256, kind, parts, digests, zstd)


def _read(path: Path, parts: Sequence[Piece], *, compress: bool) -> tuple[str, tuple[str, ...], int | None]:
    """The file's sha256, each piece's sha256, and its bytes under zstd if asked for; one pass."""
    import zstandard

    # With at least one worker the output does not depend on how many there are.
    threads = min(_MOST_THREADS, cores())
    packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=threads).compressobj() if compress else None
    whole, digests, packed = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        for part in parts:
            digest, left = hashlib.sha256(), part.size_bytes
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise ArtifactError(f"{path.name}: shrank while it was weighed; leave no writer behind")
                left -= len(chunk)
                whole.update(chunk)
                digest.update(chunk)
                packed += len(packer.compress(chunk)) if packer else 0
            digests.append(digest.hexdigest())
    packed += len(packer.flush()) if packer else 0
    return whole.hexdigest(), tuple(digests), packed if packer else None


def _row(file: WeighedFile) -> dict[str, Any]:
    return {name: getattr(file, name) for name in ("path", "size_bytes", "sha256", "category")}


def _bits_per_weight(root: Path, original: Path | None, weight_bytes: int) -> dict[str, Any]:
    source = read_checkpoint(original) if original else None
    count = source.parameters if source else None
    return {
        "parameters": count,
        "bits_per_weight": 8 * weight_bytes / count if count else None,
        "bits_per_weight_body": _body_bits(source, read_checkpoint(root)) if source and count else None,
    }


def _body_bits(source: Checkpoint, here: Checkpoint | None) -> float | None:
    """Bits per weight over the Linear layers; ``None`` unless the artifact shows every one of them."""
    body = [module for module in source.modules.values() if module.kind == "linear"]
    owned = source.owners(here)[0] if here else {}
    if not body or not all(owned.get(module.name) for module in body):
        return None
    stored = sum(tensor.size_bytes for module in body for tensor in owned[module.name])
    return 8 * stored / sum(module.parameters for module in body)


def duplicates(files: Sequence[WeighedFile]) -> list[dict[str, Any]]:
    """What is stored more than once: ``what``, ``paths``, and the ``size_bytes`` that one copy would save."""
    found = [*_equal_files(files), *_equal_tensors(files)]
    formats = {".safetensors": 0, ".bin": 0}
    for file in files:
        if Path(file.path).suffix in formats and file.category == "weights":
            formats[Path(file.path).suffix] += file.size_bytes
    if all(formats.values()):
        paths = [file.path for file in files if Path(file.path).suffix in formats]
        found.append({"what": ".bin beside .safetensors", "paths": paths, "size_bytes": formats[".bin"]})
    return found


def _equal_files(files: Sequence[WeighedFile]) -> Iterator[dict[str, Any]]:
    groups: dict[str, list[WeighedFile]] = {}
    for file in files:
        groups.setdefault(file.sha256, []).append(file)
    for group in groups.values():
        if len(group) > 1 and group[0].size_bytes:
            saved = group[0].size_bytes * (len(group) - 1)
            yield {"what": "identical files", "paths": [file.path for file in group], "size_bytes": saved}


def _equal_tensors(files: Sequence[WeighedFile]) -> Iterator[dict[str, Any]]:
    """Equal tensors, but not those of two identical files, which are reported as such."""
    groups: dict[str, list[tuple[str, Piece]]] = {}
    for file in {file.sha256: file for file in files}.values():
        for piece, digest in zip(file.pieces, file.digests, strict=True):
            if piece.tensor and piece.size_bytes >= DUPLICATE_TENSOR_BYTES:
                groups.setdefault(digest, []).append((f"{file.path}:{piece.tensor}", piece))
    for group in groups.values():
        if len(group) > 1:
            outer = all(piece.category == "embeddings" for _, piece in group)
            yield {
                "what": "tied embeddings stored twice" if outer else "equal tensors",
                "paths": [path for path, _ in group],
                "size_bytes": group[0][1].size_bytes * (len(group) - 1),
            }
