"""Calibration text, the same token ids for every backend that asks.

Documents are shuffled by the seed and tokenized with the model's own special tokens; chat messages are
written out by its chat template first. Then they are ended with the end-of-text token where there is one, put
one after the other, and cut into sequences of exactly ``max_length`` tokens; the rest is dropped. Without
``concatenate`` each document is a sequence of its own, of at most ``max_length`` tokens.

What is read is a local ``.jsonl`` or ``.txt`` file: ``runners._calibration_source.resolve`` makes one from
anything else that models.yaml may name, before a backend's environment, which may lack the libraries for it,
is entered.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._documents import Row, path_of, rows
from runners._functions import function, function_file
from runners._hf import load_tokenizer
from scorecard.errors import DataUnavailable, SpecError
from scorecard.spec import CalibrationSpec, Case

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fingerprint(data: str) -> str:
    """sha256 of the calibration file, or of the file of a function; without any heavy import.

    Raises DataUnavailable for a data set of the hub, which is a file only once it is resolved.
    """
    path = function_file(data) or path_of(data)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inputs(spec: CalibrationSpec) -> dict[str, Any]:
    """Hashes of the files that the calibration is made from: part of a stage key."""
    return {
        "sha256": fingerprint(spec.data),
        "collator": fingerprint(spec.collator) if spec.collator else None,
    }


def documents(data: str) -> list[str]:
    """The texts of a ``.jsonl`` or ``.txt`` file. Raises SpecError where a row holds none."""
    found = [(row.get("text"), row.get("messages")) for row in rows(path_of(data))]
    return [
        text if text is not None else "\n".join(str(message["content"]) for message in chat or ())
        for text, chat in found
    ]


def token_lists(
    spec: CalibrationSpec | None, tokenizer: PreTrainedTokenizerBase, samples: int | None = None
) -> list[list[int]]:
    """``samples`` (else ``spec.samples``) sequences of ``spec.max_length`` token ids.

    Raises SpecError when there is no calibration or too little text, saying how much there is.
    """
    if spec is None:
        raise SpecError("calibration: this runner needs calibration text; write 'calibration: {data: …}'")
    wanted = samples or spec.samples
    if spec.collator:
        return _collated(spec, tokenizer, wanted)
    found = _packed(spec, tokenizer, wanted) if spec.concatenate else _separate(spec, tokenizer, wanted)
    if (have := len(found)) < wanted:
        instead = f"write samples: {have} or give more text" if have else "give more text"
        length = f"{'' if spec.concatenate else 'at most '}{spec.max_length}"
        raise SpecError(
            f"calibration.samples: {spec.data} holds {have} sequences of {length} tokens, "
            f"not {wanted}; {instead}"
        )
    return found


def _packed(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, wanted: int) -> list[list[int]]:
    stream, end = array("L"), tokenizer.eos_token_id
    for ids in _tokenized(spec, tokenizer):
        stream.extend(ids if end is None or ids[-1:] == [end] else [*ids, end])
        if len(stream) >= wanted * spec.max_length:
            break
    have = min(wanted, len(stream) // spec.max_length)
    return [list(stream[i * spec.max_length : (i + 1) * spec.max_length]) for i in range(have)]


def _separate(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, wanted: int) -> list[list[int]]:
    found: list[list[int]] = []
    for ids in _tokenized(spec, tokenizer):
        if ids and len(found) < wanted:
            found.append(ids[: spec.max_length])
    return found


def _collated(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, wanted: int) -> list[list[int]]:
    """What ``collate(documents, samples, max_length)`` makes of the tokenized documents."""
    collate = function(str(spec.collator), "calibration.collator")
    found = [
        list(map(int, ids)) for ids in collate(list(_tokenized(spec, tokenizer)), wanted, spec.max_length)
    ]
    if len(found) != wanted or not all(0 < len(ids) <= spec.max_length for ids in found):
        raise SpecError(
            f"calibration.collator: {spec.collator} gave {len(found)} sequences; "
            f"return {wanted} lists of 1 to {spec.max_length} token ids"
        )
    return found


def _tokenized(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    found = [row for row in rows(path_of(spec.data)) if not row.get("images")]
    if spec.shuffle:
        random.Random(spec.seed).shuffle(found)
    for start in range(0, len(found), 64):
        yield from _tokens(found[start : start + 64], tokenizer)


def _tokens(batch: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    texts = [row["text"] for row in batch if "text" in row]
    from_texts = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else ())
    for row in batch:
        if "text" in row:
            yield next(from_texts)
        elif "messages" in row:
            # The template writes the special tokens itself.
            text = chat_text(row["messages"], tokenizer)
            yield tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            yield [int(i) for i in row["input_ids"]]


def chat_text(messages: Sequence[Any], tokenizer: Any) -> str:
    """Chat messages as one text. Raises SpecError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise SpecError(
            "calibration.data: these are chat messages, but the model has no chat template; "
            "write data with a text column"
        )
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False))


def vision_rows(spec: CalibrationSpec) -> list[dict[str, Any]]:
    """``spec.vision_samples`` rows with pictures: ``images`` holds absolute paths.

    Raises DataUnavailable where the data has fewer.
    """
    path = path_of(spec.data)
    found = [row for row in rows(path) if row.get("images")]
    if spec.shuffle:
        random.Random(spec.seed).shuffle(found)
    if len(found) < spec.vision_samples:
        raise DataUnavailable(
            f"calibration.vision_samples: {spec.data} holds {len(found)} documents with pictures, not "
            f"{spec.vision_samples}; write vision_samples: {len(found)} or name an images_column"
        )
    chosen = found[: spec.vision_samples]
    return [{**row, "images": [str((path.parent / i).resolve()) for i in row["images"]]} for row in chosen]


def token_sha256(sequences: Sequence[Sequence[int]]) -> str:
    """sha256 over the token ids as little-endian 32-bit words, each sequence after its length."""
    digest = hashlib.sha256()
    for ids in sequences:
        words = array("I", [len(ids), *ids])
        if sys.byteorder == "big":
            words.byteswap()
        digest.update(words.tobytes())
    return digest.hexdigest()


def describe(case: Case, model_dir: Path) -> dict[str, Any] | None:
    """What the record says of the calibration: ``{"data", "sha256", "samples", "tokens"}``.

    ``data`` is what models.yaml names, with the commit of a data set of the hub after an ``@``.

    A runner that uses fewer sequences than ``calibration.samples`` says so in an option named ``samples``.
    """
    if case.calibration is None:
        return None
    tokenizer = load_tokenizer(model_dir, case)
    sequences = token_lists(case.calibration, tokenizer, case.config.options.get("samples"))
    return {
        "data": _origin(case.calibration.data),
        "sha256": token_sha256(sequences),
        "samples": len(sequences),
        "tokens": sum(map(len, sequences)),
    }


def _origin(data: str) -> str:
    """What a file that ``resolve`` wrote was made from; any other is its own origin."""
    about = Path(data).with_suffix(".origin.json")
    if data.startswith("embedded:") or not about.is_file():
        return data
    origin = json.loads(about.read_text(encoding="utf-8"))
    return f"{origin['data']}@{origin['revision']}" if origin["revision"] else str(origin["data"])
