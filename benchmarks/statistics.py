"""Do the statistics keep what they promise? Simulated cases with known truth; prints Markdown tables.

    python -m benchmarks.statistics [--runs 2000]

Every number is a share of simulated runs; its own standard error is at most sqrt(p (1 - p) / runs), half a
point at 2,000 runs and 5 %. Seeds are fixed. Under three minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.coverage import coverage
from benchmarks.made_up import TASKS, Array, Case, Generator, answers, flipped, pairs_of
from scorecard import power, resample, sequential
from scorecard.significance import holm, mcnemar, swap_p
from scorecard.spec import EarlyStop

SEED = 20261121
RESAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs of each line [%(default)s]")
    runs = parser.parse_args().runs
    begin = time.perf_counter()
    for title, table in (
        ("A/A: how often two equal cases are told apart at 5 %", false_positives),
        ("Power on the same documents, alpha 5 %", powers),
        ("Coverage of 95 % intervals", coverage),
        ("Early stopping, alpha 5 %, a look after each 50 documents", early),
    ):
        print(f"\n**{title}**\n")
        rows = table(runs)
        header = next(rows)
        print(f"| {' | '.join(header)} |\n|:--|{'--:|' * (len(header) - 1)}")
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{runs:,} runs a line, {time.perf_counter() - begin:.0f} s")


# -- A/A -----------------------------------------------------------------------------------------------------


def false_positives(runs: int) -> Iterator[list[str]]:
    yield ["comparison", "told apart"]
    for share in (0.02, 0.1):
        found = np.mean([_pair(share, seed) for seed in range(runs)], axis=0)
        for name, value in zip(("McNemar's p", "interval of Δ without 0", "p of Δ"), found, strict=True):
            yield [f"{name}; {100 * share:g} % of documents flip", percent(value)]
    found = np.mean([_family(seed) for seed in range(max(1, runs // 4))], axis=0)
    yield ["any of 15 pairs of 6 equal cases, no correction", percent(found[0])]
    yield ["any of 15 pairs of 6 equal cases, Holm", percent(found[1])]
    found = np.mean([_clustered_p(seed) for seed in range(runs)], axis=0)
    yield ["contexts shared by 10 documents, taken as 400 documents", percent(found[0])]
    yield ["contexts shared by 10 documents, swapped together", percent(found[1])]


def _truth(generator: Generator) -> Case:
    return {task: (generator.random(n) < accuracy).astype(float) for task, n, accuracy in TASKS}


def _pair(share: float, seed: int) -> list[bool]:
    generator = np.random.default_rng([SEED, 1, seed, int(1000 * share)])
    truth = _truth(generator)
    pairs = pairs_of(flipped(generator, truth, share / 2), flipped(generator, truth, share / 2))
    both = np.concatenate(list(pairs.values()))
    draws = resample.draw(pairs, resamples=RESAMPLES)
    p = swap_p(both[:, 0] - both[:, 1], RESAMPLES, seed)
    return [p <= 0.05, draws.difference().excludes_zero, draws.p() <= 0.05]


def _family(seed: int) -> list[bool]:
    generator = np.random.default_rng([SEED, 2, seed])
    truth = _truth(generator)
    cases = [flipped(generator, truth, 0.03) for _ in range(6)]
    draws = (resample.draw(pairs_of(a, b), resamples=300) for a, b in itertools.combinations(cases, 2))
    ps = {str(number): drawn.p() for number, drawn in enumerate(draws)}
    return [min(ps.values()) <= 0.05, min(holm(ps).values()) <= 0.05]


def _clustered_p(seed: int) -> list[bool]:
    generator = np.random.default_rng([SEED, 3, seed])
    clusters = np.repeat(np.arange(40), 10)
    values = answers(generator, 400, 0.7, 0.05, 0.05, clusters)
    sums = resample.cluster_sums(values, clusters)
    apart = swap_p(values[:, 0] - values[:, 1], RESAMPLES, seed)
    together = swap_p(sums[:, 0] - sums[:, 1], RESAMPLES, seed)
    return [apart <= 0.05, together <= 0.05]


# -- power ---------------------------------------------------------------------------------------------------


def powers(runs: int) -> Iterator[list[str]]:
    yield [
        "documents",
        "Δ points",
        "differ %",
        "McNemar",
        "formula",
        "unpaired",
        "documents for 80 %: McNemar",
        "unpaired",
    ]
    for documents, delta, differ in (
        (500, 0.03, 0.05),
        (1000, 0.02, 0.06),
        (1000, 0.03, 0.15),
        (4000, 0.01, 0.05),
    ):
        generator = np.random.default_rng([SEED, 4, documents, int(1000 * delta)])
        gained, lost = (differ - delta) / 2, (differ + delta) / 2
        found = np.mean(
            [_tests(answers(generator, documents, 0.7, gained, lost)) for _ in range(runs)], axis=0
        )
        yield [
            f"{documents:,}",
            f"{-100 * delta:g}",
            f"{100 * differ:g}",
            percent(found[0]),
            percent(power.exact_power(documents, gained, lost)),
            percent(found[1]),
            f"{power.paired_documents(delta, differ):,}",
            f"{power.unpaired_documents(0.7, 0.7 - delta):,}",
        ]


def _tests(values: Array) -> list[bool]:
    """McNemar's exact test and the z test of two independent proportions."""
    first, second = values.T
    mean, n = values.mean(), len(values)
    z = abs(first.mean() - second.mean()) / math.sqrt(2 * mean * (1 - mean) / n)
    return [mcnemar(int((first > second).sum()), int((first < second).sum())) <= 0.05, z >= 1.959964]


# -- early stopping ------------------------------------------------------------------------------------------


def early(runs: int) -> Iterator[list[str]]:
    yield [
        "gained %, lost %",
        "of documents",
        "margin",
        "first",
        "second",
        "equal",
        "documents scored",
        "repeated McNemar",
    ]
    for gained, lost, documents, margin in (
        (0.05, 0.05, 4000, None),
        (0.01, 0.01, 4000, None),
        (0.03, 0.07, 4000, None),
        (0.02, 0.12, 4000, None),
        (0.02, 0.05, 4000, 0.03),
        (0.01, 0.01, 4000, 0.03),
    ):
        generator = np.random.default_rng([SEED, 6, int(1000 * gained), int(1000 * lost)])
        spec = EarlyStop(margin=margin)
        found = [_stop(generator, gained, lost, documents, spec) for _ in range(runs)]
        verdicts = [verdict for verdict, _, _ in found]
        yield [
            f"{100 * gained:g}, {100 * lost:g}",
            f"{documents:,}",
            "–" if margin is None else f"{100 * margin:g} points",
            *(percent(verdicts.count(word) / runs) for word in ("first", "second", "equal")),
            f"{np.mean([scored for _, scored, _ in found]):,.0f}",
            percent(np.mean([naive for _, _, naive in found])),
        ]


def _stop(
    generator: Generator, gained: float, lost: float, documents: int, spec: EarlyStop
) -> tuple[str | None, int, bool]:
    """The verdict, the documents it took, and whether McNemar at 5 % would have stopped at some look."""
    ends = range(spec.every, documents + 1, spec.every)
    steps = generator.multinomial(spec.every, [gained, lost, 1 - gained - lost], size=len(ends))
    counts = np.cumsum(steps, axis=0)
    verdict: str | None = None
    scored, naive = documents, False
    for end, (more, fewer, _) in zip(ends, counts.tolist(), strict=True):
        naive = naive or mcnemar(more, fewer) <= 0.05
        if verdict is None and (verdict := sequential.decided(more, fewer, end, spec)):
            scored = end
        if verdict and naive:
            break
    return verdict, scored, naive


def percent(value: float) -> str:
    return f"{100 * float(value):.1f} %"


if __name__ == "__main__":
    main()
