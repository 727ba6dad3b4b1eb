"""``scorecard aa``: the baseline against itself, scored twice; the noise floor of this machine."""

from __future__ import annotations

import argparse

from scorecard.aa import measured
from scorecard.errors import EXIT_FAILED
from scorecard.noise import told
from scorecard.run import Run
from scorecard.spec import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-k", dest="keyword", metavar="TEXT", default="", help="models whose id contains TEXT"
    )


def main(run: Run, options: argparse.Namespace) -> int:
    """Score each model's baseline twice, where that is not done yet, and print what differs."""
    failed = False
    for baseline in _baselines(run, options.keyword):
        noise = measured(run, baseline, build=run.options.build)
        failed |= isinstance(noise, str)
        print(f"{baseline.model.id}: {noise if isinstance(noise, str) else told(noise)}")
    return EXIT_FAILED if failed else 0


def _baselines(run: Run, keyword: str) -> list[Case]:
    found = {case.model.id: run.baseline_of(case) for case in run.cases if keyword in case.model.id}
    return list(found.values())
