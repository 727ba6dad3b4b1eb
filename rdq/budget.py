"""A budget to a compressed folder: what ``rdq compress`` does."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rdq.compress import START, Compressor, Options
from rdq.errors import RdqError
from rdq.report import Report
from rdq.search import search

SIZE_TOLERANCE = 0.004
KL_TOLERANCE = 0.04
LARGE = 10**8  # weights


@dataclass(frozen=True)
class Budget:
    """One of: ``bits`` per weight (all files but the tokenizer's), bytes of the folder (``size``), ``kl``."""

    bits: float | None = None
    kl: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.kl, self.size) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise RdqError("budget: give one of bits, kl or size, above 0")

    @property
    def of(self) -> str:
        return "kl" if self.kl is not None else "bits" if self.bits is not None else "size"

    @property
    def target(self) -> float:
        return float(next(v for v in (self.kl, self.bits, self.size) if v is not None))

    def value(self, report: Report) -> float:
        if self.kl is not None:
            return float("inf") if report.kl is None else report.kl
        return report.bits if self.bits is not None else float(report.folder_bytes)


def compress(
    model_dir: Path, out: Path, budget: Budget, options: Options | None = None, *, measure: bool = True
) -> Report:
    """Compress the model in ``model_dir`` into ``out`` within ``budget``.

    ``measure``: the divergence too, where the budget does not need it. Raises RdqError where the model cannot
    be read or the budget not be met.
    """
    return Session(model_dir, options).compress(out, budget, measure=measure)


class Session:
    """Several budgets for one model: its statistics are gathered once."""

    def __init__(self, model_dir: Path, options: Options | None = None) -> None:
        self._compressor = Compressor(Path(model_dir), options or Options())
        self._start = START[self._compressor.options.mode]

    def compress(self, out: Path, budget: Budget, *, measure: bool = True) -> Report:
        """As ``compress``. ``measure``: also the divergence, where the budget does not need it."""
        if out.exists() and any(out.iterdir()):
            raise RdqError(f"{out}: is not empty; name a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            report, folder = self._search(Path(scratch), budget)
            if measure and report.kl is None:
                report = self._compressor.measured(report, folder)
            shutil.copytree(folder, out, dirs_exist_ok=True)
        self._start = report.c
        return report

    def _first(self, budget: Budget) -> float:
        """A step constant to begin with: for a large model one that a part of its rows says is right."""
        if self._compressor.parameters < LARGE or budget.of == "kl":
            return self._start
        files = budget.target * 8 / self._compressor.parameters if budget.of == "size" else budget.target
        found = search(
            lambda c: (c, self._compressor.estimated_bits(c)), lambda one: one[1], files, self._start,
            tolerance=SIZE_TOLERANCE, rises=False,
        )  # fmt: skip
        return found[0]

    def _search(self, scratch: Path, budget: Budget) -> tuple[Report, Path]:
        number = 0

        def trial(c: float) -> tuple[Report, Path]:
            nonlocal number
            number += 1
            folder = scratch / str(number)
            return self._compressor.compress(c, folder, measure=budget.of == "kl"), folder

        return search(
            trial,
            lambda outcome: budget.value(outcome[0]),
            budget.target,
            self._first(budget),
            tolerance=KL_TOLERANCE if budget.of == "kl" else SIZE_TOLERANCE,
            rises=budget.of == "kl",
        )
