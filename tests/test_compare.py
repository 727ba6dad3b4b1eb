"""Paired statistics against known truth."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2
from synthetic import TASKS, frame

from scorecard import compare, resample
from scorecard.errors import ComparisonError

METRICS = dict.fromkeys(TASKS, "acc")


def pairs_of(a: list[float], b: list[float]) -> np.ndarray:
    return np.stack([np.asarray(a, float), np.asarray(b, float)], axis=1)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (5, 5, 1.0), (2, 10, 0.03857421875), (121, 59, 4.434444e-06)],
)
def test_mcnemar_known_values(gained: int, lost: int, p: float) -> None:
    """By hand: 2 * sum of binomial(n, k) / 2^n; (121, 59) is the table statsmodels is tested with."""
    assert resample.mcnemar(gained, lost) == pytest.approx(p, rel=1e-5)
    assert resample.mcnemar(lost, gained) == resample.mcnemar(gained, lost)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_sum_of_binomials(gained: int, lost: int) -> None:
    n, few = gained + lost, min(gained, lost)
    tail = sum(comb(n, k) for k in range(few + 1)) / 2**n
    assert resample.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    if n:
        assert resample.mcnemar(gained, lost) == pytest.approx(binomtest(gained, n).pvalue)


def test_paired_counts_and_difference() -> None:
    a, b = frame(0.1, 0.05, seed=5), frame(0.0, 0.0)
    found = compare.paired(a, b, METRICS)
    wide = a.merge(b, on=["task", "doc", "metric"], suffixes=("_a", "_b"))
    wide = wide[wide["metric"] == "acc"]
    assert found.lost == int(((wide.value_b == 1) & (wide.value_a == 0)).sum())
    assert found.gained == 0
    assert found.flips == found.lost
    assert found.documents == len(wide)
    means = wide.groupby("task")[["value_a", "value_b"]].mean()
    assert found.delta_accuracy is not None
    assert found.delta_accuracy.value == pytest.approx((means.value_a - means.value_b).mean())
    assert found.delta_accuracy.excludes_zero
    assert found.mcnemar_p == resample.mcnemar(0, found.lost)
    assert set(found.tasks) == set(TASKS)


def test_order_of_rows_does_not_matter() -> None:
    a, b = frame(0.1, 0.05, seed=5), frame(0.05, 0.02, seed=6)
    mixed = a.sample(frac=1, random_state=1)
    assert compare.paired(mixed, b, METRICS) == compare.paired(a, b, METRICS)


def test_swapping_the_cases_turns_the_signs() -> None:
    a, b = frame(0.1, 0.05, seed=5), frame(0.05, 0.02, seed=6)
    there, back = compare.paired(a, b, METRICS), compare.paired(b, a, METRICS)
    assert there.delta_accuracy is not None
    assert back.delta_accuracy is not None
    assert there.delta_accuracy.value == pytest.approx(-back.delta_accuracy.value)
    assert (there.gained, there.lost, there.mcnemar_p) == (back.lost, back.gained, back.mcnemar_p)
    assert there.kl_p == pytest.approx(back.kl_p, abs=0.02)


def test_no_flips_still_has_a_width_that_shrinks_with_documents() -> None:
    widths = []
    for documents in (50, 500, 5000):
        found = compare.paired(frame(documents=documents), frame(documents=documents), METRICS)
        assert found.delta_accuracy is not None
        assert found.delta_accuracy.low < 0 == found.delta_accuracy.value < found.delta_accuracy.high
        assert found.mcnemar_p == 1.0
        widths.append(found.delta_accuracy.high - found.delta_accuracy.low)
    assert widths[0] > 5 * widths[1] > 25 * widths[2]


@pytest.mark.parametrize(("lost", "gained"), [(0.06, 0.02), (0.01, 0.002), (0.0, 0.0), (0.2, 0.1)])
def test_interval_covers_the_truth(lost: float, gained: float) -> None:
    """300 experiments of 2 x 400 documents; 95 % coverage, give or take 3 standard errors of that count."""
    generator = np.random.default_rng(11)
    hits, experiments = 0, 300
    cells = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=float)
    chances = [lost, gained, 0.8 - lost, 0.2 - gained]
    for _ in range(experiments):
        pairs = {task: cells[generator.choice(4, 400, p=chances)] for task in "xy"}
        interval = resample.difference(pairs, resamples=400)
        hits += interval.low - 1e-12 <= gained - lost <= interval.high + 1e-12
    assert hits / experiments >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / experiments)


def test_continuous_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(12)
    hits, experiments = 0, 200
    for _ in range(experiments):
        shared = generator.normal(size=80)
        pairs = pairs_of(shared + generator.normal(0.3, 1, 80), shared)
        interval = resample.difference({"x": pairs + 10}, resamples=400)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / experiments) <= hits / experiments <= 1


def test_multinomial_draws_agree_with_drawing_documents() -> None:
    """The shortcut for right-or-wrong answers, without its two added documents, is the plain bootstrap."""
    generator = np.random.default_rng(3)
    values = (generator.random((3000, 2)) < (0.8, 0.7)).astype(float)
    quick = resample.difference({"x": values}, resamples=4000)
    slow = resample.difference({"x": values + 1e-9}, resamples=4000)
    assert quick.low == pytest.approx(slow.low, abs=1.5e-3)
    assert quick.high == pytest.approx(slow.high, abs=1.5e-3)


def test_scales_offset_and_clamp() -> None:
    a = pairs_of([0.0] * 100, [0.0] * 100)
    below = resample.difference({"x": a}, offset=0.5, scales=(1.0, 9.0))
    assert (below.value, below.low, below.high) == (0.0, 0.0, 0.0)
    b = pairs_of([1.0] * 1000, [1.0] * 1000)
    assert resample.difference({"x": b}, scales=(2.0, 1.0)).value == pytest.approx(1.0)
    assert resample.difference({"x": b}, scales=(2.0, 1.0)).excludes_zero


def test_same_seed_same_interval_and_bounded_memory() -> None:
    import tracemalloc

    values = np.random.default_rng(0).random((40_000, 2))
    tracemalloc.start()
    first = resample.difference({"x": values}, resamples=110)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first == resample.difference({"x": values}, resamples=110)
    assert peak < 130e6


def test_kl_of_two_cases() -> None:
    near, far = frame(0.0, 0.02, seed=1), frame(0.0, 0.06, seed=2)
    found = compare.paired(near, far, METRICS)
    assert found.delta_kl is not None
    assert found.delta_kl.high < 0
    assert found.kl_p == pytest.approx(1 / (1 + resample.RESAMPLES))
    tokens = near[near.metric == "tokens"].value.to_numpy()
    parts = (near[near.metric == "kl"].value.to_numpy() - far[far.metric == "kl"].value.to_numpy()) * tokens
    assert found.delta_kl.value == pytest.approx(parts.sum() / tokens.sum())
    same = compare.paired(near, near, METRICS)
    assert same.kl_p == 1.0


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


def without(table: pd.DataFrame, task: str, documents: list[int]) -> pd.DataFrame:
    return table[~((table["task"] == task) & table["doc"].isin(documents))]


FRAME = frame()
INFINITE = FRAME.assign(value=FRAME.value / (FRAME.task != "pairs"))
RETOKENIZED = FRAME.assign(value=FRAME.value + (FRAME.metric == "tokens"))
UNCOMPARABLE = {
    r"cloze: 4 documents only in the second case \(such as 3, 4, 5\)": (
        without(FRAME, "cloze", [3, 4, 5, 6]),
        FRAME,
    ),
    r"pairs: 1 documents only in the first case \(such as 7\)": (FRAME, without(FRAME, "pairs", [7])),
    r"cloze: 390 documents only in the first": (FRAME, frame(documents=10)),
    r"pairs: a case has no documents with 'acc'": (FRAME[FRAME.task != "pairs"], FRAME),
    r"pairs: document 0 has 'acc' twice": (pd.concat([FRAME, FRAME.head(1)]), FRAME),
    r"pairs: 'acc' is not finite": (INFINITE, FRAME),
    r"heldout: token counts differ": (RETOKENIZED, FRAME),
}


@pytest.mark.parametrize("message", UNCOMPARABLE)
def test_what_cannot_be_compared_says_why(message: str) -> None:
    a, b = UNCOMPARABLE[message]
    with pytest.raises(ComparisonError, match=message) as caught:
        compare.paired(a, b, METRICS)
    assert "\n" not in str(caught.value)


def test_frames_without_heldout_text_have_no_kl() -> None:
    plain = frame()[lambda t: t.task != "heldout"]
    for other in (plain, frame(kl=float("inf"))):
        found = compare.paired(other, frame(), METRICS)
        assert (found.delta_kl, found.kl_p) == (None, None)
        assert found.delta_accuracy is not None


def test_no_accuracy_tasks() -> None:
    found = compare.paired(frame(), frame(kl=0.1), {})
    assert (found.delta_accuracy, found.mcnemar_p, found.flips, found.documents) == (None, None, None, 0)
    assert found.delta_kl is not None


def test_values_between_right_and_wrong_have_no_mcnemar() -> None:
    a = frame().assign(value=lambda t: t.value.where(t.metric != "acc", t.value / 2))
    found = compare.paired(a, frame(), METRICS)
    assert found.mcnemar_p is None
    assert found.flips is None
    assert found.delta_accuracy is not None


def test_read_documents(tmp_path) -> None:
    path = tmp_path / "documents.parquet"
    with pytest.raises(ComparisonError, match="no per-document results"):
        compare.read_documents(path)
    frame().drop(columns="value").to_parquet(path)
    with pytest.raises(ComparisonError, match="no column value"):
        compare.read_documents(path)
    frame().to_parquet(path)
    pd.testing.assert_frame_equal(compare.read_documents(path), frame(), check_dtype=False)
