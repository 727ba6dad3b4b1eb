"""What is said of a compressed folder, and the files in it that are no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One tensor of the result. ``predicted_bytes``: what the quantizer counted on."""

    name: str
    kind: str
    weights: int
    predicted_bytes: float
    stored_bytes: int


@dataclass(frozen=True)
class Report:
    """One compressed folder. ``bits`` per weight and ``weight_bytes`` count all files but the tokenizer's."""

    c: float
    bits: float
    weight_bytes: int
    folder_bytes: int
    kl: float | None
    mode: str
    tensors: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """The tokenizer's files, byte for byte, and the generation config."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def config(folder: Path) -> dict[str, Any]:
    """What config.json of the original says, without where it came from."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)  # the result must not lead back to the original
    return content


def report(c: float, out: Path, parameters: int, kl: float | None, mode: str, rows: Sequence[Row]) -> Report:
    sizes = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    weight_bytes = sum(size for name, size in sizes.items() if name not in TOKENIZER_FILES)
    bits = 8 * weight_bytes / parameters
    return Report(c, bits, weight_bytes, sum(sizes.values()), kl, mode, tuple(rows))
