"""What each part of rdq is worth: bytes of the whole folder, tokenizer excluded, at equal divergence.

    python -m benchmarks.rdq_ablation embedded/tiny-llama embedded/calibration.jsonl embedded/heldout.jsonl

Each variant leaves out or changes one part and is compressed at a few step constants; its bytes at a
divergence are read off the line between the two nearest, both in logarithms. Everything is repeated with
other sequences of the calibration text; the variants of one repeat share them, so that differences are taken
within it. The damping is 0.01 throughout.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from rdq import calibration, side
from rdq.compress import Compressor, Options
from rdq.lengths import entropy_bits
from rdq.matrices import Matrix
from rdq.quantize import Quantized, Settings
from rdq.report import Report
from rdq.statistics import Statistics

DIVERGENCES = (0.003, 0.01, 0.03)
STEPS = (0.9e-4, 1.6e-4, 2.8e-4)
CONTEXTS = ("one table for the whole file", "a table for each matrix")
Point = tuple[float, float]  # divergence, bytes


@dataclass(frozen=True)
class Variant:
    """``change`` gets a copy of the compressor and a scratch folder; what it returns is added to the bytes.

    ``scale``: what the step constants are multiplied by, for like divergences.
    """

    name: str
    settings: Settings = Settings()  # noqa: RUF009 - frozen
    change: Callable[[Compressor, Path], float] = lambda compressor, scratch: 0.0
    scale: float = 1.0


def _even_rows(compressor: Compressor, _: Path) -> float:
    for name, found in compressor.statistics.items():
        rows = np.full_like(found.sensitivity, found.sensitivity.mean())
        compressor.statistics[name] = Statistics(found.hessian, rows)
    return 0.0


def _by_output_power(compressor: Compressor, _: Path) -> float:
    """Each matrix on its own: equal errors relative to its outputs, whatever they do to the predictions."""
    for matrix in compressor.matrices:
        found, weight = compressor.statistics[matrix.name], compressor.weight(matrix).float()
        power = float(((weight @ found.hessian) * weight).sum(1).mean())
        rows = found.sensitivity / found.sensitivity.mean() / max(power, 1e-30)
        compressor.statistics[matrix.name] = Statistics(found.hessian, rows)
    return 0.0


def _outer(compressor: Compressor) -> list[Matrix]:
    """Embedding and lm_head, taken out of what is compressed."""
    outer = [matrix for matrix in compressor.matrices if matrix.kind != "body"]
    compressor.matrices = [matrix for matrix in compressor.matrices if matrix.kind == "body"]
    return outer


def _outer_as_it_is(compressor: Compressor, _: Path) -> float:
    _outer(compressor)
    return 0.0


def _outer_in_eight_bits(compressor: Compressor, scratch: Path) -> float:
    """Rounded to nearest, an absolute maximum in 16 bits for each row. They are written in 16 bits: the half
    that they would not need is taken off.
    """
    rounded: dict[str, torch.Tensor] = {}
    off = 0.0
    for matrix in _outer(compressor):
        weight = compressor.weight(matrix).float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded[matrix.name] = ((weight / scale).round() * scale).bfloat16().contiguous()
        off += weight.numel() - 2 * len(weight)
    path = scratch / "outer.safetensors"
    save_file(rounded, path)
    compressor.tensors = compressor.tensors | dict.fromkeys(rounded, path)
    return -off


def _with_drift(compressor: Compressor, _: Path) -> float:
    compressor.options = replace(compressor.options, drift=0.5)
    return 0.0


VARIANTS = (
    Variant("no error feedback", Settings(feedback=False), scale=1.3),
    Variant("no rate term (nearest point)", Settings(kappa=0.0)),
    Variant("trellis of 4 states", Settings(states=4)),
    Variant("scalar quantizer (1 state)", Settings(states=1), scale=1.4),
    Variant("one pass, Gaussian code lengths", Settings(passes=1)),
    Variant("no steps by row", change=_even_rows),
    Variant("each matrix on its own instead of one trade-off", change=_by_output_power, scale=50.0),
    Variant("embedding and lm_head in 16 bits", change=_outer_as_it_is),
    Variant("embedding and lm_head in 8 bits, rounded", change=_outer_in_eight_bits),
    Variant("with `drift: 0.5`", change=_with_drift),
    Variant("steps by row in full, not by half", Settings(row_part=1.0)),
)


def curve(compressor: Compressor, variant: Variant, scratch: Path) -> list[Point]:
    """(divergence, bytes) for each step constant."""
    changed = copy.copy(compressor)
    changed.settings, changed.statistics = variant.settings, dict(compressor.statistics)
    changed.forget()
    more = variant.change(changed, scratch)
    points = []
    for step in STEPS:
        report = _compressed(changed, step * variant.scale, scratch)
        points.append((report.kl or 0.0, report.weight_bytes + more))
    return points


def _compressed(compressor: Compressor, step: float, scratch: Path) -> Report:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return compressor.compress(step, Path(folder) / "out")


def with_contexts(compressor: Compressor, scratch: Path) -> dict[str, list[Point]]:
    """The curves of all of it, and of the same codes with fewer tables, whose side vectors need no spreads.

    The tables themselves, a few dozen bytes each, are not counted.
    """
    found: dict[str, list[Point]] = {name: [] for name in ("all of it", *CONTEXTS)}
    quantized: list[Quantized] = []
    recording = copy.copy(compressor)

    def recorded(c: float, every: int = 1) -> Iterator[tuple[Matrix, Quantized]]:
        for matrix, one in compressor.quantized(c, every):
            quantized.append(one)
            yield matrix, one

    recording.quantized = recorded  # type: ignore[method-assign]
    for step in STEPS:
        quantized.clear()
        report = _compressed(recording, step, scratch)
        kl, size = report.kl or 0.0, report.weight_bytes
        counts = np.stack([one.counts for one in quantized])
        spreads = sum(_spread_bytes(one) for one in quantized)
        by_class = entropy_bits(counts.sum(0))
        whole = entropy_bits(counts.sum((0, 1)))
        by_matrix = sum(entropy_bits(one.sum(0)) for one in counts)
        found["all of it"].append((kl, size))
        for name, bits in zip(CONTEXTS, (whole, by_matrix), strict=True):
            found[name].append((kl, size - spreads + (bits - by_class) / 8))
    return found


def _spread_bytes(one: Quantized) -> int:
    m = one.coded
    rows, columns = (np.full_like(spread, 128) for spread in (m.row_spread, m.column_spread))
    scales: tuple[Any, Any] = m.row_scale, m.column_scale
    return len(side.pack(*scales, m.row_spread, m.column_spread)) - len(side.pack(*scales, rows, columns))


def at(points: Sequence[Point], divergence: float) -> float:
    """Bytes at a divergence, on the line through the nearest two points."""
    ordered = sorted(points)
    x, y = np.log([p[0] for p in ordered]), np.log([p[1] for p in ordered])
    aim = np.log(divergence)
    i = int(np.clip(np.searchsorted(x, aim), 1, len(x) - 1))
    return float(np.exp(y[i - 1] + (aim - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])))


def repeat(compressor: Compressor, only: str, scratch: Path) -> Iterator[tuple[str, list[float]]]:
    """(name, bytes at each of ``DIVERGENCES``): the whole, then variants with ``only`` in their names."""
    curves = list(with_contexts(compressor, scratch).items())
    named = (variant for variant in VARIANTS if only in variant.name)
    for name, points in chain(curves, ((v.name, curve(compressor, v, scratch)) for v in named)):
        print(f"{name}:", ", ".join(f"{kl:.5f} at {size:.0f}" for kl, size in points), flush=True)
        yield name, [at(points, divergence) for divergence in DIVERGENCES]


def table(repeats: Sequence[Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Markdown: kB of all of it, how much more the others take; mean ± standard deviation of the repeats."""
    yield "| | " + " | ".join(f"at {d:g}" for d in DIVERGENCES) + " |"
    yield "|---|" + "---|" * len(DIVERGENCES)
    whole = np.array([one["all of it"] for one in repeats])
    for name in repeats[0]:
        sizes = np.array([one[name] for one in repeats])
        if name == "all of it":
            cells = [f"{m / 1e3:.0f} ± {s / 1e3:.0f} kB" for m, s in _spread(sizes)]
        else:
            cells = [f"{100 * m:+.1f} ± {100 * s:.1f} %" for m, s in _spread(sizes / whole - 1)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _spread(values: Any) -> list[tuple[float, float]]:
    deviations = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return list(zip(values.mean(0), deviations, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("model", type=Path)
    made.add_argument("calibration", type=Path)
    made.add_argument("heldout", type=Path)
    made.add_argument("--samples", type=int, default=64, help="calibration sequences of a repeat")
    made.add_argument("--held", type=int, default=32, help="sequences that divergence is measured on")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--seed", type=int, default=0, help="of the first repeat")
    made.add_argument("--only", default="", metavar="WORDS", help="variants with these words in their names")
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    length = Options().length
    everything = calibration.of_file(given.calibration, tokenizer, 10**6, length)
    repeats = []
    for seed in range(given.seed, given.seed + given.repeats):
        chosen = random.Random(seed).sample(everything, min(given.samples, len(everything)))
        compressor = Compressor(given.model, Options(calibration=chosen, seed=seed, damping=0.01))
        compressor.held = calibration.of_file(given.heldout, tokenizer, given.held, length)
        with tempfile.TemporaryDirectory() as scratch:
            repeats.append(dict(repeat(compressor, given.only, Path(scratch))))
        for line in table(repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
