"""Early stopping: evidence against scipy's integrals, and error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from scorecard import sequential
from scorecard.spec import EarlyStop

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 300))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 1), (0, 8), (20, 9)])
def test_evidence_is_the_averaged_likelihood_ratio(gained: int, lost: int) -> None:
    def average(angle: float) -> float:  # Beta(1/2, 1/2) is uniform in the angle
        share = math.sin(angle) ** 2
        return share**gained * (1 - share) ** lost * 2 / math.pi

    wanted = quad(average, 0, math.pi / 2)[0] * 2 ** (gained + lost)
    assert sequential.log_evidence(gained, lost) == pytest.approx(math.log(wanted), abs=1e-9)


@given(COUNTS, st.floats(0.001, 0.9))
def test_the_greatest_likelihood_is_the_greatest(counts: tuple[int, int, int], margin: float) -> None:
    gained, lost, same = counts

    def negative(share: float) -> float:
        shares = (share + margin, share, 1 - margin - 2 * share)
        return -sum(c * math.log(max(p, 1e-300)) for c, p in zip(counts, shares, strict=True))

    found = sequential._log_greatest(gained, lost, gained + lost + same, margin)
    search = minimize_scalar(negative, bounds=(0, (1 - margin) / 2), method="bounded")
    assert found >= -search.fun - 1e-6 * (1 + abs(search.fun))
    ends = (negative(1e-12), negative((1 - margin) / 2 - 1e-12), search.fun)
    assert found <= -min(ends) + 1e-4 * (1 + abs(min(ends)))


@given(COUNTS)
def test_swapping_the_cases_swaps_the_verdict(counts: tuple[int, int, int]) -> None:
    gained, lost, _ = counts
    spec = EarlyStop(margin=0.05)
    there, back = (sequential.decided(*c, sum(counts), spec) for c in ((gained, lost), (lost, gained)))
    assert {None: None, "equal": "equal", "first": "second", "second": "first"}[there] == back
    interval, other = (
        sequential.interval(gained, lost, sum(counts)),
        sequential.interval(lost, gained, sum(counts)),
    )
    assert (interval.low, interval.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    if there == "equal":
        assert interval.low + 1e-6 >= -0.05
        assert interval.high <= 0.05 + 1e-6


def walks(shares: tuple[float, float], units: int, runs: int, seed: int) -> np.ndarray:
    """Counts (runs, units, 2) of gains and losses after each document."""
    drawn = np.random.default_rng(seed).random((runs, units, 1))
    gained, lost = drawn < shares[0], (drawn >= shares[0]) & (drawn < sum(shares))
    return np.cumsum(np.concatenate([gained, lost], axis=2), axis=1)


def verdicts(
    shares: tuple[float, float], units: int, runs: int, spec: EarlyStop, seed: int = 1
) -> list[str | None]:
    found: list[str | None] = []
    for walk in walks(shares, units, runs, seed):
        ends = range(spec.every, units + 1, spec.every)
        seen = (sequential.decided(*map(int, walk[end - 1]), end, spec) for end in ends)
        found.append(next((verdict for verdict in seen if verdict), None))
    return found


def test_equal_cases_are_told_apart_no_more_often_than_stated() -> None:
    """Looked at 100 times each; an ordinary 5 % test would be wrong in a third of the runs."""
    found = verdicts((0.05, 0.05), 2000, 400, EarlyStop(every=20))
    wrong = sum(verdict is not None for verdict in found) / len(found)
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert wrong < 0.05


def test_cases_at_the_margin_are_called_equal_no_more_often_than_stated() -> None:
    spec = EarlyStop(alpha=0.05, margin=0.03, every=50)
    found = verdicts((0.08, 0.05), 3000, 200, spec)
    assert found.count("equal") / len(found) <= 0.05
    assert found.count("second") == 0
    assert found.count("first") > 20


def test_clear_cases_are_decided_early_and_rightly() -> None:
    assert set(verdicts((0.02, 0.12), 1000, 50, EarlyStop())) == {"second"}
    assert set(verdicts((0.12, 0.02), 1000, 50, EarlyStop())) == {"first"}
    equal = verdicts((0.005, 0.005), 3000, 50, EarlyStop(margin=0.03))
    assert equal.count("equal") >= 45


def test_the_interval_holds_at_all_looks_together() -> None:
    missed = 0
    for walk in walks((0.03, 0.08), 1500, 150, 2):
        intervals = [sequential.interval(*map(int, walk[end - 1]), end) for end in range(50, 1501, 50)]
        missed += not all(i.low <= -0.05 <= i.high for i in intervals)
    assert missed / 150 <= 0.05


def test_clusters_are_units() -> None:
    values = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1]], float)
    assert sequential.tally(values) == (2, 2, 5)
    assert sequential.tally(values, np.array([0, 0, 0, 3, 4])) == (1, 1, 3)


@given(st.lists(st.integers(0, 8), max_size=40), st.integers(0, 99), st.integers(1, 10))
def test_order_and_looks(clusters: list[int], seed: int, every: int) -> None:
    ordered = sequential.order("task", clusters, seed)
    assert sorted(ordered) == list(range(len(clusters)))
    assert ordered == sequential.order("task", clusters, seed)
    groups = [clusters[place] for place in ordered]
    assert len([g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g]) == len(set(groups))
    parts = sequential.looks(ordered, clusters, every)
    assert [place for part in parts for place in part] == ordered
    assert all(len(part) >= every for part in parts[:-1])
    held = [{clusters[place] for place in part} for part in parts]
    assert all(not a & b for i, a in enumerate(held) for b in held[:i])


def test_the_order_is_fixed_for_ever_and_its_own_for_each_task() -> None:
    """Another order would score other documents for a case that is scored later."""
    assert sequential.order("piqa", range(10), 1234) == PIQA
    assert sequential.order("arc_easy", range(10), 1234) != PIQA
    assert sequential.order("piqa", range(10), 1) != PIQA


PIQA = [8, 3, 2, 0, 4, 1, 7, 9, 5, 6]
