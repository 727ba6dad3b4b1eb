"""``scorecard env {list,build,check,remove,lock}``: the locked environments of the backends, by hand."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scorecard import environments, installing, locks
from scorecard.errors import EXIT_FAILED, ScorecardError

VERBS = ("list", "build", "check", "remove", "lock")
_HEADER = """\
# Made by 'scorecard env lock {name}' from {name}.in; do not edit. Every distribution of one environment, with
# the hashes that the index gives. torch has none: any build of that version (CPU, CUDA) satisfies the line.
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("action", choices=VERBS, help="lock: resolve environments/NAME.in anew, with uv")
    verb.add_argument("names", nargs="*", metavar="NAME", help=f"[all: {', '.join(locks.names())}]")
    verb.add_argument("--rebuild", action="store_true", help="build again what is there")


def main(options: argparse.Namespace) -> int:
    """Exit code 0, or 1 where a check found something. Raises ScorecardError for what a user can mend."""
    names: list[str] = options.names or locks.names()
    if options.action != "lock":
        for name in names:
            locks.read(name)
    if options.action == "remove" and not options.names:
        raise ScorecardError("scorecard env remove: says nothing to remove; write a NAME")
    actions: dict[str, Callable[[Sequence[str]], int]] = {
        "list": _list,
        "build": lambda some: _build(some, anew=options.rebuild),
        "check": _check,
        "remove": _remove,
        "lock": _lock,
    }
    return actions[options.action](names)


def _list(names: Sequence[str]) -> int:
    print(f"environments in {environments.root()}")
    for name in names:
        print(f"  {describe(name)}")
    return 0


def describe(name: str) -> str:
    """One line on an environment: its size and the time it took, or that it is not built."""
    missing = f"{name}: not built ({len(locks.read(name).pins)} distributions); built on first use"
    return environments.line(name) or missing


def _build(names: Sequence[str], *, anew: bool) -> int:
    for name in names:
        try:
            environments.build(name, anew=anew, say=_say)
        except installing.InstallError as error:
            raise ScorecardError(
                f"environment {name}: {error}; look at the network and pip's settings ('pip config list')"
            ) from None
        print(describe(name))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _check(names: Sequence[str]) -> int:
    wrong = 0
    for name in names:
        faults = environments.check(name)
        print("\n".join(f"{name:<14} {fault}" for fault in faults) or f"{name:<14} ok")
        wrong += len(faults)
    return EXIT_FAILED if wrong else 0


def _remove(names: Sequence[str]) -> int:
    for name in names:
        gone = environments.remove(name)
        print("\n".join(f"removed {folder}" for folder in gone) or f"{name}: nothing to remove")
    return 0


def _lock(names: Sequence[str]) -> int:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise ScorecardError("scorecard env lock: needs uv; run 'pip install uv'")
    # Without further indexes: one that holds some files only would give only their hashes.
    environment = {k: v for k, v in installing.uv_environment().items() if k != "UV_INDEX"}
    for name in names:
        source = locks.FOLDER / f"{name}.in"
        if not source.is_file():
            raise ScorecardError(
                f"environments/{name}.in: there is no such file; write the wanted packages there"
            )
        command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--upgrade", "--python-version", "3.11", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise ScorecardError(f"environments/{name}.in: {installing.last_line(done.stderr)}")
        text = _HEADER.format(name=name) + any_build(done.stdout)
        (locks.FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"wrote environments/{name}.txt")
    return 0


def any_build(text: str) -> str:
    """A resolved lock without local versions (``+cpu``), nor the hashes of those distributions, which are of
    one build alone; torch is always one."""
    entry = re.compile(r"^(?P<pin>[\w.-]+==[^+\s]+)\+[\w.]+(?: \\\n +--hash=\S+)*$", re.MULTILINE)
    torch = re.compile(r"^(?P<pin>torch==[^+\s]+)(?: \\\n +--hash=\S+)*$", re.MULTILINE)
    return torch.sub(r"\g<pin>", entry.sub(r"\g<pin>", text))
