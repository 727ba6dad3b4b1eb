"""The benchmark of compressors: bytes at equal KL, ratios, tables, and the matrix that it runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compressors, compressors_worker
from benchmarks.equal_kl import (
    Bytes,
    Point,
    best_scores,
    bytes_at,
    front,
    ratio_table,
    ratios,
    summary,
    table,
)
from scorecard import score, yaml_text
from scorecard.load import load
from scorecard.spec import Record, to_json
from scorecard.store import write_atomic

WEIGHTS = 8_000  # so that a byte a weight is a bit a weight times 1000


def point(config: str, size: int, kl: float | None, *, ours: bool = False, **more: object) -> Point:
    return Point(config, ours, size, 8 * size / WEIGHTS, kl, **more)  # type: ignore[arg-type]


def curve(*pairs: tuple[int, float], ours: bool = True) -> list[Point]:
    return [point(f"p{i}", size, kl, ours=ours) for i, (size, kl) in enumerate(pairs)]


def test_between_two_points_bytes_are_linear_in_the_logarithm_of_kl() -> None:
    points = curve((1000, 1e-1), (2000, 1e-3))
    assert bytes_at(points, 1e-2) == Bytes(pytest.approx(1500))
    assert bytes_at(points, 10**-1.5) == Bytes(pytest.approx(1250))
    assert bytes_at(points, 1e-1) == Bytes(1000)
    assert bytes_at(points, 1e-3) == Bytes(2000)


def test_nothing_is_extrapolated() -> None:
    points = curve((1000, 1e-1), (2000, 1e-3))
    assert bytes_at(points, 0.5) == Bytes(1000, bound=True)
    assert bytes_at(points, 1e-4) is None
    assert bytes_at(points, 0.0) is None
    assert bytes_at([], 0.1) is None


def test_points_that_a_smaller_one_beats_are_no_part_of_the_curve() -> None:
    good = curve((1000, 1e-1), (2000, 1e-3))
    worse = [*good, point("worse", 1500, 0.2, ours=True), point("unmeasured", 10, None, ours=True)]
    assert [p.size_bytes for p in front(worse)] == [1000, 2000]
    assert bytes_at(worse, 1e-2) == bytes_at(good, 1e-2)


points = st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 10)), min_size=1, max_size=8)


@given(points, st.floats(1e-6, 10), st.floats(1.0, 10))
def test_a_lesser_kl_never_takes_fewer_bytes(
    pairs: list[tuple[int, float]], kl: float, factor: float
) -> None:
    near, far = bytes_at(curve(*pairs), kl), bytes_at(curve(*pairs), kl * factor)
    if near is None:
        return
    assert far is not None
    assert far.count <= near.count * (1 + 1e-12)
    sizes = [p.size_bytes for p in front(curve(*pairs))]
    assert sizes[0] <= near.count <= sizes[-1] * (1 + 1e-12)


def test_the_peer_of_a_ratio_is_the_one_that_is_hardest_to_beat() -> None:
    # At 4000 bytes ours has KL 1e-3, at 2000 1e-1: at 1e-2 it takes 3000.
    ours = curve((2000, 1e-1), (4000, 1e-3))
    easy, hard = point("easy", 4200, 1e-2 * 1.01), point("hard", 3800, 1.2e-2)
    dominated = point("dominated", 3700, 0.5)
    small = point("small", 2500, 5e-1)
    four, three, half = ratios([*ours, easy, hard, dominated, small])
    assert four.peer.config == "hard"
    assert four.value == pytest.approx((2000 + 1000 * math.log10(1e-1 / 1.2e-2)) / 3800)
    assert four.met is (four.value <= four.goal)
    assert three.peer.config == "small"  # none is near: the nearest stands for it
    assert half.peer.config == "small"
    assert half.ours == Bytes(2000, bound=True)
    assert half.value == 0.8
    assert half.met is None  # the truth may be below 0.7


def test_of_two_ruins_the_better_one_is_the_peer() -> None:
    # Both are worse than the smallest of ours, so that their ratios are no more than bounds.
    ruins = [point("small ruin", 2450, 2.8), point("ruin", 2600, 0.5)]
    assert ratios([*curve((1400, 0.3), (4000, 1e-3)), *ruins])[-1].peer.config == "ruin"


def test_a_kl_that_ours_does_not_reach_is_no_success() -> None:
    (four, *_) = ratios([*curve((2000, 1e-1)), point("near", 3900, 2e-1), point("better", 4000, 1e-3)])
    assert four.peer.config == "better"
    assert four.value is None
    assert four.met is None
    assert "not reached" in ratio_table([*curve((2000, 1e-1)), four.peer])


def test_only_models_that_keep_their_accuracy_have_a_score() -> None:
    gib = 2**30
    kept = point("kept", gib // 2, 0.01, accuracy=0.8, keeps=True)
    ruin = point("ruin", gib // 100, 3.0, accuracy=0.3)
    ours = point("ours", gib // 4, 0.01, ours=True, accuracy=0.7, keeps=True)
    scores = best_scores([kept, ruin, ours])
    assert (scores.peer, scores.ours) == (kept, ours)
    assert scores.ratio == pytest.approx((0.7 * 4) / (0.8 * 2))
    assert best_scores([kept]).ratio is None


def test_the_tables_show_every_point_and_say_what_was_not_measured() -> None:
    peer = point("gptq", 4000, 0.0123, kl_stderr=0.001, flips=3, accuracy=0.5, accuracy_stderr=0.01)
    found = table([peer, *curve((2000, 1e-2))]).splitlines()
    assert len(found) == 4
    assert found[2] == "| gptq | 4,000 | 4.00 | 0.0123 ± 0.0010 | 3 | 50.0 ± 1.0 | – | – | – |"
    assert found[3].startswith("| **p0** | 2,000 |")
    assert summary([peer, *curve((2000, 1e-2))])["ratios"][0]["ratio"] == 0.5


def test_the_tokenizer_is_no_part_of_the_bytes() -> None:
    cases = synthetic.Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    cases.add("rtn-w4", 2_000_000, 0.0, 0.03)
    cases.add("rdq-b3", 1_000_000, 0.0, 0.03, runner=compressors.OURS)
    rows = score.rows(cases.all, lossless_bytes={synthetic.MODEL: 5_000_000}, read=cases.read)
    found = {p.config: p for p in compressors.measured(rows, cases.all)}
    tokenizer, weights = 800, 1_000_000  # of the ledger in synthetic.py
    assert {name: p.size_bytes for name, p in found.items()} == {
        "baseline": 8_000_000 - tokenizer,
        "lossless": 5_000_000 - tokenizer,
        "rtn-w4": 2_000_000 - tokenizer,
        "rdq-b3": 1_000_000 - tokenizer,
    }
    assert found["rtn-w4"].bits_per_weight == 8 * (2_000_000 - tokenizer) / weights
    assert [p.config for p in found.values() if p.ours] == ["rdq-b3"]
    assert found["rtn-w4"].keeps
    assert found["rtn-w4"].score == pytest.approx((found["rtn-w4"].accuracy or 0) * 2**30 / 1_999_200)


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(compressors._options([])), **changes})


def test_the_matrix_is_one_that_the_scorecard_takes(tmp_path: Path) -> None:
    suite = yaml_text.parse(compressors.CONFIGS.read_text(), "compressors.yaml")
    content = compressors.matrix(suite, options(narrow=True, name="m"), tmp_path)
    write_atomic(tmp_path / "models.yaml", content)
    cases = load(tmp_path / "models.yaml").cases
    names = [case.config.name for case in cases]
    assert names[0] == "baseline"
    assert "gptq-w3-g64-o8" in names
    assert not any(
        "g128" in name or case.config.options.get("group_size") == 128
        for name, case in zip(names, cases, strict=True)
    )
    assert all(case.evaluation.limit == 250 for case in cases)
    assert load(compressors.CONFIGS).cases


def test_a_case_is_finished_until_its_options_change(tmp_path: Path) -> None:
    suite = yaml_text.parse(compressors.CONFIGS.read_text(), "compressors.yaml")
    write_atomic(tmp_path / "models.yaml", compressors.matrix(suite, options(), tmp_path))
    first, second = load(tmp_path / "models.yaml").cases[1:3]
    path = compressors_worker.record_path(tmp_path, first)
    assert not compressors_worker.finished(path, first)
    record = Record("compress", "", first.id, "ok", {}, "", 0.0)
    write_atomic(path, {"case": to_json(first), "records": to_json([record])})
    assert compressors_worker.finished(path, first)
    assert not compressors_worker.finished(path, second)
