"""Calibration text, the same token ids for every backend that asks.

Documents are shuffled by the seed, tokenized with the model's own special tokens, ended with the
end-of-text token where there is one, put one after the other, and cut into sequences of exactly
``max_length`` tokens; the rest is dropped.
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

from runners._hf import load_tokenizer
from scorecard.errors import DataUnavailable, SpecError
from scorecard.spec import CalibrationSpec, Case

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"


def path_of(data: str) -> Path:
    """The file behind ``embedded:calibration`` or a path. Raises DataUnavailable where there is none."""
    scheme, _, name = data.partition(":")
    path = EMBEDDED / f"{name}.jsonl" if scheme == "embedded" else Path(data)
    if not path.is_file():
        raise DataUnavailable(
            f"calibration.data: no file {path}; "
            "write embedded:calibration or the path of a .jsonl or .txt file"
        )
    return path


def fingerprint(data: str) -> str:
    """sha256 of the calibration file, without any heavy import: part of a stage key."""
    with path_of(data).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def documents(data: str) -> list[str]:
    """Texts of a ``.jsonl`` (one ``{"text": …}`` a line) or ``.txt`` file (a paragraph each)."""
    path = path_of(data)
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return [paragraph.strip() for paragraph in content.split("\n\n") if paragraph.strip()]
    if path.suffix != ".jsonl":
        raise SpecError(f"calibration.data: {path.name} is of an unknown kind; write a .jsonl or .txt file")
    lines = [(n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip()]
    return [_text(line, f"{path.name}:{n}") for n, line in lines]


def _text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        problem = f"calibration.data: {where} is no JSON object with a text"
        raise SpecError(problem + '; write {"text": "…"}') from None
    return str(text)


def token_lists(
    spec: CalibrationSpec | None, tokenizer: PreTrainedTokenizerBase, samples: int | None = None
) -> list[list[int]]:
    """``samples`` (else ``spec.samples``) sequences of ``spec.max_length`` token ids.

    Raises SpecError when there is no calibration or too little text, saying how much there is.
    """
    if spec is None:
        raise SpecError("calibration: this runner needs calibration text; write 'calibration: {data: …}'")
    wanted = samples or spec.samples
    stream = array("L")
    for ids in _tokenized(spec, tokenizer):
        stream.extend(ids)
        if len(stream) >= wanted * spec.max_length:
            break
    have = len(stream) // spec.max_length
    if have < wanted:
        raise SpecError(
            f"calibration.samples: {spec.data} holds {have} sequences of {spec.max_length} tokens, "
            f"not {wanted}; write samples: {have} or give more text"
        )
    return [list(stream[i * spec.max_length : (i + 1) * spec.max_length]) for i in range(wanted)]


def _tokenized(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    texts = documents(spec.data)
    random.Random(spec.seed).shuffle(texts)
    end = tokenizer.eos_token_id
    for start in range(0, len(texts), 64):
        for ids in tokenizer(texts[start : start + 64], verbose=False)["input_ids"]:
            yield ids if end is None or ids[-1:] == [end] else [*ids, end]


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

    A runner that uses fewer sequences than ``calibration.samples`` says so in an option named ``samples``.
    """
    if case.calibration is None:
        return None
    tokenizer = load_tokenizer(model_dir, case)
    sequences = token_lists(case.calibration, tokenizer, case.config.options.get("samples"))
    return {
        "data": case.calibration.data,
        "sha256": token_sha256(sequences),
        "samples": len(sequences),
        "tokens": sum(map(len, sequences)),
    }
