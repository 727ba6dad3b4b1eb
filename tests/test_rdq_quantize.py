"""Codes of a matrix: how near to the rate-distortion limit, and what error feedback and wide rows do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdq.coded import MAX_CODE, NEXT_STATE, QUANTIZER_OF_STATE, dequantize, quantizers
from rdq.counting import magnitudes
from rdq.errors import RdqError
from rdq.lengths import entropy_bits, prior_lengths
from rdq.quantize import Quantized, Settings, prepare, quantize
from rdq.statistics import Statistics
from rdq.trellis import incoming, trellis_column

USUAL = Settings()


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


def flat(weight: torch.Tensor) -> Statistics:
    return Statistics(torch.eye(weight.shape[1]), np.ones(weight.shape[0]))


def coded(weight: torch.Tensor, c: float, how: Settings = USUAL) -> Quantized:
    return quantize(weight, prepare(flat(weight), how), c, how)


def gap(states: int, c: float) -> tuple[float, float]:
    """(rate, bits above the rate-distortion function) of a Gaussian source."""
    weight = noise(1024, 64)
    found = coded(weight, c, Settings(states=states, feedback=False))
    rate = entropy_bits(found.counts) / weight.numel()
    distortion = float(((weight.numpy() - dequantize(found.coded)) ** 2).mean())
    return rate, rate - 0.5 * np.log2(1 / distortion)


@pytest.mark.parametrize("c", [0.25, 0.5, 0.9])
def test_a_scalar_quantizer_is_a_quarter_bit_from_the_limit(c: float) -> None:
    assert gap(1, c)[1] == pytest.approx(0.255, abs=0.02)


@pytest.mark.parametrize("c", [0.12, 0.25, 0.6])
def test_the_trellis_is_half_as_far_from_the_limit(c: float) -> None:
    rate, bits = gap(8, c)
    assert 1.5 < rate < 4.3
    assert 0.05 < bits < 0.13


def test_four_states_are_between() -> None:
    assert gap(8, 0.3)[1] < gap(4, 0.3)[1] < 0.14


@settings(max_examples=25, deadline=None)
@given(
    z=st.lists(st.floats(-4, 4), min_size=5, max_size=5),
    states=st.sampled_from([4, 8]),
    kappa=st.floats(0, 0.5),
)
def test_no_other_codes_of_a_column_cost_less(z: list[float], states: int, kappa: float) -> None:
    lengths = prior_lengths(states)
    after, quantizer = NEXT_STATE[states].astype(np.int64), QUANTIZER_OF_STATE[states].astype(np.int64)
    codes = np.zeros(5, np.int16)
    trellis_column(
        np.array(z), np.ones(5), np.full(5, 22), lengths, np.zeros((2, 4)), kappa,
        incoming(after, quantizer), codes, np.zeros((5, 4), np.int16), np.zeros((5, states), np.uint8),
    )  # fmt: skip

    def cost(magnitudes: tuple[int, ...]) -> float:
        state, total = 0, 0.0
        for value, m in zip(z, magnitudes, strict=True):
            q = int(quantizer[state])
            total += (abs(value) - (2 * m - q * (m > 0))) ** 2 + kappa * lengths[22, q, m]
            state = after[state, m & 1]
        return float(total)

    least = min(cost(magnitudes) for magnitudes in product(range(4), repeat=5))
    assert cost(tuple(abs(int(k)) for k in codes)) <= least + 1e-9
    assert all(k * value >= 0 for k, value in zip(codes, z, strict=True))


def test_a_cheaper_code_is_taken_where_bits_count_more() -> None:
    weight = noise(128, 64)
    plain, frugal = (coded(weight, 0.5, Settings(kappa=kappa)) for kappa in (0.0, 0.3))
    assert entropy_bits(frugal.counts) < 0.97 * entropy_bits(plain.counts)


def test_feedback_makes_up_for_errors_of_correlated_inputs() -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(64, 8, generator=generator)
    hessian = mixing @ mixing.T + 0.1 * torch.eye(64)
    statistics = Statistics(hessian, np.ones(48))
    weight = noise(48, 64)
    loss = {}
    for feedback in (True, False):
        how = Settings(feedback=feedback)
        found = quantize(weight, prepare(statistics, how), 0.5, how)
        away = weight - torch.from_numpy(dequantize(found.coded)).double()
        loss[feedback] = float(((away @ hessian.double()) * away).sum()), entropy_bits(found.counts)
    assert loss[True][0] < 0.6 * loss[False][0]


def test_rows_that_matter_more_get_finer_steps() -> None:
    weight = noise(64, 64)
    statistics = Statistics(torch.eye(64), np.array([1.0] * 32 + [16.0] * 32))
    found = quantize(weight, prepare(statistics, Settings()), 0.3, Settings())
    away = (weight.numpy() - dequantize(found.coded)) ** 2
    assert 3 < away[:32].mean() / away[32:].mean() < 5


def test_the_range_of_the_steps_of_rows_is_bounded() -> None:
    made = prepare(
        Statistics(torch.eye(4), np.array([1e-12, 1.0, 1.0, 1e12])), Settings(row_range=5, row_part=1.0)
    )
    assert made.row.max() / made.row.min() == pytest.approx(25)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), seed=st.integers(0, 99),
    c=st.sampled_from([1e-9, 1e-3, 0.3, 10.0, 1e6]), states=st.sampled_from([1, 4, 8]),
    outlier=st.sampled_from([0.0, 1.0, 1e4, -1e8]),
)  # fmt: skip
def test_any_matrix_fits(rows: int, columns: int, seed: int, c: float, states: int, outlier: float) -> None:
    weight = noise(rows, columns, seed) * (seed % 7 != 0)
    weight[0, 0] = outlier
    found = coded(weight, c, Settings(states=states))
    assert np.abs(found.coded.codes).max() <= MAX_CODE
    assert np.isfinite(dequantize(found.coded)).all()
    np.testing.assert_array_equal(found.counts, magnitudes(found.coded))
    if c == 1e-9:  # as fine as the largest index allows, which feedback may make larger
        row_largest = weight.abs().amax(1, keepdim=True).numpy()
        assert (np.abs(weight.numpy() - dequantize(found.coded)) <= row_largest / 50 + 1e-9).all()


def test_zeros_stay_zeros() -> None:
    found = coded(torch.zeros(8, 8), 0.3)
    assert not found.coded.codes.any()
    assert not dequantize(found.coded).any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    weight = noise(8, 8)
    weight[3, 3] = wrong
    with pytest.raises(RdqError, match="weights: not finite"):
        coded(weight, 0.3)
    with pytest.raises(RdqError, match="statistics: not finite"):
        prepare(Statistics(torch.full((4, 4), wrong), np.ones(4)), Settings())


def test_a_block_takes_up_where_the_last_one_ended() -> None:
    """300 columns are three blocks: the loss must be that of feedback all along."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(300, 40, generator=generator)
    hessian = mixing @ mixing.T / 40 + 0.05 * torch.eye(300)
    weight, how = noise(32, 300), Settings(kappa=0)
    made = prepare(Statistics(hessian, np.ones(32)), how)
    found = quantize(weight, made, 0.2, how)
    away = weight - torch.from_numpy(dequantize(found.coded)).double()
    damped = hessian.double() + how.damping * float(hessian.diagonal().mean()) * torch.eye(300)
    loss = float(((away @ damped) * away).sum())
    # each entry of e / U_jj has the power of the trellis's own error, whatever H is
    plain = coded(weight, 0.2, how)
    alone = float(((weight.numpy() - dequantize(plain.coded)) ** 2).sum())
    assert loss == pytest.approx(alone, rel=0.25)


def correlated(columns: int, seed: int) -> torch.Tensor:
    """An H that few directions make up."""
    mixing = torch.randn(columns, 8, generator=torch.Generator().manual_seed(seed))
    return mixing @ mixing.T + 0.1 * torch.eye(columns)


def lost(weight: torch.Tensor, found: Quantized, hessians: torch.Tensor) -> float:
    away = (weight - torch.from_numpy(dequantize(found.coded)).double()).reshape(len(hessians), -1, 48)
    return float(((away @ hessians.double()) * away).sum())


def test_each_matrix_of_a_stack_has_its_own_feedback() -> None:
    """Three experts in one tensor, whose trellis runs on from one to the next."""
    hessians = torch.stack([correlated(48, seed) for seed in range(3)])
    weight, rows = noise(3 * 40, 48), np.ones(3 * 40)
    own = quantize(weight, prepare(Statistics(hessians, rows), USUAL), 0.5, USUAL)
    others = quantize(weight, prepare(Statistics(hessians.roll(1, 0), rows), USUAL), 0.5, USUAL)
    np.testing.assert_array_equal(own.counts, magnitudes(own.coded))
    assert entropy_bits(own.counts) < 1.02 * entropy_bits(others.counts)
    assert lost(weight, own, hessians) < 0.7 * lost(weight, others, hessians)


def test_an_expert_that_matters_more_gets_finer_steps() -> None:
    hessians = torch.stack([torch.eye(32), 16 * torch.eye(32)])
    weight = noise(2 * 64, 32)
    made = prepare(Statistics(hessians, np.ones(2 * 64)), USUAL)
    found = quantize(weight, made, 0.3, USUAL)
    away = (weight.numpy() - dequantize(found.coded)) ** 2
    assert 12 < away[:64].mean() / away[64:].mean() < 20
    some = made.every(8)
    assert some.row.shape == (2 * 8,)
    np.testing.assert_array_equal(some.row, made.row[4::8])


@pytest.mark.backend  # two processes that import torch
def test_python_gives_the_codes_that_numba_gives() -> None:
    program = (
        "import numpy as np, torch, hashlib; from rdq.quantize import *\n"
        "w = torch.from_numpy(np.random.default_rng(1).standard_normal((24, 12)))\n"
        "for states in (1, 4, 8):\n"
        "    h = Settings(states=states); p = prepare(Statistics(torch.eye(12), np.ones(24)), h)\n"
        "    print(hashlib.sha256(quantize(w, p, .4, h).coded.codes.tobytes()).hexdigest())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **more},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for more in ({"RDQ_NUMBA": "0"}, {})
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split())) == 3


def test_the_quantizers_of_the_file_are_those_of_the_search() -> None:
    weight = noise(64, 32)
    found = coded(weight, 0.3)
    which = quantizers(found.coded)
    assert 0.3 < which.mean() < 0.7
    other = replace(found.coded, codes=found.coded.codes[::-1].copy())
    assert not np.array_equal(quantizers(other), which)
