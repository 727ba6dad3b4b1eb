"""The noise floor: two runs of one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import TASKS, evaluation, frame, record

from scorecard import aa, compare
from scorecard.errors import ComparisonError
from scorecard.noise import again, noise_floor, told
from scorecard.report import summary
from scorecard.row import Table
from scorecard.shuffled import METHODS, shuffled, wrapped
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec, Record, to_json

METRICS = dict.fromkeys(TASKS, "acc")


def test_equal_runs_have_none() -> None:
    found = noise_floor(frame(), frame(), METRICS)
    assert (found.documents, found.flips, found.delta_accuracy, found.kl) == (800, 0, 0.0, 0.0)
    assert found.top1_changed is None


def test_what_differs_is_counted() -> None:
    second = frame(kl=2e-6)
    second.loc[(second.task == "pairs") & second.doc.isin([3, 4]), "value"] = 0.0
    first = frame()
    first.loc[(first.task == "pairs") & first.doc.isin([3, 4]), "value"] = 1.0
    found = noise_floor(first, second, METRICS)
    assert found.flips == 2
    assert found.largest_task_delta == pytest.approx(2 / 400)
    assert found.delta_accuracy == pytest.approx(-1 / 400)
    assert found.kl == pytest.approx(2e-6, rel=0.2)
    text = told(to_json(found))
    assert text.startswith("2 of 800 documents flip, Δ -0.25 points, KL 2.")
    with pytest.raises(ComparisonError):
        noise_floor(frame(documents=10), second, METRICS)


def test_the_second_run_has_other_batches_and_another_order_and_nothing_else() -> None:
    spec = EvalSpec(("piqa",), limit=5)
    baseline = Case(ModelSpec("s", "m", "1", "path:x"), ConfigSpec("baseline", "baseline"), spec)
    second = again(baseline)
    assert second.id == "s.m@1-aa"
    assert second.config.runner == "baseline"
    told_apart = {k for k, v in to_json(second.evaluation).items() if v != to_json(spec)[k]}
    assert told_apart == {"batch_size", "shuffle"}
    single = again(Case(baseline.model, baseline.config, EvalSpec(("piqa",), batch_size=1)))
    assert single.evaluation.batch_size > 1


class Bench:
    """A bench whose stages are done, or are not."""

    def __init__(self, folder: Path, frames: dict[str, pd.DataFrame]) -> None:
        self.store, self.frames, self.closed = self, frames, False
        self.folder = folder

    def record(self, case: Case, stage: str) -> Record:
        if case.id not in self.frames:
            return record(case.id, stage, {}, "skipped", "not run yet")
        made = dataclasses.replace(record(case.id, stage, evaluation(frame(), 0.0)), key=case.config.name)
        self.path(made.key).mkdir(exist_ok=True)
        self.frames[case.id].to_parquet(self.path(made.key) / "documents.parquet")
        return made

    def path(self, key: str) -> Path:
        return self.folder / key

    def close(self) -> None:
        self.closed = True


def test_both_runs_come_from_the_store(tmp_path: Path) -> None:
    baseline = Case(
        ModelSpec("s", "m", "1", "path:x"), ConfigSpec("baseline", "baseline"), EvalSpec(("piqa",))
    )
    bench = Bench(tmp_path, {"s.m@1-baseline": frame()})
    run: Any = SimpleNamespace(beside=lambda case, build: bench)
    assert aa.measured(run, baseline, build=False) == "evaluate skipped: not run yet"
    assert aa.of_models(run, {"s.m@1": baseline}) == {}
    bench.frames["s.m@1-aa"] = frame(loss=0.01, seed=4)
    (noise,) = aa.of_models(run, {"s.m@1": baseline}).values()
    assert noise["flips"] == compare.paired(frame(loss=0.01, seed=4), frame(), METRICS).flips > 0
    assert bench.closed
    table = Table((), {"noise_floor": {"s.m@1": noise}})
    (line,) = summary.problems(table)
    assert line.startswith(f"noise floor of s.m@1, scored twice: {noise['flips']} of 800 documents flip")


class Echo:
    """Answers each request with itself, and remembers the order they came in."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        self.seen = list(requests)
        return list(requests)

    loglikelihood_rolling = generate_until = loglikelihood


@given(st.lists(st.integers(), max_size=30), st.integers(0, 9))
def test_answers_come_back_in_the_order_of_their_requests(requests: list[int], seed: int) -> None:
    lm = Echo()
    with shuffled(lm, seed):
        for name in METHODS:
            assert getattr(lm, name)(requests) == requests
            assert sorted(lm.seen) == sorted(requests)
    lm.loglikelihood(requests)
    assert lm.seen == requests


def test_wrappers_can_be_nested_and_leave_nothing_behind() -> None:
    lm = Echo()
    with wrapped(lm, lambda method: lambda requests: [2 * x for x in method(requests)]):
        with shuffled(lm, 3):
            assert lm.loglikelihood([1, 2, 3]) == [2, 4, 6]
        assert lm.generate_until([5]) == [10]
    assert lm.loglikelihood([1]) == [1]
    assert set(vars(lm)) == {"seen"}


def test_the_order_is_another_one() -> None:
    lm = Echo()
    with shuffled(lm, 1):
        lm.loglikelihood(list(range(50)))
    assert lm.seen != list(range(50))
    with shuffled(SimpleNamespace(), None):
        pass
