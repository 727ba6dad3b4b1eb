"""``scorecard verify FILE.zip``: what a third party asks of a submission."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from scorecard.box import GIB, BoxLimits
from scorecard.spec import to_json
from scorecard.unpack import UnpackLimits
from scorecard.verification import verify
from scorecard.verified import TASK_PATHS, TIE_NATS, Report, VerifyOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.zip")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    parser.add_argument(
        "--rebuild", action="store_true", help="also make the model again with build.sh --compress"
    )
    parser.add_argument("--original", type=Path, metavar="FOLDER", help="the original model, for --rebuild")
    parser.add_argument("--network", action="store_true", help="let build.sh use the network, with --rebuild")
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``leaderboard`` takes too."""
    boxed, packed = BoxLimits(), UnpackLimits()
    add = parser.add_argument
    add("--python", type=Path, metavar="PYTHON", help="has its packages; else they are installed by pins")
    add("--unsafe", action="store_true", help="run its code without isolation where none can be had")
    add("--tasks", action="append", metavar="FOLDER", help="your own task files; embedded:tasks")
    add("--online", action="store_true", help="let tasks fetch their data sets")
    add("--tie-nats", type=float, default=TIE_NATS, help="closer choices are ties [%(default)s]")
    add("--time", type=float, default=boxed.wall_seconds, metavar="SECONDS", help="[%(default)g]")
    add("--cpu-time", type=float, default=boxed.cpu_seconds, metavar="SECONDS", help="[%(default)g]")
    add("--memory", type=float, default=boxed.memory_bytes / GIB, metavar="GIB", help="[%(default)g]")
    add("--scratch", type=float, default=boxed.scratch_bytes / GIB, metavar="GIB", help="[%(default)g]")
    add("--processes", type=int, default=boxed.processes, help="threads count too [%(default)s]")
    add("--max-files", type=int, default=packed.files, help="in the zip [%(default)s]")
    add("--max-bytes", type=int, default=packed.total_bytes, help="unpacked [%(default)s]")
    add("--max-file-bytes", type=int, default=packed.file_bytes, help="of one file [%(default)s]")
    add("--max-ratio", type=float, default=packed.ratio, help="unpacked to packed [%(default)g]")


def verify_options(options: argparse.Namespace) -> VerifyOptions:
    """From a command line with ``add_common_arguments``."""
    boxed = BoxLimits(
        wall_seconds=options.time,
        cpu_seconds=options.cpu_time,
        memory_bytes=int(options.memory * GIB),
        processes=options.processes,
        scratch_bytes=int(options.scratch * GIB),
    )
    packed = UnpackLimits(options.max_files, options.max_bytes, options.max_file_bytes, options.max_ratio)
    return VerifyOptions(
        python=options.python.absolute() if options.python else None,
        unpack=packed,
        box=boxed,
        task_paths=(*TASK_PATHS, *(options.tasks or ())),
        tie_nats=options.tie_nats,
        unsafe=options.unsafe,
        rebuild=getattr(options, "rebuild", False),
        original=getattr(options, "original", None),
        network=getattr(options, "network", False),
        offline=not options.online,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


def main(options: argparse.Namespace) -> int:
    """Exit code 0: all claims hold; 1: one is false; 6: one could not be decided. Raises ScorecardError."""
    report = verify(options.file, verify_options(options))
    if options.json:
        print(json.dumps(as_json(report), indent=1, ensure_ascii=False))
    else:
        print("\n".join(lines(report)))
    return report.exit_code


def as_json(report: Report) -> dict[str, object]:
    told = to_json(dataclasses.replace(report, documents={}))
    del told["documents"]
    return {**told, "exit_code": report.exit_code}


def lines(report: Report) -> list[str]:
    """One line for each claim, what differs below it, and what else is to be known."""
    found = [f"{report.file}: {report.case}"]
    for verdict in report.verdicts:
        found += [verdict.line, *(f"    {detail}" for detail in verdict.details)]
    return [*found, *(f"note: {note}" for note in report.notes)]
