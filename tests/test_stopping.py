"""Early stopping: the documents that are scored get the prompts and answers of a whole run; no more are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lm_eval.api.model import LM
from tiny_evaluation import write_tasks

from scorecard.evaluate import evaluate
from scorecard.spec import EarlyStop, EvalSpec

pytestmark = pytest.mark.backend
DOCUMENTS = 90


class Guesser(LM):
    """Made-up log-likelihoods that depend on every character of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [
            (-int(hashlib.sha256(repr(r.args).encode()).hexdigest()[:6], 16) / 1e6, False) for r in requests
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        self.asked += [request.args for request in requests]
        return [-float(len(request.args[0])) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return ["a" for _ in requests]


def spec_of(folder: Path, task: str, early_stop: EarlyStop | None) -> EvalSpec:
    return EvalSpec(tasks=(task,), task_paths=(str(folder),), early_stop=early_stop, bootstrap_iters=0)


def scored(spec: EvalSpec, out: Path, baseline: Path | None = None) -> tuple[dict[str, Any], Any, Guesser]:
    lm, path = Guesser(), out / f"{baseline is None}.parquet"
    result = evaluate(lm, spec, reference=None, write_reference=None, documents=path, baseline=baseline)
    return result, pd.read_parquet(path), lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), DOCUMENTS)


def rewritten(whole: pd.DataFrame, path: Path, value: float) -> Path:
    """A baseline whose every answer is right, or wrong."""
    whole.assign(value=value).to_parquet(path)
    return path


def test_a_clear_case_is_decided_early_on_the_prompts_of_the_whole_run(tmp_path: Path, folder: Path) -> None:
    _, whole, everything = scored(spec_of(folder, "t_choice", None), tmp_path)
    perfect = rewritten(whole, tmp_path / "perfect.parquet", 1.0)
    result, some, lm = scored(spec_of(folder, "t_choice", EarlyStop(every=10)), tmp_path, perfect)
    task = result["tasks"]["t_choice"]
    assert task["stopped"] == {"verdict": "second", "documents": task["n"], "of": DOCUMENTS}
    assert 10 <= task["n"] < DOCUMENTS / 2
    assert some["doc"].nunique() == task["n"]
    merged = some.merge(whole, on=["task", "doc", "metric"], suffixes=("", "_whole"))
    assert len(merged) == len(some)
    assert (merged["value"] == merged["value_whole"]).all()
    assert set(lm.asked) <= set(everything.asked)
    assert len(lm.asked) == 4 * task["n"]  # each choice of each document once, however often it was looked at
    accuracy = some[some["metric"] == task["metric"]]["value"].mean()
    assert task["value"] == pytest.approx(accuracy)


def test_documents_do_not_come_in_the_order_of_the_file(tmp_path: Path, folder: Path) -> None:
    _, whole, _ = scored(spec_of(folder, "t_choice", None), tmp_path)
    perfect = rewritten(whole, tmp_path / "perfect.parquet", 1.0)
    _, some, _ = scored(spec_of(folder, "t_choice", EarlyStop(every=10)), tmp_path, perfect)
    assert set(some["doc"]) != set(range(some["doc"].nunique()))


def test_what_cannot_be_decided_is_run_to_the_end(tmp_path: Path, folder: Path) -> None:
    first, whole, _ = scored(spec_of(folder, "t_choice", None), tmp_path)
    same = tmp_path / "same.parquet"
    whole.to_parquet(same)
    result, some, _ = scored(spec_of(folder, "t_choice", EarlyStop(every=25)), tmp_path, same)
    task = result["tasks"]["t_choice"]
    assert task.pop("stopped") == {"verdict": None, "documents": DOCUMENTS, "of": DOCUMENTS}
    assert first["tasks"]["t_choice"].pop("stopped") is None
    assert task == first["tasks"]["t_choice"]
    order = ["metric", "doc"]
    assert some.sort_values(order, ignore_index=True).equals(whole.sort_values(order, ignore_index=True))


def test_equal_cases_are_told_to_be_equal_within_a_margin(tmp_path: Path, folder: Path) -> None:
    _, whole, _ = scored(spec_of(folder, "t_choice", None), tmp_path)
    same = tmp_path / "same.parquet"
    whole.to_parquet(same)
    stop = EarlyStop(margin=0.3, every=10)
    result, _, _ = scored(spec_of(folder, "t_choice", stop), tmp_path, same)
    assert result["tasks"]["t_choice"]["stopped"]["verdict"] == "equal"
    assert result["tasks"]["t_choice"]["n"] < DOCUMENTS


def test_a_task_without_right_and_wrong_is_run_whole(tmp_path: Path, folder: Path) -> None:
    first, whole, _ = scored(spec_of(folder, "t_rolling", None), tmp_path)
    same = tmp_path / "same.parquet"
    whole.to_parquet(same)
    result, _, lm = scored(spec_of(folder, "t_rolling", EarlyStop(every=10)), tmp_path, same)
    assert result["tasks"] == first["tasks"]
    assert len(lm.asked) == DOCUMENTS
