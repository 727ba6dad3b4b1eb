"""What is prepared of each matrix, kept from one step constant to the next: in memory, then in files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from rdq.quantize import Prepared

KEPT_BYTES = 2 << 30  # in memory


@dataclass
class Kept:
    """``folder``: where to keep what there is no room for in memory; ``None``: it is prepared anew."""

    folder: Path | None
    _here: dict[str, Prepared] = field(default_factory=dict)
    _there: dict[str, tuple[Path, Prepared]] = field(default_factory=dict)
    _bytes: int = 0

    def get(self, name: str, prepare: Callable[[], Prepared]) -> Prepared:
        """That of the matrix ``name``; ``prepare`` is called the first time. Several threads may ask."""
        if name in self._here:
            return self._here[name]
        if name in self._there:
            path, without = self._there[name]
            return Prepared(torch.from_numpy(np.load(path)), without.innovation, without.row)
        made = prepare()
        self._bytes += made.factor.nbytes
        if self._bytes < KEPT_BYTES:
            self._here[name] = made
        elif self.folder is not None:
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix="prepared-", suffix=".npy", delete=False
            ) as file:
                np.save(file, made.factor.numpy())
            nothing = made.factor.new_empty(0)
            self._there[name] = Path(file.name), Prepared(nothing, made.innovation, made.row)
        return made

    def forget(self) -> None:
        """Drop it all."""
        for path, _ in self._there.values():
            path.unlink()
        self._here, self._there, self._bytes = {}, {}, 0
