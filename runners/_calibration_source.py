"""Calibration data of any kind as one local file, which every backend's environment can read.

Runs where ``datasets`` and ``pyarrow`` are: in the scorecard's own environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runners._documents import CONTENT, Row, messages, path_of, table
from runners._functions import call, function_file
from runners._hub_data import fetch, in_order
from scorecard.calibration_sets import KNOWN, HubSet
from scorecard.errors import SpecError
from scorecard.spec import CalibrationSpec
from scorecard.store import write_atomic

TOKEN_BYTES = 16  # far more than a token takes, so that enough text is kept for any tokenizer
_PICTURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


def resolve(spec: CalibrationSpec, folder: Path, *, offline: bool = False) -> Path:
    """A ``.jsonl`` or ``.txt`` file with the documents of ``spec``, to be put in its place as ``data``.

    A plain text file is its own. Everything else is written to ``folder`` under its sha256, pictures beside
    it; ``<name>.origin.json`` says where it is from: ``{"data", "revision", "documents"}``. No more documents
    are kept than the samples can need, in the order that the seed gives. Raises DataUnavailable for data
    that cannot be had, and SpecError for data that is not what it should be.
    """
    if spec.text_column and spec.messages_column:
        raise SpecError("calibration.text_column: messages_column is set too; keep one of them")
    columns = (spec.text_column, spec.messages_column, spec.images_column)
    plain = spec.data.endswith((".jsonl", ".txt")) and not any(columns) and not spec.vision_samples
    if plain or spec.data.startswith("embedded:"):
        return path_of(spec.data)
    found, revision = _rows(spec, folder, offline)
    chosen = _enough(found, spec)
    if not chosen:
        raise SpecError(f"calibration.data: {spec.data} holds no text; name another text_column or split")
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in chosen)
    content = lines.encode("utf-8", "surrogatepass")
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.jsonl"
    _write(path, content)
    origin = {"data": spec.data, "revision": revision, "documents": len(chosen)}
    write_atomic(path.with_suffix(".origin.json"), origin)
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _enough(found: Iterable[Row], spec: CalibrationSpec) -> list[Row]:
    """The first rows that hold enough text and pictures."""
    texts: list[Row] = []
    pictures: list[Row] = []
    size, wanted = 0, spec.samples * spec.max_length * TOKEN_BYTES
    for row in found:
        enough_text = size >= wanted and len(texts) >= 2 * spec.samples
        if enough_text and len(pictures) >= spec.vision_samples:
            break
        if row.get("images"):
            pictures.append(row)
        elif not enough_text and any(row.get(kind) for kind in CONTENT):
            texts.append(row)
            size += len(json.dumps(row, ensure_ascii=False))
    return [*texts, *pictures[: spec.vision_samples]]


def _rows(spec: CalibrationSpec, folder: Path, offline: bool) -> tuple[Iterator[Row], str | None]:
    """Rows and, for a data set of the hub, its commit."""
    if function_file(spec.data):
        given = {"samples": spec.samples, "max_length": spec.max_length, "seed": spec.seed}
        items = call(spec.data, "calibration.data", **given, vision_samples=spec.vision_samples)
        return (_from_loader(item, spec, folder) for item in in_order(list(items), spec)), None
    if spec.data in KNOWN or spec.data.startswith("hf:"):
        chosen = _asked(KNOWN.get(spec.data) or HubSet(spec.data.removeprefix("hf:"), "train"), spec)
        records, revision = fetch(chosen, spec, offline=offline)
    else:
        chosen, revision = _asked(HubSet("", ""), spec), None
        path = path_of(spec.data)
        records = in_order([_placed(record, chosen, path.parent) for record in table(path)], spec)
    return (_row(record, chosen, spec.data, folder) for record in records), revision


def _placed(record: Row, chosen: HubSet, folder: Path) -> Row:
    """The record with the paths of its pictures seen from the file that it is in."""
    column = chosen.images or "images"
    if column not in record:
        return record
    every = record[column] if isinstance(record[column], list) else [record[column]]
    return {**record, column: [str(folder / one) if isinstance(one, str) else one for one in every]}


def _asked(known: HubSet, spec: CalibrationSpec) -> HubSet:
    """What the table says, and what models.yaml says instead."""
    text, chat = spec.text_column or known.text, spec.messages_column or known.messages
    return dataclasses.replace(
        known,
        split=spec.split or known.split,
        config=spec.config or known.config,
        text=None if spec.messages_column else text,
        messages=None if spec.text_column else chat,
        images=spec.images_column or known.images,
        file=spec.file or (None if spec.split or spec.config else known.file),
    )


def _from_loader(item: Any, spec: CalibrationSpec, folder: Path) -> Row:
    """A row from what a loader may yield: a text, messages, token ids, or a mapping of them."""
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Mapping) and any(kind in item for kind in CONTENT):
        return _row(item, _asked(HubSet("", ""), spec), spec.data, folder)
    if isinstance(item, Iterable) and (parts := list(item)):
        if all(isinstance(part, Mapping) for part in parts):
            return {"messages": messages(parts, "calibration.data")}
        if all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
            return {"input_ids": parts}
    raise SpecError(
        f"calibration.data: {spec.data} gave a {type(item).__name__}; "
        "give texts, lists of messages or lists of token ids"
    )


def _row(record: Row, chosen: HubSet, data: str, folder: Path) -> Row:
    where = f"calibration.data: {data}"
    row = _content(record, chosen, where)
    if chosen.images or "images" in record:
        pictures = _column(record, chosen.images or "images", where)
        every = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        row["images"] = [_picture(picture, folder, where) for picture in every if picture is not None]
    return row


def _content(record: Row, chosen: HubSet, where: str) -> dict[str, Any]:
    if chosen.messages:
        return {"messages": messages(_column(record, chosen.messages, where), where)}
    if chosen.text and "{" in chosen.text:
        names = [name for _, name, _, _ in string.Formatter().parse(chosen.text) if name]
        values = {name: _column(record, name, where) or "" for name in names}
        return {"text": re.sub(r"\n{3,}", "\n\n", chosen.text.format_map(values)).strip()}
    if chosen.text and (chosen.text in record or not chosen.images):
        return {"text": str(_column(record, chosen.text, where) or "")}
    if chosen.text:  # said of every picture
        return {"text": chosen.text}
    for kind in CONTENT:
        if record.get(kind) is not None:
            value = record[kind]
            return {kind: messages(value, where) if kind == "messages" else value}
    raise SpecError(f"{where} has the columns {', '.join(record)}; write text_column: one of them")


def _column(record: Row, name: str, where: str) -> Any:
    if name not in record:
        raise SpecError(f"{where} has no column '{name}'; write one of {', '.join(record)}")
    return record[name]


def _picture(picture: Any, folder: Path, where: str) -> str:
    """Copy a picture to ``folder/images`` under its sha256; its path relative to ``folder``."""
    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, (str, Path)) and Path(picture).is_file():
        picture = Path(picture).read_bytes()
    if not isinstance(picture, bytes):
        raise SpecError(f"{where}: no picture; write an images_column of pictures, bytes or paths")
    kind = next((end for magic, end in _PICTURES.items() if picture.startswith(magic)), ".img")
    path = folder / "images" / f"{hashlib.sha256(picture).hexdigest()[:32]}{kind}"
    if not path.is_file():
        _write(path, picture)
    return str(path.relative_to(folder))
