"""What a submission claims beside what was measured: each false claim gets its verdict and its line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecard import claims
from scorecard.claims import GIB, Measured, Verdict
from scorecard.manifest import Claims, TaskClaim

SCORES = {doc: float(doc % 4 != 0) for doc in range(100)}
ERROR = 0.0435  # of 75 right ones among 100


def claimed(values: Mapping[int, float] = SCORES, **changes: Any) -> TaskClaim:
    value = sum(values.values()) / len(values)
    return dataclasses.replace(
        TaskClaim("acc", value, ERROR, len(values), num_fewshot=0, accuracy=True), **changes
    )


def found(values: Mapping[int, float] = SCORES, **changes: Any) -> Measured:
    value = sum(values.values()) / len(values)
    made = Measured("acc", value, ERROR, True, dict(values), len(values), ties=frozenset(), num_fewshot=0)
    return dataclasses.replace(made, **changes)


def flipped(*documents: int) -> dict[int, float]:
    return {doc: 1 - value if doc in documents else value for doc, value in SCORES.items()}


def test_a_true_claim_holds() -> None:
    verdict = claims.task("t", claimed(), found(), SCORES)
    assert verdict.line == "task t ✓ 0.7500 ± 0.0435, each of 100 documents as claimed"


FALSE: dict[str, tuple[TaskClaim, Measured, Mapping[int, float] | None, str]] = {
    "a point more than its documents give": (
        claimed(value=0.76),
        found(),
        SCORES,
        "claimed 0.7600, its own documents give 0.7500",
    ),
    "a point more without documents": (
        claimed(value=0.76),
        found(),
        None,
        "claimed 0.7600, measured 0.7500 ± 0.0435; ties explain 0 documents at most",
    ),
    "one document more": (
        claimed(flipped(4)),
        found(),
        flipped(4),
        "claimed 0.7600, measured 0.7500 ± 0.0435; 1 of 100 documents differ",
    ),
    "other documents, the same total": (claimed(), found(), flipped(4, 5), "2 of 100 documents differ"),
    "documents that the task has not": (
        claimed(),
        found(),
        {doc + 1: value for doc, value in SCORES.items()},
        "its documents are not the task's",
    ),
    "fewer documents": (claimed(n=50), found(), SCORES, "claimed over 50 documents, it has 100"),
    "another metric": (
        claimed(metric="acc_norm"),
        found(),
        SCORES,
        "claimed for metric 'acc_norm', the task's is 'acc'",
    ),
    "no value": (claimed(value=None), found(), SCORES, "claimed none, measured 0.7500"),
    "left out of the mean": (
        claimed(accuracy=False),
        found(),
        SCORES,
        "claimed as no part of the mean accuracy, it is a part",
    ),
    "more shots": (claimed(num_fewshot=5), found(), SCORES, "claimed with 5 shots, it has 0"),
    "a smaller error": (
        claimed(stderr=0.01),
        found(),
        SCORES,
        "claimed ± 0.0100, measured 0.7500 ± 0.0435",
    ),
    "a better perplexity": (
        claimed(metric="word_perplexity", value=9.0, accuracy=False, stderr=None),
        found(metric="word_perplexity", value=9.5, stderr=0.1, accuracy=False),
        None,
        "claimed 9.0000, measured 9.5000 ± 0.1000",
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_claim_is_caught(name: str) -> None:
    claim, measured, documents, line = FALSE[name]
    verdict = claims.task("t", claim, measured, documents)
    assert verdict.holds is False
    assert line in verdict.text
    assert "\n" not in verdict.line


def test_documents_that_differ_are_listed() -> None:
    many = flipped(*range(0, 100, 4))
    verdict = claims.task("t", claimed(many), found(), many)
    assert verdict.details[0] == "document 0: claimed 1, measured 0"
    assert verdict.details[-1] == "and 5 more"


# -- ties --------------------------------------------------------------------------------------------


def test_ties_may_fall_otherwise() -> None:
    own = flipped(4, 5, 8, 9)
    verdict = claims.task("t", claimed(own), found(ties={4, 5, 8, 9, 50}), own)
    assert verdict.holds
    assert "each of 100 documents as claimed, 4 of them ties that fell otherwise" in verdict.text


def test_ties_that_all_fall_in_its_favour_are_no_chance() -> None:
    """A model may make every answer a tie, and then claim what it likes."""
    own = dict.fromkeys(SCORES, 1.0)
    verdict = claims.task("t", claimed(own, stderr=None), found(ties=set(SCORES)), own)
    assert verdict.holds is False
    assert "25 of 25 ties that fell otherwise are in its favour" in verdict.text


def test_a_total_may_differ_by_what_ties_explain() -> None:
    assert claims.task("t", claimed(value=0.76), found(ties={1, 2}), None).holds
    assert claims.task("t", claimed(value=0.80), found(ties={1, 2}), None).holds is False


@given(st.integers(0, 10_000))
def test_few_ties_explain_little(ties: int) -> None:
    assert 0 <= claims.may_change(ties) <= ties
    assert claims.may_change(ties) <= claims.may_change(ties + 1)


# -- metrics whose ties are not known ----------------------------------------------------------------


def test_without_ties_a_small_change_is_decided_by_its_direction() -> None:
    few, favoured = flipped(4, 5), flipped(*range(0, 100, 4))
    assert claims.task("t", claimed(few), found(ties=None), few).holds
    assert claims.task("t", claimed(favoured), found(ties=None), favoured).holds is False
    balanced = flipped(0, 4, 8, 1, 2, 3)
    assert claims.task("t", claimed(balanced), found(ties=None), balanced).holds is None
    assert claims.task("t", claimed(value=0.77), found(ties=None), None).holds is None
    assert claims.task("t", claimed(value=0.90), found(ties=None), None).holds is False


# -- the whole ---------------------------------------------------------------------------------------


def whole(**changes: Any) -> Claims:
    made = Claims(1000, 0.75, ERROR, 0.75 * GIB / 1000, None, None, {"t": claimed()})
    return dataclasses.replace(made, **changes)


HOLDS = {"t": Verdict("task t", True, "")}
MEASURED = {"mean_accuracy": 0.75, "mean_accuracy_stderr": ERROR}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mean_accuracy": 0.76}, r"claimed 0\.7600, measured 0\.7500 ± 0\.0435; its own tasks give 0\.7500"),
        ({"mean_accuracy": None}, r"claimed none, .*; its own tasks give 0\.7500"),
        ({"mean_accuracy_stderr": 0.02}, r"claimed ± 0\.0200, its own tasks give ± 0\.0435"),
    ],
)
def test_a_mean_that_its_tasks_do_not_give_is_caught(changes: dict[str, Any], line: str) -> None:
    verdict = claims.accuracy(whole(**changes), HOLDS, MEASURED)
    assert verdict.holds is False
    assert re.search(line, verdict.text)


def test_the_mean_holds_as_its_tasks_do() -> None:
    assert claims.accuracy(whole(), HOLDS, MEASURED).line == "accuracy ✓ 0.7500 ± 0.0435"
    for state in (False, None):
        assert claims.accuracy(whole(), {"t": Verdict("", state, "")}, MEASURED).holds is state


def test_size_is_exact() -> None:
    assert claims.size(1234567, 1234567).line == "size ✓ 1,234,567 bytes"
    assert claims.size(999, 1000).line == "size ✗ claimed 999 bytes, measured 1,000"


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"score": 0.75 * GIB / 999}, False),
        ({"size_bytes": 999, "score": 0.75 * GIB / 999}, False),
        ({"score": None}, False),
        ({"score_low": 1.0, "score_high": 2.0 * GIB}, True),
        ({"score_low": 0.9 * GIB, "score_high": 2.0 * GIB}, False),
        ({"score_low": 1.0}, False),
    ],
)
def test_the_score_is_arithmetic(changes: dict[str, Any], holds: bool) -> None:
    assert claims.score(whole(**changes), True, 1000, 0.75).holds is holds


@pytest.mark.parametrize("state", [False, None])
def test_a_score_is_no_better_than_its_accuracy(state: bool | None) -> None:
    assert claims.score(whole(), state, 1000, 0.75).holds is state
