"""Ranks of one group: Holm over all pairs, the range of each rank, cases that were stopped early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Cases, frame
from test_comparable import changed

from scorecard import score
from scorecard.rank import competition_ranks, rank_limits
from scorecard.row import Row
from scorecard.significance import holm

NAMES = st.text("abcdefgh", min_size=1, max_size=2)


def ranked(cases: Cases, ranking: str = "recovery") -> dict[str, Row]:
    return {row.config: row for row in score.rows(cases.all, read=cases.read, ranking=ranking)}


def test_many_equal_cases_tie_where_bare_tests_tell_some_apart() -> None:
    """Twelve cases that each lose 3 % of the documents, others for each: 66 pairs and no difference."""
    cases = Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    for seed in range(12):
        cases.add(f"c{seed}", 1_000_000, 0.03, 0.01, seed=seed + 1)
    rows = ranked(cases)
    assert len({row.rank for name, row in rows.items() if name.startswith("c")}) == 1
    ps = {name: row.mcnemar_p for name, row in rows.items() if row.mcnemar_p is not None}
    assert {name: rows[name].mcnemar_p_holm for name in ps} == pytest.approx(holm(ps))


def test_the_range_of_a_rank() -> None:
    cases = Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    cases.add("near", 4_000_000, 0.002, 0.01, seed=1)
    cases.add("far", 2_000_000, 0.2, 0.1, seed=2)
    rows = ranked(cases)
    assert (rows["baseline"].rank_low, rows["baseline"].rank_high) == (1, 2)
    assert (rows["near"].rank_low, rows["near"].rank_high) == (1, 2)
    assert (rows["far"].rank_low, rows["far"].rank_high, rows["far"].rank) == (3, 3, 3)
    assert (rows["null"].rank_low, rows["null"].rank_high) == (None, None)


@given(st.dictionaries(NAMES, st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 9))
def test_ranks_lie_in_their_range(scores: dict[str, int], width: int) -> None:
    apart = {frozenset((a, b)) for a in scores for b in scores if abs(scores[a] - scores[b]) > width}
    limits = rank_limits({case: float(value) for case, value in scores.items()}, apart)
    ranks = competition_ranks(
        {case: float(value) for case, value in scores.items()}, lambda a, b: frozenset((a, b)) not in apart
    )
    for case, (low, high) in limits.items():
        assert 1 <= low <= high <= len(scores)
        true = 1 + sum(other > scores[case] for other in scores.values())
        assert low <= true <= high
        assert ranks[case] <= true
        if width == 0:
            assert low == true


def test_a_case_that_was_stopped_early_is_compared_on_what_it_has() -> None:
    cases = Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    cases.add("whole", 4_000_000, 0.01, 0.01, seed=1)
    early = cases.add("early", 4_000_000, 0.3, 0.01, seed=2, documents=150)
    assert "not comparable" in ranked(cases)["early"].notes[0]
    cases.all[2] = changed(early, settings={"early_stop": {"alpha": 0.05, "margin": None, "every": 50}})
    row = ranked(cases)["early"]
    assert row.stopped_early
    assert (row.rank, row.group) == (3, 1)
    lost = [frame(0.3, seed=2, documents=150), frame(documents=150)]
    means = [table[table.metric == "acc"].groupby("task").value.mean().mean() for table in lost]
    assert row.delta_accuracy == pytest.approx(means[0] - means[1])
    assert row.recovery == pytest.approx(means[0] / means[1])
    assert any("stopped early" in note for note in row.notes)


def test_shared_contexts_reach_the_ranks() -> None:
    """Whole contexts of 40 documents are lost: ten of them are not enough to tell two cases apart."""
    cases = Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    hurt = cases.add("hurt", 4_000_000, seed=0)
    assert hurt.documents is not None
    table = cases.frames[hurt.documents]
    lost = (table.metric == "acc") & (table.doc < 40)
    cases.frames[hurt.documents] = table.assign(value=table.value.where(~lost, 0.0))
    assert ranked(cases)["hurt"].rank == 2
    cases.frames = {path: made.assign(cluster=made.doc // 40 * 40) for path, made in cases.frames.items()}
    row = ranked(cases)["hurt"]
    assert row.rank == 1
    assert row.mcnemar_p == 0.5
