"""The benchmark of evaluation speed: what its tasks share, and what it calls a flip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evaluation, tasks
from benchmarks.agreement import Agreement, agreement


@pytest.mark.parametrize("name", tasks.SHAPES)
def test_a_task_is_the_same_for_the_same_seed(name: str) -> None:
    task = tasks.task(name, 3, 0)
    assert task.requests == tasks.task(name, 3, 0).requests != tasks.task(name, 3, 1).requests
    assert sorted(set(task.owners)) == [0, 1, 2]
    assert len(task.owners) == len(task.requests)


def test_documents_share_what_those_of_the_real_tasks_share() -> None:
    mmlu = tasks.task("mmlu", 4, 0)
    starts = {context[:500] for context, _ in mmlu.requests}
    assert len(starts) == 1
    assert len({context for context, _ in mmlu.requests}) == 4
    arc = tasks.task("arc", 4, 0)
    assert len({context for context, _ in arc.requests}) == 4
    winogrande = tasks.task("winogrande", 4, 0)
    assert len({ending for _, ending in winogrande.requests}) == 4
    assert len({context for context, _ in winogrande.requests}) == 8


def test_another_best_choice_is_a_flip_unless_the_two_are_equal() -> None:
    task = tasks.Task(
        "t", "loglikelihood", [("a", " x"), ("a", " y"), ("b", " x"), ("b", " y")], [0, 0, 1, 1]
    )
    theirs = [(-1.0, True), (-2.0, False), (-3.0, False), (-3.0 - 1e-6, False)]
    ours = [(-2.5, True), (-2.0, False), (-3.0 - 1e-6, False), (-3.0, False)]
    assert agreement(task, theirs, theirs) == Agreement(0.0, 0, 0)
    assert agreement(task, theirs, ours) == Agreement(1.5, 2, 1)
    other = [(-1.0, False), *theirs[1:]]
    assert agreement(task, theirs, other) == Agreement(0.0, 1, 0)


@pytest.mark.backend
@pytest.mark.parametrize("name", ["m15", "m50"])
def test_multiply_adds_are_the_weights_that_a_token_meets(name: str) -> None:
    import torch

    from benchmarks import models

    made = models.model(name, "cpu", torch.float32, 0)
    outside = {"model.embed_tokens", "lm_head"}
    met = sum(
        m.weight.numel()
        for n, m in made.named_modules()
        if isinstance(m, torch.nn.Linear) and n not in outside
    )
    assert models.multiply_adds(name) == (met, made.lm_head.weight.numel())


@pytest.mark.backend
@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["arc", "gsm8k", "wikitext"]
    arguments = [
        "--model",
        "m15",
        "--tasks",
        *names,
        "--documents",
        "2",
        "--rounds",
        "1",
        "--batch-sizes",
        "1",
        "auto",
    ]
    assert evaluation.main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(names)
    outcomes = json.loads((tmp_path / "out.json").read_text())["outcomes"]
    assert [outcome["task"] for outcome in outcomes] == names
    assert all(outcome["agreement"]["flips"] == 0 for outcome in outcomes)
    assert all(outcome["ours"][0]["tokens"] > 0 for outcome in outcomes)
