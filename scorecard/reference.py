"""The original model's predictions on held-out text, in one safetensors file.

Tensors, for ``documents`` documents of together ``tokens`` tokens, of which ``positions`` are predicted:

    tokens      int32    [tokens]              token ids, document after document
    starts      int64    [documents + 1]       where each document begins in ``tokens``
    characters  int64    [documents]           how far into its text each document goes
    bytes       int64    [documents]           UTF-8 length of the text that the predicted tokens spell
    logprobs    float16  [positions, vocabulary]  natural logarithms
    top         int32    [positions]           the most probable token, before rounding to float16

The layout is written and read one document at a time, so memory does not grow with the text. The file takes
``2 * vocabulary + 4`` bytes a position. Reading normalizes the probabilities again, so that rounding
shifts a divergence by its own small random error only and never makes it negative.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from scorecard.documents import Document

if TYPE_CHECKING:
    import torch

_BYTES = {"I32": 4, "I64": 8, "F16": 2}


class ReferenceWriter:
    """Writes the file in order; call ``append`` once for each document, then leave the context."""

    def __init__(self, path: Path, documents: Sequence[Document]) -> None:
        self._path, self._documents = path, documents
        self._positions = sum(d.positions for d in documents)
        self._top: list[int] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                self._finish(self._file)
        finally:
            self._file.close()

    def append(self, logits: torch.Tensor) -> None:
        """Add one document: ``logits`` of its positions, [positions, vocabulary], any float type."""
        import torch

        if self._file is None:
            raise ValueError("append outside of the context")
        if not self._top:
            self._begin(self._file, logits.shape[-1])
        self._top += logits.argmax(-1).tolist()
        logprobs = torch.log_softmax(logits.float(), -1).clamp_min(torch.finfo(torch.float16).min)
        self._file.write(logprobs.half().cpu().contiguous().numpy().tobytes())

    def _begin(self, file: IO[bytes], vocabulary: int) -> None:
        """The header (every shape is known by now), then the small tensors."""
        count = len(self._documents)
        tokens = sum(len(d.tokens) for d in self._documents)
        shapes = (
            ("starts", "I64", [count + 1]),
            ("characters", "I64", [count]),
            ("bytes", "I64", [count]),
            ("tokens", "I32", [tokens]),
            ("logprobs", "F16", [self._positions, vocabulary]),
            ("top", "I32", [self._positions]),
        )
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, dtype, shape in shapes:
            end = offset + _BYTES[dtype] * _product(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._write_documents(file)

    def _write_documents(self, file: IO[bytes]) -> None:
        starts = [0]
        for document in self._documents:
            starts.append(starts[-1] + len(document.tokens))
        file.write(_packed("q", starts))
        file.write(_packed("q", [d.characters for d in self._documents]))
        file.write(_packed("q", [d.bytes for d in self._documents]))
        file.write(_packed("i", [t for d in self._documents for t in d.tokens]))

    def _finish(self, file: IO[bytes]) -> None:
        if len(self._top) != self._positions:
            raise ValueError(f"{self._path}: {len(self._top)} of {self._positions} positions were written")
        file.write(_packed("i", self._top))


class Reference:
    """A finished file, read one document at a time."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        file = cast(Any, safe_open(path, framework="pt"))
        self.starts: list[int] = file.get_tensor("starts").tolist()
        self.characters: list[int] = file.get_tensor("characters").tolist()
        self.bytes: list[int] = file.get_tensor("bytes").tolist()
        self.tokens: list[int] = file.get_tensor("tokens").tolist()
        self._logprobs = file.get_slice("logprobs")
        self._top = file.get_slice("top")

    @property
    def vocabulary(self) -> int:
        return int(self._logprobs.get_shape()[1])

    def __len__(self) -> int:
        return len(self.bytes)

    def document(self, place: int) -> tuple[int, ...]:
        """Token ids of the document at ``place``."""
        return tuple(self.tokens[self.starts[place] : self.starts[place + 1]])

    def rows(self, place: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (float16 [n, vocabulary]) and top tokens ([n]) of a document's ``start:end``."""
        first = self.starts[place] - place  # one position fewer than tokens in each document before
        return self._logprobs[first + start : first + end], self._top[first + start : first + end]


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _packed(kind: str, values: Sequence[int]) -> bytes:
    """Little-endian bytes; ``q`` is int64, ``i`` int32."""
    import struct

    return struct.pack(f"<{len(values)}{kind}", *values)
