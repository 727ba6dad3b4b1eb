"""The search for the one step constant, and the command line's small parts."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdq.__main__ import main, numbers, size
from rdq.errors import RdqError
from rdq.search import TRIES, search


@given(
    slope=st.floats(-1.5, -0.3),
    bend=st.floats(-0.03, 0.0),
    target=st.floats(1e4, 1e9),
    start=st.floats(1e-6, 1e3),
)
def test_bytes_are_met_from_below(slope: float, bend: float, target: float, start: float) -> None:
    def size_of(c: float) -> float:
        x = math.log(c)
        return math.exp(13 + slope * x + bend * (slope * x) ** 2 / 10)

    tried: list[float] = []

    def trial(c: float) -> float:
        tried.append(c)
        return size_of(c)

    largest = max(size_of(start * 2.0**n) for n in range(-39, 39))
    if target > largest / 2:
        return
    found = search(trial, float, target, start, tolerance=0.004, rises=False)
    assert target * 0.996 <= found <= target
    assert len(tried) <= TRIES


@given(power=st.floats(1.0, 6.0), target=st.floats(1e-4, 1.0))
def test_a_divergence_is_met_from_below(power: float, target: float) -> None:
    found = search(lambda c: 3e5 * c**power, float, target, 1e-4, tolerance=0.04, rises=True)
    assert target * 0.96 <= found <= target


def test_few_trials_are_needed_where_the_logarithms_lie_on_a_line() -> None:
    tried: list[float] = []

    def trial(c: float) -> float:
        tried.append(c)
        return 1e6 * c**-0.4

    search(trial, float, 5e6, 1e-4, tolerance=0.004, rises=False)
    assert len(tried) <= 4


def test_steps_of_the_curve_end_with_the_best_that_fits() -> None:
    found = search(lambda c: 100.0 if c < 1e-3 else 50.0, float, 80.0, 1e-4, tolerance=0.01, rises=False)
    assert found == 50.0


def test_a_budget_below_the_least_is_an_error() -> None:
    with pytest.raises(RdqError, match=r"^budget: 500 cannot be met, the least is about 1000; allow more$"):
        search(lambda c: 1000.0 + 1 / c, float, 500.0, 1.0, tolerance=0.01, rises=False)


def test_a_budget_above_the_most_gives_the_most() -> None:
    found = search(lambda c: 1000.0 / (1 + c), float, 5000.0, 1.0, tolerance=0.01, rises=False)
    assert 990 < found <= 1000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2GiB", 2 << 30), ("900MB", 900_000_000), ("123456", 123456), ("1.5k", 1500), ("3 mib", 3 << 20)],
)
def test_sizes(text: str, wanted: int) -> None:
    assert size(text) == wanted


@pytest.mark.parametrize("text", ["", "two", "-3", "2TB", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; write 2GiB"):
        size(text)


def test_several_budgets() -> None:
    assert numbers("4,3,2.5") == [4, 3, 2.5]
    with pytest.raises(argparse.ArgumentTypeError, match="are no numbers; write 4,3"):
        numbers("4;3")


@pytest.mark.parametrize("arguments", [[], ["--bits", "3", "--kl", "0.1"]])
def test_one_budget_is_wanted(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compress", str(tmp_path), str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2


def test_a_folder_without_weights_is_one_line_and_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(tmp_path), str(tmp_path / "out"), "--bits", "3"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("rdq: ")
    assert said.endswith("no model.safetensors; convert the weights with save_pretrained\n")
    assert said.count("\n") == 1
