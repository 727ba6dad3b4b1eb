"""Thresholds and early stopping in models.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorecard.errors import SpecError
from scorecard.load import Suite, load
from scorecard.spec import EarlyStop, GateSpec

TEXT = """
models:
  - {{set: s, name: m, version: 1, source: "path:m", tasks: [piqa], gate: {model}}}
configs:
  baseline: {{runner: baseline}}
  a: {{runner: rtn, gate: {config}}}
  b: {{runner: rtn}}
defaults:
  gate: {default}
  evaluation: {evaluation}
"""


def read(
    folder: Path, default: str = "{}", model: str = "{}", config: str = "{}", evaluation: str = "{}"
) -> Suite:
    path = folder / "models.yaml"
    path.write_text(TEXT.format(default=default, model=model, config=config, evaluation=evaluation))
    return load(path)


def gates(suite: Suite) -> dict[str, GateSpec | None]:
    return {case.config.name: case.gate for case in suite.cases}


def test_levels_are_merged_and_null_takes_back(tmp_path: Path) -> None:
    suite = read(
        tmp_path,
        default="{recovery: 0.9, kl: 0.1}",
        model="{recovery: 0.95, size: 512MiB}",
        config="{kl: null, delta_accuracy: -0.01}",
    )
    assert gates(suite) == {
        "baseline": None,
        "a": GateSpec(recovery=0.95, size_gib=0.5, delta_accuracy=-0.01),
        "b": GateSpec(recovery=0.95, size_gib=0.5, kl=0.1),
    }


def test_without_thresholds_there_is_no_gate(tmp_path: Path) -> None:
    assert set(gates(read(tmp_path)).values()) == {None}
    taken_back = read(tmp_path, default="{kl: 0.1}", config="{kl: null}")
    assert gates(taken_back) == {"baseline": None, "a": None, "b": GateSpec(kl=0.1)}


def test_early_stopping(tmp_path: Path) -> None:
    suite = read(tmp_path, evaluation="{early_stop: {alpha: 0.01, margin: 0.02}}")
    assert {case.evaluation.early_stop for case in suite.cases} == {EarlyStop(alpha=0.01, margin=0.02)}
    assert read(tmp_path).cases[0].evaluation.early_stop is None
    assert suite.baseline_of(suite.cases[1]).evaluation == suite.cases[1].evaluation


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"default": "{recovry: 1}"}, "defaults.gate: unknown key 'recovry'; did you mean 'recovery'?"),
        ({"config": "{kl: -1}"}, "configs.a.gate.kl: -1"),
        ({"model": "{size: big}"}, "models[0].gate.size: 'big' is not a size"),
        ({"default": "{delta_accuracy: 5}"}, "defaults.gate.delta_accuracy: 5"),
        ({"evaluation": "{early_stop: {alpha: 0}}"}, "defaults.evaluation.early_stop.alpha: 0"),
        ({"evaluation": "{early_stop: {margin: 1.5}}"}, "defaults.evaluation.early_stop.margin: 1.5"),
    ],
)
def test_a_mistake_is_answered_with_one_line(tmp_path: Path, arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, **arguments)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
