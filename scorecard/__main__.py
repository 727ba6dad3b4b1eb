"""``python -m scorecard {run,list,report,compare,freeze,submit,verify,doctor,…}``; see ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from scorecard.handover import hand_over

    hand_over(["-m", "scorecard", *sys.argv[1:]])

from scorecard import (
    aa_command,
    compare_command,
    doctor,
    document,
    env_command,
    freeze_command,
    leaderboard_command,
    machine,
    power_command,
    results,
    submit_command,
    verify_command,
)
from scorecard.errors import EXIT_USAGE, ScorecardError
from scorecard.perform import NOT_RUN
from scorecard.run import BENCH_STAGES, Run, add_options, from_arguments
from scorecard.spec import Case, Record


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="scorecard", description="The scorecard for LLM compression.")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("run", help="the same as pytest; takes pytest's arguments", add_help=False)
    listing = verbs.add_parser("list", help="the cases of models.yaml and what the store has of them")
    report = verbs.add_parser("report", help="the score table, from what the store has")
    report.add_argument("--format", choices=sorted(results.FORMATS), default="text")
    report.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")
    report.add_argument("-k", dest="keyword", metavar="TEXT", help="only cases whose id contains TEXT")
    two = verbs.add_parser("compare", help="two cases document by document: differences, intervals, flips")
    compare_command.add_arguments(two)
    twice = verbs.add_parser("aa", help="the baseline scored twice: what this machine's rounding does")
    aa_command.add_arguments(twice)
    power_command.add_arguments(verbs.add_parser("power", help="how many documents a comparison needs"))
    frozen = verbs.add_parser("freeze", help="a case as a folder that stands alone: code, pins, data, claims")
    freeze_command.add_arguments(frozen)
    check = verbs.add_parser("doctor", help="what works on this machine, and what mends the rest")
    check.add_argument("--case", metavar="ID", help="look at one case before it runs: shapes, disk, memory")
    env_command.add_arguments(verbs.add_parser("env", help="the locked environments of the backends"))
    submit_command.add_arguments(verbs.add_parser("submit", help="check a frozen folder and pack it"))
    verify_command.add_arguments(verbs.add_parser("verify", help="whether what a submission claims is true"))
    board = verbs.add_parser("leaderboard", help="verify all submissions of a folder, in one table")
    leaderboard_command.add_arguments(board)
    verbs.add_parser("schema", help="print the JSON Schema of models.yaml, for editors")
    for verb in (listing, report, two, twice, frozen, check):
        add_options(verb.add_argument)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        return _run(given[1:])
    options = parser().parse_args(given)
    if options.verb == "schema":
        print(json.dumps(document.json_schema(), indent=2))
        return 0
    try:
        alone = {
            "env": env_command.main,
            "power": power_command.main,
            "submit": submit_command.main,
            "verify": verify_command.main,
            "leaderboard": leaderboard_command.main,
        }
        if options.verb in alone:
            return alone[options.verb](options)
        run = Run(from_arguments(lambda name: getattr(options, name)))
        verbs = {
            "list": _list,
            "report": _report,
            "compare": compare_command.main,
            "aa": aa_command.main,
            "freeze": freeze_command.main,
            "doctor": _doctor,
        }
        return verbs[options.verb](run, options)
    except ScorecardError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    import pytest

    bench = Path(__file__).with_name("test_scorecard.py")
    return int(pytest.main([str(bench), f"--rootdir={machine.ROOT}", *arguments]))


def _list(run: Run, options: argparse.Namespace) -> int:
    found = run.lookup(run.cases)
    width = max(len(case.id) for case in run.cases)
    for case in run.cases:
        states = " ".join(f"{stage}:{_state(found[case.id][stage])}" for stage in BENCH_STAGES)
        print(f"{case.id:<{width}}  {case.config.runner:<9} {states}")
    return 0


def _state(record: Record) -> str:
    return "-" if record.reason == NOT_RUN else record.status


def _report(run: Run, options: argparse.Namespace) -> int:
    cases: list[Case] = [c for c in run.cases if not options.keyword or options.keyword in c.id]
    if not cases:
        raise ScorecardError(f"-k {options.keyword}: no case of {run.options.models_yaml.name} contains that")
    text = results.summarise(run, cases, write=False).render(options.format)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)
    return 0


def _doctor(run: Run, options: argparse.Namespace) -> int:
    if options.case:
        return doctor.preflight(run, run.case(options.case))
    return doctor.report(run)


if __name__ == "__main__":
    sys.exit(main())
