"""Calibration documents in files: one row for each, before a tokenizer has seen them.

A row is a JSON object with one of ``text``, ``messages`` (``[{"role", "content"}, …]``) and ``input_ids``;
``images`` lists files relative to the row's own. A ``.txt`` file holds a document in each paragraph.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scorecard.errors import DataUnavailable, SpecError

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
CONTENT = ("text", "messages", "input_ids")
ROLES = {"human": "user", "gpt": "assistant"}  # of conversations in the layout of ShareGPT
Row = Mapping[str, Any]


def path_of(data: str) -> Path:
    """The file behind ``embedded:NAME`` or a path. Raises DataUnavailable where there is none."""
    scheme, _, name = data.partition(":")
    path = EMBEDDED / f"{name}.jsonl" if scheme == "embedded" else Path(data)
    if not path.is_file():
        raise DataUnavailable(
            f"calibration.data: no file {path}; "
            "write embedded:calibration or the path of a .jsonl or .txt file"
        )
    return path


def rows(path: Path) -> list[Row]:
    """The rows of a ``.jsonl`` or ``.txt`` file. Raises SpecError naming the line that is no row."""
    if path.suffix == ".txt":
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        return [{"text": text} for paragraph in paragraphs if (text := paragraph.strip())]
    if path.suffix != ".jsonl":
        raise SpecError(f"calibration.data: {path.name} is of an unknown kind; write a .jsonl or .txt file")
    return [_checked(row, where) for row, where in _lines(path)]


def _checked(row: Any, where: str) -> Row:
    kinds = [kind for kind in CONTENT if isinstance(row, dict) and row.get(kind) is not None]
    if len(kinds) != 1 or not isinstance(row[kinds[0]], str if kinds[0] == "text" else list):
        problem = f"calibration.data: {where} is no JSON object with a text"
        raise SpecError(problem + '; write {"text": "…"}, {"messages": […]} or {"input_ids": […]}')
    return dict(row)


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Each line of JSON and where it is."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    yield json.loads(line), where
                except ValueError:
                    problem = f"calibration.data: {where} is no JSON object with a text"
                    raise SpecError(problem + '; write {"text": "…"}') from None


def table(path: Path) -> Iterator[Row]:
    """The raw records of a ``.jsonl``, ``.json`` (a list, or lines), ``.parquet`` or ``.txt`` file."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif name.endswith(".txt"):
        yield from rows(path)
    elif name.endswith(".json") and not path.name.endswith(".gz") and _begins_with_list(path):
        yield from json.loads(path.read_text(encoding="utf-8"))
    else:
        yield from (record for record, _ in _lines(path))


def _begins_with_list(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.read(4096).lstrip().startswith("[")


def messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Chat messages as ``role`` and ``content``, also from ShareGPT's ``from`` and ``value``."""
    found = []
    for message in value:
        if isinstance(message, Mapping) and {"from", "value"} <= set(message):
            message = {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise SpecError(f"{where}: no chat messages; write a column of lists with 'role' and 'content'")
        found.append({"role": message["role"], "content": message["content"]})
    return found
