"""What works on this machine, and what mends the rest; and one case looked at before it runs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runners import base
from scorecard import environments, isolation, locks, machine, sources
from scorecard.env_command import describe
from scorecard.errors import EXIT_FAILED, RunnerUnavailable, ScorecardError
from scorecard.run import Run
from scorecard.spec import Case, ConfigSpec

GIB = 2**30


def report(run: Run) -> int:
    """Print the machine, the environments, and the matrix of backends. Always exit code 0."""
    here = machine.describe()
    memory = (here["memory_bytes"] or 0) / GIB
    print(f"machine    {here['cpu']}, {here['cores']} cores, {memory:.1f} GiB, {here['os']}")
    print("gpu        " + (", ".join(g["name"] for g in here["gpus"]) or "none: everything runs on the CPU"))
    print(f"isolation  {isolation.available()}")
    print(f"store      {run.options.work_dir}")
    print(f"models     {run.options.models_dir}")
    print(f"\nenvironments in {environments.root()}")
    for name in locks.names():
        print(f"  {describe(name)}")
    rows = [("backend", "environment", "built", "device", "packages"), *(_row(run, n) for n in base.names())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    print()
    for row in rows:
        print(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
        )
    return 0


def _row(run: Run, name: str) -> tuple[str, str, str, str, str]:
    runner = base.get(name)
    wanted = [requirement.partition("==")[0] for requirement in runner.requires]
    if runner.environment == base.CORE:
        built, found = "yes", machine.packages(wanted)
    else:
        built = "yes" if environments.find(runner.environment) else "no: on first use"
        found = environments.versions(runner.environment, wanted)
    packages = ", ".join(f"{package} {version}" for package, version in found.items())
    return name, runner.environment, built, _device(run, name), packages


def _device(run: Run, name: str) -> str:
    """``cpu`` or ``cuda`` with the runner's default options, or why it cannot run here."""
    some = run.cases[0]
    try:
        case = dataclasses.replace(some, config=ConfigSpec(name, name))
        base.get(name)(case, None, Path()).check()
    except RunnerUnavailable as error:
        return f"no: {error}"
    except ScorecardError:  # an option without a default: nothing is known without it
        return machine.device()
    return machine.device()


def preflight(run: Run, case: Case) -> int:
    """Look at one case before it runs; prints a line for each question, exit code 1 if one is answered no."""
    wrong = 0
    for what, answer in _questions(run, case):
        wrong += answer.startswith("no: ")
        print(f"{what:<12} {answer}")
    return EXIT_FAILED if wrong else 0


def _questions(run: Run, case: Case) -> Iterator[tuple[str, str]]:
    runner = base.get(case.config.runner)(case, None, Path())
    yield "case", case.id
    yield "backend", _answer(runner.check)
    if runner.environment != base.CORE:
        yield "environment", describe(runner.environment)
    try:
        fetched = sources.fetch(case.model, run.options.models_dir, offline=run.options.offline)
    except ScorecardError as error:
        yield "model", f"no: {error}"
        return
    size = sum(file.size_bytes for file in fetched.files.values())
    yield "model", f"{size / GIB:.2f} GiB in {fetched.path}"
    yield "shapes", _answer(lambda: _check_shapes(case, runner, fetched.path))
    yield "disk", _enough(shutil.disk_usage(_existing(run.options.work_dir)).free, 2 * size, "free")
    yield "memory", _enough(machine.memory_bytes("MemAvailable") or 0, 3 * size, "available")
    yield "calibration", _answer(lambda: _check_calibration(case, runner))
    yield "time", _time(run, case)


def _answer(question: object) -> str:
    assert callable(question)
    try:
        question()
    except ScorecardError as error:
        return f"no: {error}"
    return "ok"


def _check_shapes(case: Case, runner: base.BaseRunner, folder: Path) -> None:
    from runners._hf import shapes

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    runner.check_shapes(shapes(folder, case))


def _check_calibration(case: Case, runner: base.BaseRunner) -> None:
    from runners import _calibration

    if runner.calibrates and case.calibration:
        _calibration.fingerprint(case.calibration.data)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _enough(have: int, need: int, word: str) -> str:
    """Rough needs: the artifact and a copy on disk; the model, its copy and working space in memory."""
    line = f"{have / GIB:.1f} GiB {word}, about {need / GIB:.1f} GiB needed"
    return line if have >= need else f"no: {line}"


def _time(run: Run, case: Case) -> str:
    """What this case took the last time, else what others of its backend took; nothing is guessed."""
    found = run.lookup([case])[case.id]
    seconds = [record.seconds for record in found.values() if record.status == "ok"]
    if len(seconds) == len(found):
        return f"done already; it took {sum(seconds):.0f} s"
    like = [c for c in run.cases if c.config.runner == case.config.runner and c.model == case.model]
    totals = [
        sum(record.seconds for record in records.values())
        for records in run.lookup(like).values()
        if all(record.status == "ok" for record in records.values())
    ]
    if totals:
        return f"about {sum(totals) / len(totals):.0f} s, as {len(totals)} other of this backend took"
    return "not known: nothing of this backend has run on this model"
