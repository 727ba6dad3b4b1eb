"""A model folder to a compressed one: statistics once, then as many step constants as the budget takes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from rdq import calibration as texts
from rdq import damping
from rdq.coded import dequantize
from rdq.drift import Moments, Streams, in_order
from rdq.errors import RdqError
from rdq.importance import MODES, settings_of
from rdq.kept import Kept
from rdq.matrices import Matrix, matrices, read, stored, weight
from rdq.quantize import Prepared, Quantized, Settings, prepare, quantize, some_rows
from rdq.report import Report, Row, config, copy_tokenizer, report
from rdq.statistics import Statistics
from rdq.ways import way_of
from rdq.writing import Writer

AT_ONCE = 8 << 30  # bytes that matrices quantized at the same time may need; one always may
SAMPLED = 8
START = {"sensitivity": 1.5e-4, "calibrated": 0.1, "data-free": 0.3}
"""The step constant to begin with, by mode: about that of 3 bits."""
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """What to calibrate on, and how matrices are quantized."""

    mode: str = "sensitivity"
    calibration: Path | Sequence[Sequence[int]] | None = None
    """A text or .jsonl file, or sequences of token ids; ``None``: the model writes its own."""
    samples: int = 128
    length: int = 256
    seed: int = 0
    drift: float = 0.0
    """How far each matrix is moved to make up for the errors of the blocks before it: 0 (not) to 1."""
    damping: float | None = None
    """Added to the diagonal of each H, in means of it; ``None``: measured on the sequences held back."""
    offload: Path | bool | None = None
    """Whether weights stay in their files but for one block at a time (docs/rdq.md), and where its scratch
    files go (``True``: TMPDIR). ``None``: models of more than 2 GB, where there is no GPU."""
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.damping is not None and not 0 < self.damping <= 1:
            raise RdqError(f"damping: {self.damping} is not above 0 and at most 1; write 0.01")
        if self.mode not in MODES:
            raise RdqError(f"mode: '{self.mode}' is unknown; write one of {', '.join(MODES)}")


class Compressor:
    """The model, its statistics and everything else that every step constant shares."""

    def __init__(self, model_dir: Path, options: Options) -> None:
        """Reads the model and runs it over the calibration text. Raises RdqError for what cannot be."""
        self.folder, self.options, self.settings = model_dir, options, options.settings
        self.tensors = stored(model_dir)
        self._way = way_of(model_dir, options.offload, drift=options.drift > 0)
        model = self._way.model
        self._prepared = Kept(self._way.scratch)
        self.matrices = matrices(model, self.tensors)
        if not self.matrices:
            raise RdqError(f"{model_dir}: holds no matrix to quantize; name the folder of a language model")
        self.tied = any(matrix.kind == "tied" for matrix in self.matrices)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        sequences = self._sequences(model)
        last = max(1, len(sequences) // 8)
        self.held = sequences[-last:]  # what divergence is measured on; not calibrated on
        self.read_on = sequences[:-last] or sequences
        self.statistics = self._statistics(self.matrices, self.read_on, options.mode)
        self.settings = replace(self.settings, damping=self._damping(len(sequences)))

    def _statistics(
        self, some: Sequence[Matrix], sequences: Sequence[Sequence[int]], mode: str
    ) -> MutableMapping[str, Statistics]:
        return self._way.statistics(some, sequences, mode, self.options.seed, self.weight)

    def _damping(self, sequences: int) -> float:
        if self.options.damping is not None:
            return self.options.damping
        if self.options.mode == "data-free" or sequences < 2:  # nothing was held back
            return self.settings.damping
        return damping.chosen(
            self.matrices, self.statistics, self.weight,
            lambda some: self._statistics(some, self.held, "calibrated"), START[self.options.mode],
            self.settings,
        )  # fmt: skip

    def _sequences(self, model: PreTrainedModel) -> list[list[int]]:
        o = self.options
        length = texts.length_for(model, o.length)
        if isinstance(o.calibration, Path):
            return texts.of_file(o.calibration, AutoTokenizer.from_pretrained(self.folder), o.samples, length)
        if o.calibration is not None:
            return [list(ids) for ids in o.calibration]
        samples = o.samples if o.mode != "data-free" else 8
        return texts.generated(model, samples, length, o.seed)

    def weight(self, matrix: Matrix) -> torch.Tensor:
        """As [rows, columns]."""
        return weight(self.tensors, matrix)

    def _prepare(self, matrix: Matrix) -> Prepared:
        return self._prepared.get(
            matrix.name,
            lambda: prepare(self.statistics[matrix.name], settings_of(matrix, self.settings)),
        )

    def forget(self) -> None:
        """Drop what was prepared: to be called after a change of ``settings`` or ``statistics``."""
        self._prepared.forget()

    def quantized(self, c: float, every: int = 1) -> Iterator[tuple[Matrix, Quantized]]:
        """Every matrix with the step constant ``c``, in order; as many at once as there are cores and
        ``AT_ONCE`` allows.

        ``every``: quantize only each so many-th row, which is enough to tell how many bits all would take.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            coming: deque[Future[Quantized]] = deque()
            for number, matrix in enumerate(self.matrices):
                while len(coming) < THREADS and number + len(coming) < len(self.matrices):
                    following = self.matrices[number + len(coming)]
                    under_way = self.matrices[number : number + len(coming) + 1]
                    if coming and sum(map(_needed_bytes, under_way)) > AT_ONCE:
                        break
                    coming.append(pool.submit(self._quantize, following, c, every))
                yield matrix, coming.popleft().result()

    def _quantize(self, matrix: Matrix, c: float, every: int) -> Quantized:
        values, prepared = self.weight(matrix), self._prepare(matrix)
        if every > 1:
            values = some_rows(values, len(prepared.innovation), every)
            prepared = prepared.every(every)
        try:
            return quantize(values, prepared, c, settings_of(matrix, self.settings))
        except RdqError as error:
            raise RdqError(f"{matrix.name}: {error}") from None

    def drifted(self, c: float) -> Iterator[tuple[Matrix, Quantized]]:
        """As ``quantized``, but block after block, each made up for the errors of those before."""
        streams = Streams(self._way.model, self.read_on)
        groups = list(in_order(self._way.model, self.matrices))
        for number, group in groups:
            moments: dict[str, Moments] = {}
            if number is not None:
                moments = streams.moments(number, {path: matrix.name for path, matrix in group.items()})
            elif any(matrix.kind == "head" for matrix in group.values()):
                moments = streams.at_head(next(iter(group.values())).name)
            for matrix in group.values():
                found = self._corrected(matrix, c, moments.get(matrix.name))
                streams.put(matrix, torch.from_numpy(dequantize(found.coded)))
                yield matrix, found
            if number is not None:
                streams.advance(number)
            elif not moments:
                streams.begin()

    def _corrected(self, matrix: Matrix, c: float, moments: Moments | None) -> Quantized:
        if moments is None:
            return self._quantize(matrix, c, 1)
        settings = settings_of(matrix, self.settings)
        known = self.statistics[matrix.name]
        prepared = prepare(Statistics(moments.mixed(known.hessian), known.sensitivity), settings)
        values = self.weight(matrix).to(moments.own.device)
        return quantize(moments.corrected(values, self.options.drift), prepared, c, settings)

    def estimated_bits(self, c: float) -> float:
        """About how many bits per weight ``c`` would take, from one row in ``SAMPLED``."""
        coded: float = sum(
            8 * found.predicted_bytes * matrix.rows / found.coded.shape[0]
            for matrix, found in self.quantized(c, SAMPLED)
        )
        weights = sum(matrix.rows * matrix.columns for matrix in self.matrices)
        estimated: float = (coded + 16 * max(0, self.parameters - weights)) / self.parameters
        return estimated

    def compress(self, c: float, out: Path, *, measure: bool = True) -> Report:
        """Write the model with the step constant ``c`` into ``out``, an empty or new folder.

        ``measure``: also load it and measure the divergence from the original.
        """
        names = {matrix.name for matrix in self.matrices}
        predicted: dict[str, tuple[Matrix, float]] = {}
        with Writer(out) as writer:
            for name, path in self.tensors.items():
                if name not in names and not (self.tied and name == "lm_head.weight"):
                    writer.add_plain(name, read(path, name))
            for matrix, found in self.drifted(c) if self.options.drift else self.quantized(c):
                writer.add_matrix(
                    matrix.name, found.coded, stack=max(1, len(matrix.stack)), transposed=matrix.turned
                )
                predicted[matrix.name] = matrix, found.predicted_bytes
            written = writer.close(config(self.folder))
        copy_tokenizer(self.folder, out)
        kl = self.divergence(out) if measure else None
        rows = [
            Row(w.name, predicted[w.name][0].kind, w.weights, predicted[w.name][1], w.size_bytes)
            if w.name in predicted
            else Row(w.name, "plain", w.weights, w.size_bytes, w.size_bytes)
            for w in written
        ]
        return report(c, out, self.parameters, kl, self.options.mode, rows)

    def measured(self, before: Report, folder: Path) -> Report:
        """The report with the divergence of its folder."""
        return replace(before, kl=self.divergence(folder))

    def divergence(self, folder: Path) -> float:
        """Mean KL(original || compressed) in nats per token, on ``held``, the last eighth of the text."""
        return self._way.divergence(folder, self.held)


def _needed_bytes(matrix: Matrix) -> int:
    """About what quantizing it takes, measured: float64 copies of its weights, and of H."""
    return 40 * matrix.rows * matrix.columns + 50 * len(matrix.parts) * matrix.columns**2
