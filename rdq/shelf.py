"""Tensors kept in files of a scratch folder instead of in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from rdq.statistics import Statistics


@dataclass
class Pages:
    """Hidden states, or their gradients, by number of the block and of the batch."""

    folder: Path

    def put(self, block: int, batch: int, tensor: torch.Tensor) -> None:
        """float32, whatever it was; in the place of what was there."""
        np.save(self._path(block, batch), tensor.detach().float().numpy())

    def get(self, block: int, batch: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self._path(block, batch)))

    def drop(self, block: int, batch: int) -> None:
        self._path(block, batch).unlink()

    def _path(self, block: int, batch: int) -> Path:
        return self.folder / f"hidden-{block}-{batch}.npy"


class Shelf(MutableMapping[str, Statistics]):
    """Statistics by the name of the matrix: each H in a file, read whenever it is asked for.

    Matrices that are given one and the same H share its file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, NDArray[np.float64]] = {}
        self._paths: dict[str, Path] = {}
        self._saved: dict[int, tuple[weakref.ref[torch.Tensor], Path]] = {}

    def __setitem__(self, name: str, value: Statistics) -> None:
        hessian = value.hessian
        same, path = self._saved.get(id(hessian), (None, None))
        if path is None or same is None or same() is not hessian:
            path = self.folder / f"hessian-{len(self._paths)}.safetensors"
            save_file({"hessian": hessian.contiguous()}, path)
            self._saved[id(hessian)] = weakref.ref(hessian), path
        self._rows[name], self._paths[name] = value.sensitivity, path

    def __getitem__(self, name: str) -> Statistics:
        with safe_open(self._paths[name], "pt") as file:
            return Statistics(file.get_tensor("hessian"), self._rows[name])

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __delitem__(self, name: str) -> None:
        del self._rows[name], self._paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
