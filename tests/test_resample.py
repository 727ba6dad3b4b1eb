"""The bootstrap against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ttest_rel

from scorecard import resample


def pairs_of(a: list[float], b: list[float]) -> np.ndarray:
    return np.stack([np.asarray(a, float), np.asarray(b, float)], axis=1)


@pytest.mark.parametrize(("lost", "gained"), [(0.06, 0.02), (0.01, 0.002), (0.0, 0.0), (0.2, 0.1)])
def test_interval_covers_the_truth(lost: float, gained: float) -> None:
    """300 experiments of 2 x 400 documents; 95 % coverage, give or take 3 standard errors of that count."""
    generator = np.random.default_rng(11)
    hits, experiments = 0, 300
    cells = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=float)
    chances = [lost, gained, 0.8 - lost, 0.2 - gained]
    for _ in range(experiments):
        pairs = {task: cells[generator.choice(4, 400, p=chances)] for task in "xy"}
        interval = resample.draw(pairs, resamples=400).difference()
        hits += interval.low - 1e-12 <= gained - lost <= interval.high + 1e-12
    assert hits / experiments >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / experiments)


def test_continuous_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(12)
    hits, experiments = 0, 200
    for _ in range(experiments):
        shared = generator.normal(size=80)
        pairs = pairs_of(shared + generator.normal(0.3, 1, 80), shared)
        interval = resample.draw({"x": pairs + 10}, resamples=400).difference()
        hits += interval.low <= 0.3 <= interval.high
    assert 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / experiments) <= hits / experiments <= 1


def test_multinomial_draws_agree_with_drawing_documents() -> None:
    """The shortcut for right-or-wrong answers, without its two added documents, is the plain bootstrap."""
    generator = np.random.default_rng(3)
    values = (generator.random((3000, 2)) < (0.8, 0.7)).astype(float)
    quick = resample.draw({"x": values}, resamples=4000).difference()
    slow = resample.draw({"x": values + 1e-9}, resamples=4000).difference()
    assert quick.low == pytest.approx(slow.low, abs=1.5e-3)
    assert quick.high == pytest.approx(slow.high, abs=1.5e-3)


def test_scales_offset_and_clamp() -> None:
    a = pairs_of([0.0] * 100, [0.0] * 100)
    below = resample.draw({"x": a}).difference(offset=0.5, scales=(1.0, 9.0))
    assert (below.value, below.low, below.high) == (0.0, 0.0, 0.0)
    b = pairs_of([1.0] * 1000, [1.0] * 1000)
    assert resample.draw({"x": b}).difference(scales=(2.0, 1.0)).value == pytest.approx(1.0)
    assert resample.draw({"x": b}).difference(scales=(2.0, 1.0)).excludes_zero


def test_same_seed_same_interval_and_bounded_memory() -> None:
    import tracemalloc

    values = np.random.default_rng(0).random((40_000, 2))
    tracemalloc.start()
    first = resample.draw({"x": values}, resamples=110).difference()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first == resample.draw({"x": values}, resamples=110).difference()
    assert peak < 130e6


def test_kl_p_is_exact_for_few_documents() -> None:
    """Five documents, all better: 2 of the 32 swaps are as far from 0."""
    pairs = pairs_of([1, 1, 1, 1, 1], [2, 2, 2, 2, 2])
    _, p = resample.weighted_difference(pairs, np.ones(5), resamples=20_000)
    assert p == pytest.approx(2 / 32, abs=0.006)


def test_kl_p_is_uniform_when_nothing_differs() -> None:
    generator = np.random.default_rng(5)
    ps = []
    for _ in range(200):
        pairs = generator.exponential(size=(20, 2))
        ps.append(resample.weighted_difference(pairs, np.ones(20), resamples=200)[1])
    counts = np.histogram(ps, bins=4, range=(0, 1.0001))[0]
    assert ((counts - 50) ** 2 / 50).sum() < chi2.ppf(0.999, 3)


def test_clustered_interval_covers_the_truth() -> None:
    """40 contexts of 1 to 12 documents whose answers change together; taken one by one it fails."""
    generator = np.random.default_rng(21)
    experiments = 200
    hits = np.zeros(2)
    for _ in range(experiments):
        sizes = generator.integers(1, 13, 40)
        clusters = np.repeat(np.arange(40), sizes)
        shift = generator.normal(0, 0.2, 40)[clusters]
        right = generator.random(len(clusters)) < 0.7
        lost = generator.random(len(clusters)) < np.clip(0.1 + shift, 0, 1)
        values = np.stack([right & ~lost, right], axis=1).astype(float)
        truth = -0.7 * EXPECTED_SHARE
        for way, groups in enumerate((clusters, None)):
            interval = draws_of(values, groups, 300).difference()
            hits[way] += interval.low <= truth <= interval.high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / experiments) <= hits[0] / experiments
    assert hits[1] / experiments < 0.9


def draws_of(values: np.ndarray, clusters: np.ndarray | None, resamples: int = 400) -> resample.Draws:
    grouped = None if clusters is None else {"x": clusters}
    return resample.draw({"x": values}, clusters=grouped, resamples=resamples)


#: E[clip(0.1 + N(0, 0.2), 0, 1)], by a sum over 10^6 points of the distribution.
EXPECTED_SHARE = 0.139559


def test_clusters_of_one_document_change_nothing() -> None:
    values = (np.random.default_rng(2).random((300, 2)) < 0.6).astype(float)
    apart, single = draws_of(values, None), draws_of(values, np.arange(300)[::-1])
    assert apart.difference() == single.difference()
    assert apart.degrees == pytest.approx(299)


def test_few_clusters_widen_the_interval_as_students_t_does() -> None:
    values = np.random.default_rng(4).normal(10, 1, size=(6, 2))
    differences = values[:, 0] - values[:, 1]
    found = draws_of(values, None, 20_000).difference()
    wanted = ttest_rel(values[:, 0], values[:, 1]).confidence_interval()
    assert found.high - found.low == pytest.approx(wanted.high - wanted.low, rel=0.1)
    assert found.high - found.low > 1.2 * 2 * 1.96 * differences.std() / 6**0.5


def test_p_is_that_of_students_t() -> None:
    generator = np.random.default_rng(9)
    for shift in (0.0, 0.1, 0.3):
        values = generator.normal(size=(60, 2)) + [shift, 0] + 10
        draws = draws_of(values, None, 20_000)
        assert draws.p() == pytest.approx(ttest_rel(values[:, 0], values[:, 1]).pvalue, rel=0.1)


def test_ratio() -> None:
    values = (np.random.default_rng(6).random((2000, 2)) < (0.6, 0.8)).astype(float)
    found = draws_of(values, None).ratio()
    assert found is not None
    assert found.value == pytest.approx(values[:, 0].mean() / values[:, 1].mean())
    assert found.low < 0.75 < found.high
    assert draws_of(np.zeros((10, 2)), None).ratio() is None


def test_a_case_alone_has_the_interval_of_a_proportion() -> None:
    right = (np.random.default_rng(8).random(500) < 0.7).astype(float)
    found = draws_of(np.stack([right, right], axis=1), None, 4000).first(scale=2.0)
    half = 1.96 * 2 * (right.mean() * (1 - right.mean()) / 500) ** 0.5
    assert found.value == pytest.approx(2 * right.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    perfect = draws_of(np.ones((500, 2)), None).first()
    assert 0.98 < perfect.low < perfect.high == 1.0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_intervals_hold_their_estimate(rows: list[tuple[bool, bool, int]]) -> None:
    values, clusters = np.array([r[:2] for r in rows], float), np.array([r[2] for r in rows])
    draws = draws_of(values, clusters, 100)
    for interval in (draws.difference(), draws.first(), draws.ratio()):
        assert interval is None or interval.low <= interval.value <= interval.high
    assert 0 <= draws.p() <= 1
    assert draws.difference().value == pytest.approx(values[:, 0].mean() - values[:, 1].mean())
    assert resample.cluster_sums(values, clusters)[:, 2].sum() == len(rows)
