"""Two ways to run a model for its statistics and its divergence: whole in memory, or block after block."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rdq import calibration as texts
from rdq.blockwise import Parameters, Walk
from rdq.chain import Chain
from rdq.container import INDEX, open_container
from rdq.errors import RdqError
from rdq.importance import Importance, Read, statistics_of
from rdq.mapped import load_mapped
from rdq.matrices import Matrix, files
from rdq.modeling import load, plain_config
from rdq.shelf import Shelf
from rdq.statistics import Statistics, Sums, collect

KL_VALUES = 1 << 28  # of reference predictions kept
FULL_PRECISION = 2 * 10**9  # bytes of weights: larger models run in the type that they are stored in

Sequences = Sequence[Sequence[int]]
T = TypeVar("T")


class Way(Protocol):
    """How a model runs.

    ``model``: what knows its modules, and may run in the usual way. ``scratch``: a folder for what would be
    too much in memory, where that matters.
    """

    model: PreTrainedModel
    scratch: Path | None

    def statistics(
        self, matrices: Sequence[Matrix], sequences: Sequences, mode: str, seed: int, read: Read
    ) -> MutableMapping[str, Statistics]:
        """Of each matrix, by its name; ``sequences`` of token ids are what to calibrate on."""

    def divergence(self, folder: Path, held: Sequences) -> float:
        """Mean KL(original || model in ``folder``) in nats per token on ``held``, the same in every call."""


def way_of(folder: Path, offload: Path | bool | None, *, drift: bool) -> Way:
    """``offload``: see ``Options``. Raises RdqError where the model cannot be read, or not be offloaded."""
    if offload and drift:
        raise RdqError("offload: drift needs the model in memory; leave one of them out")
    if offload:
        return Offloaded(folder, offload if isinstance(offload, Path) else None)
    if offload is None and not drift and not torch.cuda.is_available() and not _small(folder):
        try:
            return Offloaded(folder, None)
        except Unsuited as error:
            warnings.warn(str(error), stacklevel=2)
    return InMemory(folder)


def _small(folder: Path) -> bool:
    return sum(path.stat().st_size for path in files(folder)) < FULL_PRECISION


def _batches(model: PreTrainedModel, held: Sequences, device: torch.device) -> list[torch.Tensor]:
    """So much of what divergence is measured on as the reference has room for."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    some = held[: max(1, KL_VALUES // vocabulary // len(held[0]))]
    return [torch.tensor(some[i : i + 8], device=device) for i in range(0, len(some), 8)]


class InMemory:
    """The whole model in memory, on the GPU if there is one; in float32 if it is small."""

    scratch: Path | None = None

    def __init__(self, folder: Path) -> None:
        dtype = torch.float32 if _small(folder) else "auto"
        model: PreTrainedModel = _or_refused(
            folder,
            lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True),
        )
        model.set_experts_implementation("eager")  # one by one, so that the inputs of each are seen
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._reference: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def statistics(
        self, matrices: Sequence[Matrix], sequences: Sequences, mode: str, seed: int, read: Read
    ) -> MutableMapping[str, Statistics]:
        sums: Sums | None = None
        if mode != "data-free":
            addresses = {part.address for matrix in matrices for part in matrix.parts}
            sums = collect(self.model, sequences, addresses, sensitivity=mode == "sensitivity", seed=seed)
        return statistics_of(matrices, sums, mode, read)

    def divergence(self, folder: Path, held: Sequences) -> float:
        if self._reference is None:
            groups = _batches(self.model, held, self.model.device)
            self._reference = texts.predictions(self.model, groups), groups
        model = load(folder, dtype=self.model.dtype).to(self.model.device)
        return texts.divergence(self._reference[0], model, self._reference[1])


class Offloaded:
    """Weights in their files, one block at a time in memory, on the CPU; all else in a scratch folder."""

    def __init__(self, folder: Path, scratch: Path | None) -> None:
        """``scratch``: where to make a folder for files that are removed in the end; by default TMPDIR."""
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(prefix="rdq-", dir=scratch)  # goes with this object
        self.scratch: Path | None = Path(self._scratch.name)
        self._folder = self.scratch
        self._dtype = torch.float32 if _small(folder) else torch.bfloat16
        self._walk = _or_refused(folder, lambda: self._walk_of(folder, self._folder))
        self.model = self._walk.chain.model
        self._reference: Path | None = None

    def statistics(
        self, matrices: Sequence[Matrix], sequences: Sequences, mode: str, seed: int, read: Read
    ) -> MutableMapping[str, Statistics]:
        self._walk.maps.release()  # what was used to write text
        shelf = Shelf(Path(tempfile.mkdtemp(prefix="hessians-", dir=self._folder)))
        importance = Importance(mode, read, shelf)
        if mode != "data-free":
            addresses = {part.address for matrix in matrices for part in matrix.parts}
            parts = self._walk.sums(sequences, addresses, sensitivity=mode == "sensitivity", seed=seed)
            for parameters, sums in parts:
                importance.add([matrix for matrix in matrices if _within(parameters, matrix)], sums)
                del sums  # before the next part is begun
        importance.complete(matrices)
        return shelf

    def divergence(self, folder: Path, held: Sequences) -> float:
        groups = _batches(self.model, held, torch.device("cpu"))
        if self._reference is None:
            self._reference = self._folder / "reference"
            with self._reference.open("wb") as file:
                for logits in self._walk.logits(groups):
                    file.write(logits.log_softmax(-1).numpy().tobytes())
        total, count = 0.0, 0
        with tempfile.TemporaryDirectory(dir=self._folder) as name, self._reference.open("rb") as file:
            _unpack(folder, Path(name), self._dtype)
            for logits in self._walk_of(Path(name), Path(name)).logits(groups):
                after = logits.log_softmax(-1)
                before = torch.frombuffer(bytearray(file.read(after.nbytes)), dtype=torch.float32)
                before = before.reshape(after.shape)
                total += float((before.exp() * (before - after)).sum(-1).double().sum())
                count += len(after)
        return total / count

    def _walk_of(self, folder: Path, within: Path) -> Walk:
        scratch = Path(tempfile.mkdtemp(prefix="model-", dir=within))
        model, maps = load_mapped(folder, files(folder), scratch)
        try:
            return Walk(Chain(model), maps, scratch)
        except RdqError as error:
            raise Unsuited(str(error)) from None


class Unsuited(RdqError):
    """A model that cannot be run block after block."""


def _or_refused(folder: Path, loaded: Callable[[], T]) -> T:
    try:
        return loaded()
    except RdqError:
        raise
    except (OSError, ValueError) as error:
        raise RdqError(f"{folder}: does not load ({error})".splitlines()[0]) from None


def _within(parameters: Parameters, matrix: Matrix) -> bool:
    return any(0 <= matrix.address - p.data_ptr() < p.nbytes for p in parameters)


def _unpack(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """A compressed folder as a plain one, a tensor at a time; ``dtype`` of all that was coded."""
    where = {}
    with open_container(folder) as container:
        for number, name in enumerate(container):
            coded = name in container.matrices
            tensor = container.read(name, dtype if coded else None)
            where[name] = f"tensor-{number}.safetensors"
            save_file({name: tensor.contiguous()}, out / where[name])
    (out / INDEX).write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    plain_config(folder).save_pretrained(out)
