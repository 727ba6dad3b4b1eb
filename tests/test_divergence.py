"""What is kept of a distribution, and the divergence from it, against the full vocabulary in float64."""

from __future__ import annotations

import dataclasses
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorecard import kept as module
from scorecard.divergence import Divergence, divergence
from scorecard.kept import Kept, id_bytes, keep, kept_whole, normalized


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full(original: torch.Tensor, candidate: torch.Tensor) -> float:
    """Sum over rows of KL(original || candidate) of two tensors of logits."""
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (original, candidate))
    return float((p.exp() * (p - q)).nan_to_num(0.0).sum())


def unrounded(original: torch.Tensor, count: int, seed: int = 0) -> Kept:
    """``keep`` without the rounding to float16, so that only the truncation is left."""
    with patch.object(module, "_half", lambda logprobs: logprobs):
        return keep(original, generator(seed), count)


def logits(vocabulary: int, rows: int, spread: float, boost: float, seed: int) -> torch.Tensor:
    """A bell curve of logits, and some tokens above it."""
    torch.manual_seed(seed)
    values = spread * torch.randn(rows, vocabulary)
    return values.scatter_add(1, torch.randint(vocabulary, (rows, 8)), boost * torch.rand(rows, 8))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of logits [rows, vocabulary], near to each other or not, some ending in flat tails."""
    vocabulary, rows = draw(st.integers(40, 400)), draw(st.integers(1, 12))
    spread, boost, noise = draw(st.floats(0, 6)), draw(st.floats(0, 20)), draw(st.floats(0, 8))
    original = logits(vocabulary, rows, spread, boost, draw(st.integers(0, 1000)))
    candidate = original + noise * torch.randn(original.shape)
    for place, value in draw(st.lists(st.tuples(st.integers(0, 39), st.floats(-40, 40)), max_size=4)):
        candidate[:, place] = value  # one token, far from where the original has it
    return original, candidate


@settings(max_examples=100, deadline=None)
@given(pairs(), st.integers(1, 12))
def test_the_full_divergence_lies_where_it_is_said_to_lie(
    pair: tuple[torch.Tensor, torch.Tensor], count: int
) -> None:
    original, candidate = pair
    truth, slack = full(original, candidate), 2e-5 * len(original)
    found = divergence(unrounded(original, count), normalized(candidate))
    low, high = found.interval()
    assert low <= high
    assert low - slack <= truth <= high + slack
    assert found.low - slack <= truth <= found.high + slack


@pytest.mark.parametrize("noise", [0.01, 0.15, 1.2])
def test_rounding_and_truncation_are_far_below_the_sampling_error(noise: float) -> None:
    original = logits(8000, 96, 2.2, 14.0, 5)
    candidate = original + noise * torch.randn(original.shape)
    rows = [full(original[i : i + 1], candidate[i : i + 1]) for i in range(96)]
    stderr = float(torch.tensor(rows).std()) * math.sqrt(96)
    kept = keep(original, generator())
    assert kept.others is not None
    assert kept.others.tail[:, 0].exp().mean() > 0.02  # else nothing is truncated
    found = divergence(kept, normalized(candidate))
    error = abs(found.value(found.control_helps) - sum(rows))
    assert error < 0.1 * stderr
    assert abs(found.low - sum(rows)) > 2 * error  # the draws are worth their bytes


def test_where_all_others_are_as_far_off_the_estimate_is_exact() -> None:
    original = logits(300, 4, 1.0, 6.0, 1)
    candidate = original.scatter_add(1, original.topk(8).indices, torch.full((4, 8), 2.0))
    found = divergence(unrounded(original, 8), normalized(candidate))
    truth = pytest.approx(full(original, candidate), rel=1e-4)
    assert (found.value(), found.value(controlled=True), found.low) == (truth, truth, truth)


def test_both_estimates_are_unbiased() -> None:
    original = logits(300, 4, 2.0, 4.0, 1)
    candidate = original + 0.5 * torch.randn(original.shape)
    runs = [divergence(unrounded(original, 8, seed), normalized(candidate)) for seed in range(400)]
    truth = full(original, candidate)
    for rest in ("drawn", "controlled"):
        values = torch.tensor([run.exact + getattr(run, rest) for run in runs])
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 20, rest
    assert all(run.value() == run.exact + run.drawn for run in runs)
    plain, controlled = (torch.tensor([getattr(r, k) for r in runs]).std() for k in ("drawn", "controlled"))
    assert controlled < 0.6 * plain


def test_the_interval_fails_no_more_often_than_its_risk() -> None:
    original = logits(300, 4, 2.0, 4.0, 1)
    candidate = original + 0.5 * torch.randn(original.shape)
    truth, missed = full(original, candidate), 0
    for seed in range(200):
        low, high = divergence(unrounded(original, 8, seed), normalized(candidate)).interval(risk=0.2)
        missed += not low <= truth <= high
    assert missed <= 40


def test_the_interval_narrows_with_the_text() -> None:
    original = logits(4000, 64, 2.0, 10.0, 2)
    candidate = original + 0.2 * torch.randn(original.shape)
    widths = []
    for rows in (8, 64):
        low, high = divergence(keep(original[:rows], generator()), normalized(candidate[:rows])).interval()
        widths.append((high - low) / rows)
    assert widths[1] < 0.5 * widths[0]


def test_a_small_vocabulary_is_kept_whole_and_exact() -> None:
    original = logits(64, 6, 2.0, 4.0, 0)
    candidate = original + torch.randn(original.shape)
    kept = keep(original, generator())
    found = divergence(kept, normalized(candidate))
    assert kept.others is None
    assert found.interval() == (found.value(), found.value())
    assert found.value() == pytest.approx(full(original, candidate), rel=1e-3)


@pytest.mark.parametrize(("vocabulary", "width"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 3)])
def test_ids_take_as_few_bytes_as_they_can(vocabulary: int, width: int) -> None:
    assert id_bytes(vocabulary) == width


@given(st.integers(2, 200_000))
def test_what_is_kept_whole_is_not_larger(vocabulary: int) -> None:
    cut = 256 * (2 + id_bytes(vocabulary)) + 12
    assert kept_whole(vocabulary) == (vocabulary <= 256 or 2 * vocabulary <= cut)


def test_draws_are_as_frequent_as_probable_and_never_impossible() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [0.0, 0.0, 1e-9, 0.0, 0.0, 0.0]]).double()
    counts = torch.tensor([40_000, 7])
    drawn = module._draw(weights, counts, generator())
    shares = torch.bincount(drawn[:40_000], minlength=6) / 40_000
    assert (shares - weights[0]).abs().max() < 0.01
    assert shares[[0, 2, 5]].sum() == 0
    assert drawn[40_000:].tolist() == [2] * 7


def test_draws_do_not_depend_on_how_many_rows_come_at_a_time() -> None:
    original = logits(500, 9, 2.0, 5.0, 3)
    whole, one = keep(original, generator(), 16), generator()
    parts = [keep(rows, one, 16) for rows in original.split(2)]
    for field in dataclasses.fields(whole.others):  # type: ignore[arg-type]
        joined = torch.cat([getattr(part.others, field.name) for part in parts])
        assert torch.equal(joined, getattr(whole.others, field.name)), field.name


def test_nothing_beyond_the_kept_tokens() -> None:
    original = torch.full((3, 50), -math.inf)
    original[:, :4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    kept = keep(original, generator(), 8)
    assert kept.others is not None
    assert kept.others.counts.sum() == 0
    found = divergence(kept, normalized(original))
    assert found.value() == pytest.approx(0, abs=1e-6)
    candidate = original.clone()
    candidate[:, 3] = 2.0
    assert divergence(kept, normalized(candidate)).value() == pytest.approx(
        full(original, candidate), rel=1e-3
    )


@pytest.mark.parametrize("place", [0, 299])
def test_a_candidate_that_excludes_a_token_has_no_bound(place: int) -> None:
    original = logits(300, 2, 1.0, 0.0, 4).sort(descending=True).values
    candidate = original.clone()
    candidate[:, place] = -math.inf
    found = divergence(keep(original, generator(), 8), normalized(candidate))
    assert found.interval()[1] == math.inf
    assert (found.value() == math.inf) == (place == 0)  # the last one was not drawn: nobody can tell


def test_what_is_no_number_stays_none() -> None:
    original = logits(300, 2, 1.0, 3.0, 4)
    assert math.isnan(divergence(keep(original, generator(), 8), torch.full((2, 300), math.nan)).value())
    assert math.isnan(divergence(keep(original * math.nan, generator(), 8), normalized(original)).value())


def test_sums_add_up() -> None:
    original = logits(300, 6, 2.0, 5.0, 4)
    candidate = normalized(original + torch.randn(original.shape))
    one = generator()
    parts = [
        divergence(keep(o, one, 8), c) for o, c in zip(original.split(2), candidate.split(2), strict=True)
    ]
    whole = divergence(keep(original, generator(), 8), candidate)
    added = dataclasses.asdict(sum(parts, Divergence()))
    assert added == pytest.approx(dataclasses.asdict(whole), rel=1e-6)


def test_probabilities_of_a_large_vocabulary_add_up_to_one() -> None:
    values = 2.2 * torch.randn(4, 128_000, generator=generator())
    values[:, :30] += torch.linspace(2, 16, 30)
    exact = values.double() - values.double().logsumexp(-1, keepdim=True)
    assert (normalized(values) - exact).abs().max() < 3e-6
