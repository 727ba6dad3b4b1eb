"""Paired statistics against known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from synthetic import TASKS, frame

from scorecard import compare, pairs, resample
from scorecard.errors import ComparisonError
from scorecard.significance import mcnemar

METRICS = dict.fromkeys(TASKS, "acc")


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
    assert found.mcnemar_p == mcnemar(0, found.lost)
    assert set(found.tasks) == set(TASKS)
    assert found.recovery is not None
    assert found.recovery.value == pytest.approx(means.value_a.mean() / means.value_b.mean())
    assert found.recovery.low < found.recovery.value < found.recovery.high < 1
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(means.value_a.mean())
    assert found.accuracy.high - found.accuracy.low > found.delta_accuracy.high - found.delta_accuracy.low


def test_flips_are_the_documents_themselves() -> None:
    a, b = frame(), frame()
    right = b[(b.task == "pairs") & (b.value == 1)].doc.to_list()[:3]
    wrong = b[(b.task == "pairs") & (b.value == 0)].doc.to_list()[:1]
    a.loc[(a.task == "pairs") & a.doc.isin(right), "value"] = 0.0
    a.loc[(a.task == "pairs") & a.doc.isin(wrong), "value"] = 1.0
    found = compare.paired(a, b, METRICS)
    assert (found.tasks["pairs"].gained, found.tasks["pairs"].lost) == (tuple(wrong), tuple(right))
    assert (found.tasks["cloze"].gained, found.tasks["cloze"].lost) == ((), ())
    assert (found.gained, found.lost, found.flips) == (1, 3, 4)
    assert found.mcnemar_p == mcnemar(1, 3)


def test_scores_per_size() -> None:
    """Equal accuracies in half the size: half of the difference is the score of the larger."""
    found = compare.paired(frame(), frame(), METRICS, sizes_gib=(0.5, 1.0))
    assert found.delta_score is not None
    assert found.accuracy is not None
    assert found.delta_score.value == pytest.approx(found.accuracy.value)
    assert found.delta_score.low > 0
    assert compare.paired(frame(), frame(), METRICS).delta_score is None


def test_tasks_as_a_sample_of_tasks() -> None:
    """Student's t over the tasks' differences, by scipy."""
    found = compare.paired(frame(0.1, seed=5), frame(), METRICS)
    deltas = [task.delta.value for task in found.tasks.values()]
    low, high = t.interval(0.95, len(deltas) - 1, np.mean(deltas), np.std(deltas, ddof=1) / 2**0.5)
    over = found.delta_over_tasks
    assert over is not None
    assert (over.low, over.high) == (pytest.approx(low), pytest.approx(high))
    assert compare.paired(frame(), frame(), {"pairs": "acc"}).delta_over_tasks is None


def clustered(table: pd.DataFrame, size: int) -> pd.DataFrame:
    return table.assign(cluster=table.doc // size * size)


def test_documents_of_one_context_count_as_one() -> None:
    """Twenty contexts of twenty documents, each wholly lost or kept: 400 documents tell no more than 20."""
    base = frame()[lambda table: table.task != "heldout"].assign(value=1.0)
    lost = base.doc.isin([doc for doc in range(400) if doc // 20 in (1, 5, 9)])
    hurt = base.assign(value=base.value.where(~lost, 0.0))
    apart = compare.paired(hurt, base, {"pairs": "acc"})
    together = compare.paired(clustered(hurt, 20), clustered(base, 20), {"pairs": "acc"})
    assert apart.tasks["pairs"].clusters == 400
    assert together.tasks["pairs"].clusters == 20
    assert apart.mcnemar_p == mcnemar(0, 60) < 1e-9
    assert together.mcnemar_p == mcnemar(0, 3) == 0.25
    widths = [found.delta_accuracy.high - found.delta_accuracy.low for found in (apart, together)]
    assert widths[1] > 3 * widths[0]


def test_only_common_documents_of_cases_that_were_stopped_early() -> None:
    early, whole = frame(documents=150), frame()
    with pytest.raises(ComparisonError, match="only in the second"):
        compare.paired(early, whole, METRICS)
    found = compare.paired(early, whole, METRICS, common=True)
    assert found.documents == 300
    assert found.tasks["pairs"].documents == 150
    for first, second in ((early, clustered(whole, 10)), (clustered(whole, 10), early)):
        assert compare.paired(first, second, METRICS, common=True).tasks["pairs"].clusters == 15


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
    r"pairs: 1 documents only in the first case \(such as 400\), 1 documents only in the second": (
        FRAME.assign(doc=FRAME.doc + (FRAME.task == "pairs")),
        FRAME,
    ),
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
        pairs.read_documents(path)
    frame().drop(columns="value").to_parquet(path)
    with pytest.raises(ComparisonError, match="no column value"):
        pairs.read_documents(path)
    frame().to_parquet(path)
    pd.testing.assert_frame_equal(pairs.read_documents(path), frame(), check_dtype=False)
