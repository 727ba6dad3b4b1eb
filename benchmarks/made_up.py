"""Made-up answers of two cases with known truth, for benchmarks.statistics."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
Generator = np.random.Generator
Case = dict[str, Array]
TASKS = (("a", 200, 0.8), ("b", 400, 0.6), ("c", 150, 0.3))  # name, documents, accuracy


def answers(
    generator: Generator,
    documents: int,
    accuracy: float,
    gained: float,
    lost: float,
    clusters: Array | None = None,
) -> Array:
    """(documents, 2): the second column is right with `accuracy`; the first differs as often as the two
    shares say. With `clusters`, the chance to differ varies from cluster to cluster, between none and four
    times the mean, and all that differ in one cluster go the same way."""
    if clusters is None:
        cells = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], float)
        both = accuracy - lost
        return cells[generator.choice(4, documents, p=[gained, lost, both, 1 - both - gained - lost])]
    number = int(clusters.max()) + 1
    share = 4 * (gained + lost) * (generator.random(number) < 0.25)
    upward = generator.random(number) < gained / (gained + lost)
    differs = generator.random(documents) < share[clusters]
    right = generator.random(documents) < accuracy
    first = np.where(differs, upward[clusters], right)
    second = np.where(differs, ~upward[clusters], right)
    return np.stack([first, second], axis=1).astype(float)


def flipped(generator: Generator, truth: Case, share: float) -> Case:
    """A case whose answers are those of `truth` but for independent flips, as many gained as lost."""
    made = {}
    for task, right in truth.items():
        accuracy = right.mean()
        odds = np.where(right == 1, share / (2 * accuracy), share / (2 * (1 - accuracy)))
        made[task] = np.where(generator.random(len(right)) < odds, 1 - right, right)
    return made


def pairs_of(a: Case, b: Case) -> dict[str, Array]:
    return {task: np.stack([a[task], b[task]], axis=1) for task in a}
