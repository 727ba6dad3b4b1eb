"""How often 95 % intervals hold the truth, in simulated runs; the table of benchmarks.statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.made_up import TASKS, Generator, answers, pairs_of
from scorecard import resample
from scorecard.speed import speedup

SEED, RESAMPLES = 20261121, 1000


def coverage(runs: int) -> Iterator[list[str]]:
    yield ["interval", "documents", "covers the truth"]
    for name, documents, simulate in (
        ("Δ accuracy, 3 tasks, 1 % gained, 3 % lost", "750", _delta_of(0.01, 0.03)),
        ("Δ accuracy, 3 tasks, 8 % gained, 12 % lost", "750", _delta_of(0.08, 0.12)),
        ("recovery, 3 tasks, 3 % gained, 9 % lost", "750", _recovery),
        ("score of one case, 3 tasks", "750", _score),
        ("score of one case that is right on 97 %, 3 tasks", "180", _high_score),
        ("Δ accuracy, contexts of 1 to 12, clustered", "60 contexts", clustered(60, True)),
        ("Δ accuracy, contexts of 1 to 12, clustered", "20 contexts", clustered(20, True)),
        ("Δ accuracy, contexts of 1 to 12, as if independent", "60 contexts", clustered(60, False)),
        ("Δ over tasks taken as a sample, task effects normal", "8 tasks of 200", _over_tasks),
        ("Δ KL, documents of 20 to 60 tokens, skewed", "64", _kl(64)),
        ("speedup (ratio of p10), rounds of 16 samples", "20 rounds", _speed),
    ):
        hits = [
            simulate(np.random.default_rng([SEED, 5, len(name), len(documents), seed]))
            for seed in range(runs)
        ]
        yield [name, documents, f"{100 * np.mean(hits):.1f} %"]


def _holds(interval: resample.Interval | None, truth: float) -> bool:
    return interval is not None and interval.low - 1e-12 <= truth <= interval.high + 1e-12


def _three(generator: Generator, gained: float, lost: float) -> resample.Draws:
    pairs = {task: answers(generator, n, max(accuracy, lost), gained, lost) for task, n, accuracy in TASKS}
    return resample.draw(pairs, resamples=RESAMPLES)


def _delta_of(gained: float, lost: float) -> Callable[[Generator], bool]:
    return lambda generator: _holds(_three(generator, gained, lost).difference(), gained - lost)


def _recovery(generator: Generator) -> bool:
    mean = sum(accuracy for _, _, accuracy in TASKS) / len(TASKS)
    return _holds(_three(generator, 0.03, 0.09).ratio(), (mean - 0.06) / mean)


def _score(generator: Generator) -> bool:
    mean = sum(accuracy for _, _, accuracy in TASKS) / len(TASKS) - 0.06
    return _holds(_three(generator, 0.03, 0.09).first(1 / 0.25), mean / 0.25)


def _high_score(generator: Generator) -> bool:
    right = {task: (generator.random(60) < 0.97).astype(float) for task, _, _ in TASKS}
    return _holds(resample.draw(pairs_of(right, right), resamples=RESAMPLES).first(), 0.97)


def clustered(number: int, told: bool) -> Callable[[Generator], bool]:
    """Whether the interval of one run with `number` contexts holds the truth, when it is `told` of them."""

    def simulate(generator: Generator) -> bool:
        clusters = np.repeat(np.arange(number), generator.integers(1, 13, number))
        values = answers(generator, len(clusters), 0.7, 0.03, 0.07, clusters)
        draws = resample.draw({"x": values}, clusters={"x": clusters} if told else None, resamples=RESAMPLES)
        return _holds(draws.difference(), -0.04)

    return simulate


def _over_tasks(generator: Generator) -> bool:
    effects = np.clip(generator.normal(-0.04, 0.03, 8), -0.14, 0.06)
    deltas = [
        np.diff(answers(generator, 200, 0.7, (0.15 + e) / 2, (0.15 - e) / 2).mean(axis=0))[0] for e in effects
    ]
    return _holds(resample.over_tasks(-np.array(deltas)), -0.04)


def _kl(documents: int) -> Callable[[Generator], bool]:
    def simulate(generator: Generator) -> bool:
        tokens = generator.integers(20, 60, documents).astype(float)
        shared = generator.lognormal(-3, 0.5, documents)
        values = shared[:, None] * generator.lognormal(0, 0.3, (documents, 2)) * [1.2, 1.0]
        truth = 0.2 * math.exp(-3 + 0.125 + 0.045)
        return _holds(resample.weighted_difference(values, tokens, resamples=RESAMPLES)[0], truth)

    return simulate


def _speed(generator: Generator) -> bool:
    slow = np.repeat(1 + generator.exponential(0.05, 20), 16)
    theirs, ours = (base * slow * (1 + generator.exponential(0.02, 320)) for base in (1.3, 1.0))
    return _holds(speedup(list(theirs), list(ours), 20), 1.3)
