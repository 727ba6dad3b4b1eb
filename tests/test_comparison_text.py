"""``scorecard compare``: what it prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic import Cases, frame, usual
from test_comparable import changed

from scorecard import compare, compare_command
from scorecard.errors import ComparisonError, SpecError
from scorecard.records import CaseRecords
from scorecard.report import comparison
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec

METRICS = {"pairs": "acc", "cloze": "acc"}


def written(cases: Cases, folder: Path) -> dict[str, CaseRecords]:
    """The cases by config, with their documents in files."""
    made = {}
    for case in cases.all:
        if case.documents is not None:
            path = folder / f"{case.config}.parquet"
            cases.frames[case.documents].to_parquet(path)
            made[case.config] = dataclasses.replace(case, documents=path)
        else:
            made[case.config] = case
    return made


def test_everything_is_printed_with_its_interval() -> None:
    found = compare.paired(frame(0.1, 0.05, seed=5), frame(0, 0.02), METRICS, sizes_gib=(0.5, 1.0))
    text = comparison.render(found, ("a", "b"), most=3)
    lines = text.splitlines()
    assert lines[0] == "a minus b: 800 documents of 2 tasks"
    for word in ("mean accuracy", "Δ accuracy", "recovery", "Δ score", "Δ KL"):
        (line,) = [line for line in lines if line.startswith(word)]
        assert line.count("[") == line.count("]") == 1
    assert f"flips          {found.gained} gained, {found.lost} lost" in text
    lost = found.tasks["pairs"].lost
    assert lost is not None
    assert f"pairs, lost: {lost[0]} {lost[1]} {lost[2]} and {len(lost) - 3} more" in text
    assert "gained:" not in text
    assert "and" not in comparison.render(found, ("a", "b"), most=0).replace("sample of all tasks", "")


def test_a_task_that_is_not_right_or_wrong_has_no_flips() -> None:
    half = frame().assign(value=lambda t: t.value.where(t.metric != "acc", t.value / 2))
    text = comparison.render(compare.paired(half, frame(), METRICS), ("a", "b"))
    (line,) = [line for line in text.splitlines() if line.startswith("pairs")]
    assert line.split()[-4:-2] == ["–", "–"]
    assert "flips " not in text


def test_cases_of_the_store(tmp_path: Path) -> None:
    cases = written(usual(), tmp_path)
    found = compare_command.compared(cases["gptq-w4"], cases["baseline"])
    assert found.documents == 800
    assert found.delta_score is not None
    assert found.delta_score.low > 0
    with pytest.raises(ComparisonError, match="awq-w4: is not evaluated; run it first"):
        compare_command.compared(cases["baseline"], cases["awq-w4"])
    other = changed(cases["rtn-w4"], settings={"limit": 10})
    with pytest.raises(ComparisonError, match="limit: 10, not none; evaluate both cases alike"):
        compare_command.compared(other, cases["baseline"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s.m@1-w4", "s.m@1-w4"),
        ("w4-g128", "s.m@1-w4-g128"),
        ("g128", "s.m@1-w4-g128"),
        ("baseline", "s.m@1-baseline"),
        ("w", "compare: 'w' is in s.m@1-w4, s.m@1-w4-g128; write one id in full"),
        ("w5", "compare: there is no case 'w5'"),
    ],
)
def test_a_case_is_found_by_a_part_of_its_id(text: str, found: str) -> None:
    model, spec = ModelSpec("s", "m", "1", "path:x"), EvalSpec(("piqa",))
    cases = [Case(model, ConfigSpec(name, "rtn"), spec) for name in ("w4", "w4-g128")]
    baseline = Case(model, ConfigSpec("baseline", "baseline"), spec)
    run: Any = SimpleNamespace(cases=cases, baseline_of=lambda case: baseline)
    if found.startswith("s."):
        assert compare_command._find(run, text).id == found
    else:
        with pytest.raises(SpecError, match=re.escape(found)):
            compare_command._find(run, text)
