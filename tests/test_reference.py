"""The file of the original's predictions: what it holds, and that it reads back as it was kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scorecard.documents import Document
from scorecard.kept import Kept, keep
from scorecard.reference import _SEED, Reference, ReferenceWriter

DOCUMENTS = [Document(3, (5, 6, 7, 8), 11, 10), Document(4, (9, 1), 4, 3), Document(9, (2, 3, 4), 6, 5)]
POSITIONS = 6


def some_logits(vocabulary: int) -> torch.Tensor:
    torch.manual_seed(2)
    return 3 * torch.randn(POSITIONS, vocabulary)


def write(path: Path, logits: torch.Tensor, rows: int = 2) -> Reference:
    with ReferenceWriter(path, DOCUMENTS) as writer:
        for part in logits.split(rows):
            writer.append(part)
    return Reference(path)


def equal(one: Kept, other: Kept) -> bool:
    pairs = [(one.top, other.top), (one.logprobs, other.logprobs)]
    if one.others is not None and other.others is not None:
        fields = dataclasses.fields(one.others)
        pairs += [(getattr(one.others, f.name), getattr(other.others, f.name)) for f in fields]
    return (one.others is None) == (other.others is None) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("vocabulary", [40, 700, 70_000])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_reads_back_what_was_kept(tmp_path: Path, vocabulary: int, rows: int) -> None:
    logits = some_logits(vocabulary)
    read = write(tmp_path / "reference.safetensors", logits, rows)
    assert [read.document(place) for place in range(len(read))] == [d.tokens for d in DOCUMENTS]
    assert (read.characters, read.bytes) == ([11, 4, 6], [10, 3, 5])
    assert read.vocabulary == vocabulary
    generator = torch.Generator().manual_seed(_SEED)
    for place, start, end, first in ((0, 0, 2, 0), (0, 2, 3, 2), (1, 0, 1, 3), (2, 0, 2, 4)):
        kept = keep(logits[first : first + end - start], generator)
        assert equal(read.rows(place, start, end), kept), (place, start)


def test_a_small_vocabulary_is_there_in_full(tmp_path: Path) -> None:
    logits = some_logits(512)
    write(tmp_path / "reference.safetensors", logits)
    tensors = load_file(tmp_path / "reference.safetensors")
    assert set(tensors) == {"tokens", "starts", "characters", "bytes", "top", "logprobs"}
    assert tensors["logprobs"].dtype == torch.float16
    assert torch.equal(tensors["top"].long(), logits.argmax(-1))
    assert (tensors["logprobs"].double() - logits.double().log_softmax(-1)).abs().max() < 0.01


def test_of_a_large_vocabulary_a_small_part_is_there(tmp_path: Path) -> None:
    logits = some_logits(70_000)
    read = write(tmp_path / "reference.safetensors", logits)
    tensors = load_file(tmp_path / "reference.safetensors")
    exact, order = logits.double().log_softmax(-1).sort(descending=True)
    places = torch.tensor([1, 256, 65_536])
    assert torch.equal((tensors["ids"] * places).sum(-1), order[:, :256])
    assert tensors["tail"][:, 0].exp().tolist() == pytest.approx(exact[:, 256:].exp().sum(-1).tolist())
    assert tensors["tail"][:, 1:].flatten().tolist() == pytest.approx(exact[:, [-1, 256]].flatten().tolist())
    starts, drawn = tensors["draw_starts"], (tensors["drawn"] * places).sum(-1)
    assert starts.diff().tolist() == (4096 * tensors["tail"][:, 0].double().exp()).ceil().tolist()
    for row in range(POSITIONS):
        own = slice(int(starts[row]), int(starts[row + 1]))
        assert not set(drawn[own].tolist()) & set(order[row, :256].tolist())
        logprobs = logits[row].double().log_softmax(-1)[drawn[own]]
        assert (tensors["drawn_logprobs"][own] - logprobs).abs().max() < 1e-5
    assert read.bytes_per_token == (tmp_path / "reference.safetensors").stat().st_size / POSITIONS


def test_the_same_logits_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, some_logits(3000))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_reference_cut_short_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"

    def interrupted() -> None:
        with ReferenceWriter(path, DOCUMENTS) as writer:
            writer.append(some_logits(8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="4 of 6 positions"), ReferenceWriter(path, DOCUMENTS) as writer:
        writer.append(some_logits(8)[:4])
    assert not path.exists()
