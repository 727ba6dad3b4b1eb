"""A compressed folder as a transformers model, with plain weights: `load`, and what both ways of loading
share.

Weights are decoded while the model is filled, several at once, straight to the wanted type; there is never
more in memory than the model, the payloads being decoded and, for types other than bfloat16 and float32,
one float32 matrix for each thread.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch

from rdq.container import Container, open_container
from rdq.errors import RdqError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model of a folder written by rdq, in evaluation mode on the CPU; nothing of it needs rdq any more.

    dtype: of all its weights. RdqError, naming file and tensor, if anything is damaged or missing, or not the
    model's.
    """
    import transformers

    folder = Path(folder)
    config = plain_config(folder)
    names = getattr(config, "architectures", None) or [""]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise RdqError(
            f"{folder}/config.json: no model class {names[0]!r} in transformers; name it in architectures"
        )
    with open_container(folder) as container:
        weights = {name: _Weight(container, name, dtype) for name in container}
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            name = sorted(str(key) for key in info[problem])[0]
            raise RdqError(f"{folder}: {name}: {problem.split('_')[0]} in the files; write the folder again")
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    return model.eval()


def plain_config(folder: Path) -> Any:
    """The configuration, without its word on quantization: what is loaded is a plain model."""
    import transformers

    path = folder / "config.json"
    try:
        method = json.loads(path.read_bytes()).get("quantization_config", {}).get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise RdqError(f"{path}: cannot be read ({error}); give a folder made by rdq") from None
    if method != "rdq":
        raise RdqError(f"{path}: quant_method is {method!r}, not 'rdq'; give a folder made by rdq")
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    return config


class _Weight:
    """A tensor of a container that is read when it is indexed, as slices of safetensors files are.

    What is stored as it is keeps its type: transformers knows what stays float32.
    """

    def __init__(self, container: Container, name: str, dtype: torch.dtype) -> None:
        self._container, self._name, self._dtype = container, name, dtype

    def __getitem__(self, place: EllipsisType) -> torch.Tensor:
        coded = self._name in self._container.matrices
        return self._container.read(self._name, self._dtype if coded else None)


class Ahead:
    """Decodes tensors in threads, a few ahead of the one that is asked for; closed at the end of a `with`."""

    def __init__(
        self, container: Container, names: Iterable[str], dtype: torch.dtype, threads: int = 0
    ) -> None:
        """names: in the order in which they will be asked for; threads: by default one for each core."""
        self._container, self._dtype = container, dtype
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._coming = deque(names)
        self._begun: dict[str, Future[torch.Tensor]] = {}

    def take(self, name: str) -> torch.Tensor:
        """The tensor; decoded here and now if it was not foreseen."""
        if name not in self._begun and name in self._coming:
            while name not in self._begun:  # what is passed over is decoded when it is asked for
                self._begin()
        found = self._begun.pop(name, None)
        while self._coming and len(self._begun) < self._threads:
            self._begin()
        return self._container.read(name, self._dtype) if found is None else found.result()

    def _begin(self) -> None:
        name = self._coming.popleft()
        self._begun[name] = self._pool.submit(self._container.read, name, self._dtype)

    def close(self) -> None:
        """Ends the threads and gives the files back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._container.close()
