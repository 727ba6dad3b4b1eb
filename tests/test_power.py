"""Numbers of documents against the tests they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from synthetic import usual
from test_report import table_of

from scorecard import __main__, power
from scorecard.report import json_report
from scorecard.significance import mcnemar


def test_connor_by_hand() -> None:
    """Connor 1987: psi = 0.3, delta = 0.1, 5 % and 80 %: ((1.96 sqrt .3 + .8416 sqrt .29) / .1)^2 = 233.1."""
    assert power.paired_documents(0.1, 0.3) == power.paired_documents(-0.1, 0.3) == 234
    z, y = norm.ppf([0.995, 0.9])
    wanted = ((z * 0.3**0.5 + y * 0.29**0.5) / 0.1) ** 2
    assert power.paired_documents(0.1, 0.3, 0.01, 0.9) == np.ceil(wanted)


def test_unpaired_by_hand() -> None:
    """Fleiss: 0.6 against 0.5 takes 388 of each (387.3)."""
    assert power.unpaired_documents(0.6, 0.5) == power.unpaired_documents(0.5, 0.6) == 388


@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.06), (0.1, 0.2), (0.0, 0.01), (0.05, 0.05)])
def test_exact_power_by_simulation(gained: float, lost: float) -> None:
    generator = np.random.default_rng(1)
    counts = generator.multinomial(400, [gained, lost, 1 - gained - lost], size=4000)
    rejected = np.mean([mcnemar(more, fewer) <= 0.05 for more, fewer, _ in counts])
    assert power.exact_power(400, gained, lost) == pytest.approx(rejected, abs=0.025)


@pytest.mark.parametrize(("delta", "discordance"), [(0.02, 0.05), (0.05, 0.1), (0.01, 0.2)])
def test_the_documents_asked_for_give_the_power(delta: float, discordance: float) -> None:
    """The exact test is conservative: with few discordant documents it falls somewhat short of 80 %."""
    documents = power.paired_documents(delta, discordance)
    found = power.exact_power(documents, (discordance - delta) / 2, (discordance + delta) / 2)
    assert 0.75 <= found <= 0.81


@given(st.integers(20, 100_000), st.floats(0.001, 1))
def test_what_is_detectable_needs_these_documents(documents: int, discordance: float) -> None:
    seen = power.detectable(documents, discordance)
    if seen is None:
        assert power.paired_documents(discordance, discordance) > documents
    else:
        assert 0 < seen <= discordance
        assert power.paired_documents(seen, discordance) <= documents + 1


def test_more_units() -> None:
    """Twice as near takes four times as many; 2.04 times as many where the interval just touches."""
    touching = power.more_units(1000, 0.02, 0.02)
    assert touching == pytest.approx(1000 * ((1.96 + 0.8416) / 1.96) ** 2 - 1000, abs=2)
    assert power.more_units(1000, 0.02, 0.01) == pytest.approx(4 * (touching + 1000) - 1000, abs=4)
    assert power.more_units(1000, 0.02, 0.0) is None
    assert power.more_units(1000, 0.02, 1e-6) is None


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = __main__.main(["power", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--delta=0.01", "--discordance=0.05", "--accuracy=0.7")
    assert code == 0
    assert f"{power.paired_documents(0.01, 0.05):,} documents" in out
    assert f"{power.unpaired_documents(0.7, 0.69):,} documents" in out
    code, out, _ = call(capsys, "--documents=1000", "--discordance=0.05")
    assert code == 0
    assert f"show a difference of {100 * (power.detectable(1000, 0.05) or 0):.2f} points" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "write --results FILE"),
        (["--delta=0.1", "--discordance=0.05"], "at most the share of documents that differ"),
        (["--delta=0.1", "--discordance=0.2", "--alpha=2"], "--alpha: 2.0 is not possible"),
        (["--results=nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert message in err


def test_the_cases_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    table = table_of(usual())
    path.write_text(json_report.render(table))
    code, out, _ = call(capsys, f"--results={path}")
    assert code == 0
    lines = {line.split()[0].rpartition("-")[2]: line.split() for line in out.splitlines()}
    row = next(row for row in table.rows if row.config == "rtn-w2")
    assert row.delta_accuracy is not None
    share = (row.flips or 0) / 800
    assert lines["w2"][4] == f"{power.paired_documents(row.delta_accuracy, share):,}"
    assert lines["w8"][3:5] == ["+0.00", "–"]
