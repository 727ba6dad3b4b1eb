"""What each part of rdq is worth: bytes of the whole folder, tokenizer excluded, at equal divergence.

    python -m benchmarks.rdq_ablation embedded/tiny-llama embedded/calibration.jsonl embedded/heldout.jsonl

Each variant leaves out one part and is compressed at a few step constants; its bytes at a divergence are read
off the line between the two nearest, both in logarithms.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from rdq import calibration
from rdq.compress import Compressor, Options
from rdq.quantize import Settings, entropy_bits
from rdq.statistics import Statistics

DIVERGENCES = (0.003, 0.01, 0.03)
STEPS = (0.7e-4, 1.3e-4, 2.4e-4)


USUAL = Settings()


@dataclass(frozen=True)
class Variant:
    """``finer``: by how much the step constants must be smaller for like divergences."""

    name: str
    settings: Settings = USUAL
    change: Callable[[Compressor], None] = lambda compressor: None
    finer: float = 1.0


def _even_rows(compressor: Compressor) -> None:
    for name, found in compressor.statistics.items():
        rows = np.full_like(found.sensitivity, found.sensitivity.mean())
        compressor.statistics[name] = Statistics(found.hessian, rows)


def _by_output_power(compressor: Compressor) -> None:
    """Each matrix on its own: equal errors relative to its outputs, whatever they do to the predictions."""
    for matrix in compressor.matrices:
        found, weight = compressor.statistics[matrix.name], compressor.weight(matrix).float()
        power = float(((weight @ found.hessian) * weight).sum(1).mean())
        rows = found.sensitivity / found.sensitivity.mean() / max(power, 1e-30)
        compressor.statistics[matrix.name] = Statistics(found.hessian, rows)


def _without_outer(compressor: Compressor) -> None:
    compressor.matrices = [matrix for matrix in compressor.matrices if matrix.kind == "body"]


VARIANTS = (
    Variant("all of it"),
    Variant("no error feedback", Settings(feedback=False), finer=0.5),
    Variant("no rate term (nearest point)", Settings(kappa=0.0)),
    Variant("scalar quantizer", Settings(states=1, kappa=0.0), finer=2.0),
    Variant("trellis of 4 states", Settings(states=4)),
    Variant("one pass, Gaussian code lengths", Settings(passes=1)),
    Variant("no steps by row", change=_even_rows),
    Variant("matrices on their own instead of one trade-off", change=_by_output_power, finer=2000.0),
    Variant("embedding and lm_head as they are", change=_without_outer),
)


def curve(compressor: Compressor, variant: Variant, scratch: Path) -> list[tuple[float, int]]:
    """(divergence, bytes) for each step constant."""
    compressor.settings = variant.settings
    before = dict(compressor.statistics), list(compressor.matrices)
    variant.change(compressor)
    compressor.forget()
    points = []
    for step in STEPS:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            report = compressor.compress(step * variant.finer, Path(folder) / "out")
        assert report.kl is not None
        points.append((report.kl, report.weight_bytes))
    compressor.statistics, compressor.matrices = before
    return points


def contexts(compressor: Compressor, step: float) -> float:
    """Bytes that tables by class save against one table for each matrix and quantizer."""
    compressor.settings = Settings()
    compressor.forget()
    saved = 0.0
    for _, found in compressor.quantized(step):
        saved += entropy_bits(found.counts.sum(0, keepdims=True)) - entropy_bits(found.counts)
    return saved / 8


def at(points: Sequence[tuple[float, int]], divergence: float) -> float:
    """Bytes at a divergence, on the line through the nearest two points."""
    ordered = sorted(points)
    x, y = np.log([p[0] for p in ordered]), np.log([p[1] for p in ordered])
    aim = np.log(divergence)
    i = int(np.clip(np.searchsorted(x, aim), 1, len(x) - 1))
    return float(np.exp(y[i - 1] + (aim - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])))


def lines(compressor: Compressor, scratch: Path) -> Iterator[str]:
    yield "| left out | " + " | ".join(f"kB at {d:g}" for d in DIVERGENCES) + " | more at 0.01 |"
    yield "|---|" + "---|" * (len(DIVERGENCES) + 1)
    usual = 0.0
    for variant in VARIANTS:
        points = curve(compressor, variant, scratch)
        sizes = [at(points, d) for d in DIVERGENCES]
        usual = usual or sizes[1]
        cells = " | ".join(f"{s / 1000:.0f}" for s in sizes)
        yield f"| {variant.name} | {cells} | {sizes[1] / usual - 1:+.1%} |"
    saved = contexts(compressor, STEPS[1])
    yield f"| one table for each matrix instead of classes | | | | {saved / usual:+.1%} |"


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("model", type=Path)
    made.add_argument("calibration", type=Path)
    made.add_argument("heldout", type=Path)
    made.add_argument("--samples", type=int, default=64)
    made.add_argument("--held", type=int, default=16)
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    options = Options(calibration=given.calibration, samples=given.samples)
    compressor = Compressor(given.model, options)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    compressor.held = calibration.of_file(given.heldout, tokenizer, given.held, options.length)
    with tempfile.TemporaryDirectory() as scratch:
        for line in lines(compressor, Path(scratch)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
