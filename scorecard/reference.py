"""The original model's predictions on held-out text, in one safetensors file.

Tensors, for ``documents`` documents of together ``tokens`` tokens, of which ``positions`` are predicted:

    tokens      int32    [tokens]           token ids, document after document
    starts      int64    [documents + 1]    where each document begins in ``tokens``
    characters  int64    [documents]        how far into its text each document goes
    bytes       int64    [documents]        UTF-8 length of the text that the predicted tokens spell
    top         int32    [positions]        the most probable token, before rounding to float16
    logprobs    float16  [positions, k]     natural logarithms, of the ``k`` most probable tokens

and, but for a vocabulary so small that ``logprobs`` holds all of it in order (see ``scorecard.kept``):

    ids             uint8    [positions, k, width]  those tokens; little-endian, in as few bytes as it takes
    tail            float32  [positions, 3]         all other tokens: ln of their mass, of the least and of
                                                    the greatest of their probabilities
    draw_starts     int64    [positions + 1]        where each position begins in ``drawn``
    drawn           uint8    [draws, width]         other tokens, drawn at random in proportion to their
                                                    probability
    drawn_logprobs  float32  [draws]                natural logarithms

The metadata ``vocabulary`` is the number of tokens that have a logit. Whoever reads maps the file and takes
a few rows at a time; whoever writes holds it in memory, some thousand bytes a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from scorecard.documents import Document
from scorecard.kept import Kept, Others, id_bytes, keep

if TYPE_CHECKING:
    import torch

_SEED = 20_260_101  # of the draws


class ReferenceWriter:
    """Collects logits in order, a few positions at a time; the file is written on leaving the context."""

    def __init__(self, path: Path, documents: Sequence[Document]) -> None:
        import torch

        self._path, self._documents = path, documents
        self._generator = torch.Generator().manual_seed(_SEED)
        self._vocabulary = 0
        self._parts: list[dict[str, torch.Tensor]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def append(self, logits: torch.Tensor) -> None:
        """Add the next positions: ``logits`` [positions, vocabulary], any float type."""
        self._vocabulary = logits.shape[-1]
        self._parts.append(_tensors(keep(logits, self._generator), id_bytes(self._vocabulary)))

    def _finish(self) -> None:
        import torch
        from safetensors.torch import save_file

        wanted = sum(d.positions for d in self._documents)
        written = sum(len(part["top"]) for part in self._parts)
        if written != wanted:
            raise ValueError(f"{self._path}: {written} of {wanted} positions were written")
        tensors = _documents(self._documents)
        for name in self._parts[0] if self._parts else ():
            tensors[name] = torch.cat([part[name] for part in self._parts])
        if "draw_starts" in tensors:
            tensors["draw_starts"] = _sums(tensors["draw_starts"])
        save_file(tensors, self._path, {"vocabulary": str(self._vocabulary)})


class Reference:
    """A finished file, of which a few positions are read at a time."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = cast(Any, safe_open(path, framework="pt"))
        self._names = set(self._file.keys())
        self.vocabulary = int(self._file.metadata()["vocabulary"])
        self.starts: list[int] = self._file.get_tensor("starts").tolist()
        self.characters: list[int] = self._file.get_tensor("characters").tolist()
        self.bytes: list[int] = self._file.get_tensor("bytes").tolist()
        self.tokens: list[int] = self._file.get_tensor("tokens").tolist()
        self.bytes_per_token = path.stat().st_size / max(1, len(self.tokens) - len(self))

    def __len__(self) -> int:
        return len(self.bytes)

    def document(self, place: int) -> tuple[int, ...]:
        """Token ids of the document at ``place``."""
        return tuple(self.tokens[self.starts[place] : self.starts[place + 1]])

    def rows(self, place: int, start: int, end: int, device: torch.device | str = "cpu") -> Kept:
        """What is kept of the distributions of a document's positions ``start:end``, on ``device``."""
        first = self.starts[place] - place  # one position fewer than tokens in each document before
        rows = slice(first + start, first + end)
        top, logprobs = self._slice("top", rows).long(), self._slice("logprobs", rows)
        others = self._others(rows, device) if "ids" in self._names else None
        return Kept(top.to(device), logprobs.to(device), others)

    def _others(self, rows: slice, device: torch.device | str) -> Others:
        starts = self._slice("draw_starts", slice(rows.start, rows.stop + 1))
        drawn = slice(int(starts[0]), int(starts[-1]))
        return Others(
            _unpacked(self._slice("ids", rows)).to(device),
            self._slice("tail", rows).to(device),
            starts.diff().to(device),
            _unpacked(self._slice("drawn", drawn)).to(device),
            self._slice("drawn_logprobs", drawn).to(device),
        )

    def _slice(self, name: str, rows: slice) -> torch.Tensor:
        return cast("torch.Tensor", self._file.get_slice(name)[rows])


def _documents(documents: Sequence[Document]) -> dict[str, torch.Tensor]:
    import torch

    lengths = torch.tensor([len(d.tokens) for d in documents], dtype=torch.int64)
    return {
        "tokens": torch.tensor([t for d in documents for t in d.tokens], dtype=torch.int32),
        "starts": _sums(lengths),
        "characters": torch.tensor([d.characters for d in documents], dtype=torch.int64),
        "bytes": torch.tensor([d.bytes for d in documents], dtype=torch.int64),
    }


def _tensors(kept: Kept, width: int) -> dict[str, torch.Tensor]:
    """The part of each tensor of the file; of ``draw_starts`` the counts as yet."""
    import torch

    parts = {"top": kept.top.to(torch.int32), "logprobs": kept.logprobs}
    if kept.others is not None:
        parts["ids"] = _packed(kept.others.ids, width)
        parts["tail"] = kept.others.tail
        parts["draw_starts"] = kept.others.counts
        parts["drawn"] = _packed(kept.others.drawn, width)
        parts["drawn_logprobs"] = kept.others.drawn_logprobs
    return {name: part.cpu() for name, part in parts.items()}


def _sums(counts: torch.Tensor) -> torch.Tensor:
    """0, and the sum up to each of ``counts``."""
    import torch

    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _packed(ids: torch.Tensor, width: int) -> torch.Tensor:
    """int64 [...] -> uint8 [..., width], little-endian."""
    import torch

    places = 8 * torch.arange(width, device=ids.device)
    return ((ids[..., None] >> places) & 255).to(torch.uint8)


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    import torch

    return (packed.long() << 8 * torch.arange(packed.shape[-1])).sum(-1)
