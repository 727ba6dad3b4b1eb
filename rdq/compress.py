"""A model folder to a compressed one: statistics once, then as many step constants as the budget takes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rdq import calibration as texts
from rdq.coded import CLASSES, MAX_CODE, CodedMatrix
from rdq.coding import decode, encode
from rdq.errors import RdqError
from rdq.importance import MODES, settings_of, statistics_of
from rdq.matrices import Matrix, matrices, read, stored
from rdq.quantize import Prepared, Quantized, Settings, prepare, quantize
from rdq.search import search
from rdq.statistics import Statistics, Sums, collect
from rdq.tables import Tables, from_counts

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
KEPT_BYTES = 2 << 30  # of prepared matrices, from one step constant to the next
KL_VALUES = 1 << 28  # of reference predictions kept
START = 1e-4


@dataclass(frozen=True)
class Options:
    """What to calibrate on, and how matrices are quantized."""

    mode: str = "sensitivity"
    calibration: Path | Sequence[Sequence[int]] | None = None
    """A text or .jsonl file, or sequences of token ids; ``None``: the model writes its own."""
    samples: int = 128
    length: int = 256
    seed: int = 0
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RdqError(f"mode: '{self.mode}' is unknown; write one of {', '.join(MODES)}")


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


class Compressor:
    """The model, its statistics and everything else that every step constant shares."""

    def __init__(self, model_dir: Path, options: Options) -> None:
        """Reads the model and runs it over the calibration text. Raises RdqError for what cannot be."""
        self.folder, self.options = model_dir, options
        self.tensors = stored(model_dir)
        self._model: PreTrainedModel | None = _load(model_dir)
        self._prepared: dict[str, Prepared] = {}
        self._kept = 0
        self._reference: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None
        model = self._model
        self.matrices = matrices(model, self.tensors)
        if not self.matrices:
            raise RdqError(f"{model_dir}: holds no matrix to quantize; name the folder of a language model")
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        sequences = self._sequences(model)
        self._held = sequences[-max(1, len(sequences) // 8) :]
        sums: Sums | None = None
        if options.mode != "data-free":
            addresses = {matrix.address for matrix in self.matrices}
            sensitivity = options.mode == "sensitivity"
            sums = collect(model, sequences, addresses, sensitivity=sensitivity, seed=options.seed)
        self.statistics = statistics_of(self.matrices, sums, options.mode, self._weight)

    def _sequences(self, model: PreTrainedModel) -> list[list[int]]:
        o = self.options
        length = texts.length_for(model, o.length)
        if isinstance(o.calibration, Path):
            return texts.of_file(o.calibration, AutoTokenizer.from_pretrained(self.folder), o.samples, length)
        if o.calibration is not None:
            return [list(ids) for ids in o.calibration]
        samples = o.samples if o.mode != "data-free" else 8
        return texts.generated(model, samples, length, o.seed)

    def _weight(self, matrix: Matrix) -> torch.Tensor:
        """As [rows, columns]."""
        tensor = read(self.tensors[matrix.name], matrix.name)
        return tensor.T if matrix.turned else tensor

    def _prepare(self, matrix: Matrix) -> Prepared:
        if matrix.name in self._prepared:
            return self._prepared[matrix.name]
        made = prepare(self.statistics[matrix.name], settings_of(matrix, self.options.settings))
        self._kept += made.factor.nbytes
        if self._kept < KEPT_BYTES:
            self._prepared[matrix.name] = made
        return made

    def quantized(self, c: float) -> Iterator[tuple[Matrix, Quantized]]:
        """Every matrix with the step constant ``c``, one after the other."""
        for matrix in self.matrices:
            settings = settings_of(matrix, self.options.settings)
            try:
                yield matrix, quantize(self._weight(matrix), self._prepare(matrix), c, settings)
            except RdqError as error:
                raise RdqError(f"{matrix.name}: {error}") from None

    def compress(self, c: float, out: Path, *, measure: bool = True) -> Report:
        """Write the model with the step constant ``c`` into ``out``, an empty or new folder.

        ``measure``: also load it and measure the divergence from the original.
        """
        out.mkdir(parents=True, exist_ok=True)
        counts = np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            spilled = _Spilled(Path(scratch))
            for matrix, found in self.quantized(c):
                counts += found.counts
                spilled.put(matrix, found)
            rows = self._write(out, spilled, from_counts(counts).pruned(counts))
        copy_tokenizer(self.folder, out)
        kl = self.divergence(out) if measure else None
        return _report(c, out, self.parameters, kl, self.options.mode, rows)

    def _write(self, out: Path, spilled: _Spilled, tables: Tables) -> list[Row]:
        quantized = {matrix.name for matrix in self.matrices}
        tied = self.folder_ties()
        rows = []
        with Writer(out, self.folder / "config.json", tables) as writer:
            for name, path in self.tensors.items():
                if name in quantized or (tied and name == "lm_head.weight"):
                    continue
                writer.add(name, read(path, name))
            for matrix, coded, predicted in spilled:
                size = writer.add_matrix(matrix.name, coded, turned=matrix.turned)
                rows.append(Row(matrix.name, matrix.kind, coded.codes.size, predicted, size))
        return rows

    def divergence(self, folder: Path) -> float:
        """Mean KL(original || compressed) in nats per token, on an eighth of the calibration text."""
        if self._reference is None:
            vocabulary = int(self.matrices and self._model.config.get_text_config().vocab_size)
            most = max(1, KL_VALUES // vocabulary // len(self._held[0]))
            held = self._held[:most]
            batches = [torch.tensor(held[i : i + 8]) for i in range(0, len(held), 8)]
            self._reference = texts.predictions(self._model, batches), batches
        model = load(folder, dtype=self._model.dtype)
        return texts.divergence(self._reference[0], model, self._reference[1])


class _Spilled:
    """Quantized matrices on disk until the tables of all of them are known."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tables = folder, Tables.gaussian()
        self._matrices: list[tuple[Matrix, float]] = []

    def put(self, matrix: Matrix, found: Quantized) -> None:
        path = self._folder / str(len(self._matrices))
        path.write_bytes(encode(found.coded, self._tables))
        self._matrices.append((matrix, found.predicted_bytes))

    def __iter__(self) -> Iterator[tuple[Matrix, CodedMatrix, float]]:
        for number, (matrix, predicted) in enumerate(self._matrices):
            path = self._folder / str(number)
            yield matrix, decode(path.read_bytes(), self._tables, where=matrix.name), predicted
            path.unlink()


def _load(folder: Path) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, device_map=None
        )
    except (OSError, ValueError) as error:
        raise RdqError(f"{folder}: does not load ({error})".splitlines()[0]) from None
    return model.eval()


def copy_tokenizer(folder: Path, out: Path) -> None:
    """The tokenizer's files, byte for byte, and the generation config."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
