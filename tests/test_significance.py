"""Paired tests and Holm's correction against known values."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from scorecard.significance import holm, mcnemar, swap_p


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (5, 5, 1.0), (2, 10, 0.03857421875), (121, 59, 4.434444e-06)],
)
def test_mcnemar_known_values(gained: int, lost: int, p: float) -> None:
    """By hand: 2 * sum of binomial(n, k) / 2^n; (121, 59) is the table statsmodels is tested with."""
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-5)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_sum_of_binomials(gained: int, lost: int) -> None:
    n, few = gained + lost, min(gained, lost)
    tail = sum(comb(n, k) for k in range(few + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    if n:
        assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, n).pvalue)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=60))
def test_swaps_of_right_and_wrong_answers_are_mcnemar(differences: list[float]) -> None:
    found = swap_p(np.array(differences), resamples=10, seed=0)
    assert found == mcnemar(differences.count(1.0), differences.count(-1.0))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_swaps_of_clusters_agree_with_all_of_them(differences: list[int]) -> None:
    swaps = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))]
    exact = np.mean(np.array(swaps) >= abs(sum(differences)))
    assert swap_p(np.array(differences, float), resamples=512, seed=1) == pytest.approx(exact)


def test_random_swaps_agree_with_all_of_them() -> None:
    differences = np.array([3.0, -1, 2, 4, -2, 1, 1, 3, -4, 2, 1])
    exact = swap_p(differences, resamples=2048, seed=1)
    assert 0.05 < exact < 0.95
    assert swap_p(np.append(differences, np.zeros(5)), resamples=2048, seed=1) == exact
    drawn = [swap_p(differences, resamples=2000, seed=seed) for seed in range(5)]
    assert drawn == pytest.approx([exact] * 5, abs=0.035)
    assert len(set(drawn)) > 1


def test_holm_by_hand() -> None:
    """Holm 1979: 0.01 * 4, then 0.015 * 3, 0.03 * 2, and never below the one before."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.015})
    assert found == pytest.approx({"a": 0.04, "d": 0.045, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1), min_size=1))
def test_holm_lies_between_the_bare_p_and_bonferroni(ps: dict[str, float]) -> None:
    adjusted = holm(ps)
    assert adjusted.keys() == ps.keys()
    smallest = min(ps.values())
    assert min(adjusted.values()) == min(1.0, smallest * len(ps))
    for name, p in ps.items():
        assert p <= adjusted[name] <= min(1.0, p * len(ps))
        assert all(adjusted[other] <= adjusted[name] for other in ps if ps[other] <= p)
