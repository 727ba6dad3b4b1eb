"""Reads a task's documents from the files beside it, whatever the current folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def load(files: dict[str, str], **_metadata: Any) -> dict[str, Dataset]:
    """{split: file name} to {split: data set}; lm-eval passes the task's metadata along."""
    from datasets import Dataset

    return {split: Dataset.from_list(_rows(Path(__file__).with_name(name))) for split, name in files.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
