"""The simulations run, and the promises hold in a few of them; benchmarks/statistics.py makes many."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from benchmarks import statistics
from benchmarks.coverage import clustered


def test_every_table_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["statistics", "--runs=8"])
    statistics.main()
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\*\*.+\*\*$", printed, re.M)) == 4
    tables = [block.splitlines() for block in printed.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_intervals_that_are_told_the_clusters_cover_and_others_do_not() -> None:
    told, not_told = (
        np.mean([clustered(60, way)(np.random.default_rng(seed)) for seed in range(120)])
        for way in (True, False)
    )
    assert told > 0.88
    assert not_told < 0.8
