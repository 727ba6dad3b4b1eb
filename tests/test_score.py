"""From records to rows: values, scores, ranks with ties, Pareto front, reference rows."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import MODEL, Cases, record, usual

from scorecard import score
from scorecard.errors import SpecError
from scorecard.pairs import read_documents
from scorecard.rank import competition_ranks, pareto_front
from scorecard.records import CaseRecords
from scorecard.row import FLOORS, GIB, KL_GUARD, SCORES, Row


def rows_of(cases: Cases, **options) -> dict[str, Row]:
    made = score.rows(cases.all, read=cases.read, **options)
    return {row.config: row for row in made}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return rows_of(usual(), lossless_bytes={MODEL: 5_000_000})


def test_values_come_from_the_records(rows: dict[str, Row]) -> None:
    row = rows["gptq-w4"]
    assert (row.status, row.reason, row.reference, row.baseline) == ("ok", None, False, False)
    assert row.size_bytes == 2_000_000
    assert row.size_gib == 2_000_000 / 2**30
    assert row.tasks["pairs"].chance == 0.5
    assert row.tasks["text"].accuracy is False
    assert row.documents == 800
    assert row.mean_accuracy == pytest.approx((row.tasks["pairs"].value + row.tasks["cloze"].value) / 2)
    assert (row.kl, row.perplexity) == (0.01, 3.01)
    assert row.decode_p50_ms == pytest.approx(1.01)
    assert row.peak_cuda_memory_bytes is None
    assert row.stages == dict.fromkeys(("compress", "audit", "evaluate", "measure"), "ok")
    assert row.keys["evaluate"] == "evaluate-key"


def test_scores_by_their_definition(rows: dict[str, Row]) -> None:
    row, base = rows["gptq-w4"], rows["baseline"]
    a, c = row.tasks["pairs"].value, row.tasks["cloze"].value
    assert row.score_raw == pytest.approx((a + c) / 2 / row.size_gib)
    assert row.chance_corrected_accuracy == pytest.approx(((a - 0.5) / 0.5 + (c - 0.25) / 0.75) / 2)
    assert row.score_chance_corrected == pytest.approx(row.chance_corrected_accuracy / row.size_gib)
    assert row.recovery == pytest.approx(row.mean_accuracy / base.mean_accuracy)
    assert row.delta_accuracy == pytest.approx(row.mean_accuracy - base.mean_accuracy)
    assert row.delta_accuracy_low <= row.delta_accuracy <= row.delta_accuracy_high
    assert row.score_floor_95 == row.score_raw
    assert rows["rtn-w2"].score_floor_90 is None
    assert rows["rtn-w2"].score_raw > row.score_raw


def test_baseline_is_its_own_reference(rows: dict[str, Row]) -> None:
    base = rows["baseline"]
    assert base.baseline
    assert base.recovery == 1.0
    assert base.delta_accuracy is None
    assert base.score_floor_99 == base.score_raw
    assert [row.config for row in rows.values() if row.baseline] == ["baseline"]


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_need_recovery_and_kl(floor: int) -> None:
    def floors(loss: float, kl: float | None) -> float | None:
        cases = Cases()
        cases.add("baseline", 8_000_000, runner="baseline", seed=0)
        made = cases.add("x", 1_000_000, loss, kl or 0.0)
        if kl is None:
            result = {**made.records["evaluate"].result, "heldout": None, "heldout_reason": "no logits"}
            evaluated = dataclasses.replace(made.records["evaluate"], result=result)
            cases.all[-1] = dataclasses.replace(made, records={**made.records, "evaluate": evaluated})
        row = rows_of(cases)["x"]
        assert (row.recovery >= floor / 100) == (loss < 0.2)
        return getattr(row, f"score_floor_{floor}")

    assert floors(0.0, KL_GUARD) is not None
    assert floors(0.0, KL_GUARD * 1.001) is None
    assert floors(0.3, 0.001) is None
    assert floors(0.0, None) is None


def test_failed_skipped_and_declared(rows: dict[str, Row]) -> None:
    assert rows["awq-w4"].status == "failed"
    assert rows["awq-w4"].reason.startswith("compress: no module named 'gptqmodel'")
    assert (rows["bnb-nf4"].status, rows["bnb-nf4"].reason) == ("skipped", "compress: bnb: needs a GPU")
    assert (rows["odd"].status, rows["odd"].reason) == ("expected failure", "does not divide the hidden size")
    for name in ("awq-w4", "bnb-nf4", "odd"):
        numbers = {
            k: v for k, v in rows[name].flat().items() if isinstance(v, (int, float)) and v is not False
        }
        assert numbers == {}
    assert rows["rtn-w2"].findings == ("warning: lm_head is not compressed",)


def test_order_and_reference_rows_last(rows: dict[str, Row]) -> None:
    names = list(rows)
    assert names[-2:] == ["null", "lossless"]
    assert set(names[-5:-2]) == {"awq-w4", "bnb-nf4", "odd"}
    ranked = [row.rank for row in rows.values() if row.rank]
    assert ranked == sorted(ranked)


def test_reference_rows(rows: dict[str, Row]) -> None:
    null, lossless, base = rows["null"], rows["lossless"], rows["baseline"]
    assert null.reference
    assert lossless.reference
    assert null.size_bytes == 800 + 700
    assert null.mean_accuracy == (0.5 + 0.25) / 2
    assert null.chance_corrected_accuracy == 0.0
    assert null.score_raw > max(row.score_raw or 0 for row in rows.values() if not row.reference)
    assert null.score_floor_90 is None
    assert lossless.size_bytes == 5_000_000
    assert (lossless.mean_accuracy, lossless.recovery, lossless.kl) == (base.mean_accuracy, 1.0, 0.0)
    assert lossless.score_floor_99 == pytest.approx(base.mean_accuracy / (5_000_000 / GIB))
    for row in (null, lossless):
        assert (row.rank, row.pareto, row.decode_tokens_per_second) == (None, None, None)


def test_reference_rows_are_there_when_nothing_is_known() -> None:
    cases = Cases()
    cases.fail("baseline", "compress", "no space left")
    rows = rows_of(cases)
    assert list(rows) == ["baseline", "null", "lossless"]
    assert rows["null"].size_bytes is rows["lossless"].size_bytes is rows["null"].score_raw is None


def test_ties_and_what_is_told_apart(rows: dict[str, Row]) -> None:
    """Equal size within half a percent and accuracies within noise tie; half the size does not."""
    assert rows["gptq-w4"].rank == rows["rtn-w4"].rank == 1
    assert rows["rtn-w8"].rank == 3
    assert rows["baseline"].rank == 4
    assert rows["rtn-w2"].rank is None


@pytest.mark.parametrize("ranking", SCORES)
def test_ranks_agree_with_every_score(ranking: str) -> None:
    rows = [r for r in rows_of(usual(), ranking=ranking).values() if r.rank]
    assert rows
    for better in rows:
        for worse in rows:
            if better.rank < worse.rank:
                assert better.score(ranking) >= worse.score(ranking)


def test_recovery_ranks_near_equals_together() -> None:
    rows = rows_of(usual(), ranking="recovery")
    assert rows["baseline"].rank == rows["rtn-w8"].rank == 1
    assert rows["rtn-w2"].rank == 5


def test_rows_do_not_depend_on_the_order_of_cases() -> None:
    cases = usual()
    expected = score.rows(cases.all, read=cases.read)
    for seed in range(3):
        random.Random(seed).shuffle(cases.all)
        assert score.rows(cases.all, read=cases.read) == expected


def test_models_are_ranked_apart() -> None:
    one, other = usual(), Cases("embedded.other@2")
    other.add("baseline", 100, runner="baseline", seed=0)
    frames = {**one.frames, **other.frames}
    rows = score.rows(one.all + other.all, read=frames.__getitem__)
    alone = score.rows(one.all, read=one.read)
    assert rows[: len(alone)] == alone
    assert [row.config for row in rows[len(alone) :]] == ["baseline", "null", "lossless"]
    assert rows[len(alone)].rank == 1


def test_other_documents_are_not_compared() -> None:
    cases = usual()
    cases.add("few", 500_000, 0.0, 0.001, documents=100)
    row = rows_of(cases)["few"]
    assert (row.recovery, row.delta_accuracy, row.rank, row.score_floor_95) == (None, None, None, None)
    assert row.mean_accuracy is not None
    assert "not comparable with the baseline: cloze: 300 documents only in the second case" in row.notes[0]


def test_missing_parquet_is_a_note(tmp_path) -> None:
    cases = usual()
    lost = dataclasses.replace(cases.all[1], documents=tmp_path / "documents.parquet")
    made = score.rows(
        [cases.all[0], lost],
        read=lambda p: cases.frames.get(p) if p in cases.frames else read_documents(p),
    )
    row = next(row for row in made if row.config == lost.config)
    assert "no per-document results" in row.notes[0]
    assert row.score_raw is not None


def test_without_a_baseline_nothing_is_relative() -> None:
    cases = usual()
    cases.all.pop(0)
    rows = rows_of(cases, ranking="raw")
    assert rows["gptq-w4"].recovery is None
    assert rows["gptq-w4"].rank == 2
    assert rows["gptq-w4"].score_floor_95 is None


def test_infinite_values_are_not_measured() -> None:
    cases = usual()
    cases.add("wreck", 10_000, 0.9, float("inf"), seed=9)
    row = rows_of(cases)["wreck"]
    assert row.kl is row.perplexity is row.score_floor_90 is None


def test_only_some_stages_asked_for() -> None:
    case = CaseRecords("m-c", "m", "c", "rtn", {"compress": record("m-c", "compress", {"seconds": 2.0})})
    row = score.rows([case])[0]
    assert (row.status, row.compress_seconds, row.size_bytes, row.rank) == ("ok", 2.0, None, None)
    assert row.stages == {"compress": "ok"}


def test_skipped_timing_is_a_note() -> None:
    cases = usual()
    made = cases.all[1]
    timing = record(made.case, "measure", {}, "skipped", "timings need the machine to themselves")
    cases.all[1] = dataclasses.replace(made, records={**made.records, "measure": timing})
    row = rows_of(cases)[made.config]
    assert row.status == "ok"
    assert row.notes == ("measure: skipped: timings need the machine to themselves",)
    assert row.decode_tokens_per_second is None


def test_never_run_and_unknown_ranking() -> None:
    case = CaseRecords("m-c", "m", "c", "bnb", skipped="bnb: needs a GPU")
    assert score.rows([case])[0].reason == "bnb: needs a GPU"
    assert score.rows([dataclasses.replace(case, skipped=None)])[0].reason == "not run"
    with pytest.raises(SpecError, match="did you mean 'floor-95'"):
        score.rows([case], ranking="floor95")


def test_settings() -> None:
    cases = usual()
    found = score.settings(cases.all)
    assert found["tasks"] == ["cloze", "pairs", "text"]
    assert (found["documents"], found["dtype"], found["limit"]) == (850, ["bfloat16"], [None])
    assert (found["num_fewshot"], found["lm_eval_version"], found["ranking"]) == ([0], ["0.4.13"], "floor-95")
    assert json.loads(json.dumps(found)) == found
    assert score.settings([])["documents"] is None


NAMES = st.text("abcdefgh", min_size=1, max_size=3)


@given(st.dictionaries(NAMES, st.floats(0, 10), max_size=12), st.floats(0, 3), st.randoms())
def test_competition_ranks(scores: dict[str, float], width: float, shuffler) -> None:
    def tied(best: str, other: str) -> bool:
        return abs(scores[best] - scores[other]) <= width

    ranks = competition_ranks(scores, tied)
    order = list(scores)
    shuffler.shuffle(order)
    assert competition_ranks({case: scores[case] for case in order}, tied) == ranks
    assert set(ranks) == set(scores)
    for case, rank in ranks.items():
        assert rank == 1 + sum(other < rank for other in ranks.values())
        best = max((c for c in scores if ranks[c] == rank), key=scores.__getitem__)
        assert scores[best] == scores[case] or tied(best, case)
        for other in scores:
            if scores[other] > scores[case]:
                assert ranks[other] <= rank
            if scores[other] == scores[case]:
                assert ranks[other] == rank


def test_ties_are_not_transitive() -> None:
    scores = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.5}
    ranks = competition_ranks(scores, lambda x, y: abs(scores[x] - scores[y]) <= 1)
    assert ranks == {"a": 1, "b": 1, "c": 3, "d": 3}


@given(
    st.dictionaries(NAMES, st.tuples(st.integers(1, 6), st.sampled_from([0.1, 0.2, 0.3, 0.4])), max_size=12)
)
def test_pareto_front_by_brute_force(points: dict[str, tuple[int, float]]) -> None:
    def dominated(case: str) -> bool:
        size, accuracy = points[case]
        return any(s <= size and a >= accuracy and (s, a) != (size, accuracy) for s, a in points.values())

    assert pareto_front(points) == {case for case in points if not dominated(case)}


def test_pareto_marks(rows: dict[str, Row]) -> None:
    assert {row.config for row in rows.values() if row.pareto} >= {"baseline", "rtn-w2", "gptq-w4"} - (
        {"baseline"} if rows["rtn-w8"].mean_accuracy >= rows["baseline"].mean_accuracy else set()
    )
    assert rows["rtn-w4"].pareto is (rows["rtn-w4"].mean_accuracy > rows["gptq-w4"].mean_accuracy)


@given(st.integers(1_000, 10**9), st.integers(1_000, 10**9), st.floats(0.01, 1), st.floats(0.01, 1))
def test_scores_are_monotone(size: int, other: int, accuracy: float, second: float) -> None:
    def scored(size_bytes: int, mean: float) -> Row:
        row = Row("m-c", "m", "c", "rtn", "ok", size_bytes=size_bytes, size_gib=size_bytes / GIB)
        row = dataclasses.replace(
            row, mean_accuracy=mean, chance_corrected_accuracy=mean, kl=0.0, recovery=mean
        )
        return score.scored(row)

    small, large = sorted((size, other))
    low, high = sorted((accuracy, second))
    for key in ("score_raw", "score_chance_corrected"):
        assert getattr(scored(small, low), key) >= getattr(scored(large, low), key)
        assert getattr(scored(small, high), key) >= getattr(scored(small, low), key)
    passed = [getattr(scored(small, low), f"score_floor_{floor}") is not None for floor in FLOORS]
    assert passed == sorted(passed)
