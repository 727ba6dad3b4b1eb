"""The pins of a frozen folder: what its case needs of the environment that it ran in, and no more."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from runners.base import CORE, BaseRunner
from scorecard import environments, locks
from scorecard.errors import SpecError

#: What every frozen folder imports itself: the model, lm-eval, and per-document results.
NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "accelerate",
    "lm-eval[hf]",
    "pyarrow",
)
CORE_REQUIREMENTS = locks.FOLDER / "core.in"
HEADER = """\
# What this folder needs, with the hashes that the index gives; build.sh installs it. torch has none: any
# build of that version (CPU, CUDA) will do.
"""


def requirements(runner: BaseRunner, more: Iterable[str] = ()) -> str:
    """The text of requirements.txt. ``more`` are further distributions that the case's code imports.

    Versions are those of the environment that the runner names; where that has no lm-eval, lm-eval and what
    it needs beside come from the scorecard's own. Raises SpecError where a distribution is not installed.
    """
    wanted = [*NEEDED, *runner.requires, *more]
    pins: dict[str, str] = {}
    if runner.environment != CORE:
        found = environments.find(runner.environment)
        place = [str(p) for p in found.folder.glob("lib*/python*/site-packages")] if found else []
        every = locks.read(runner.environment).pins
        pins = closure(wanted, _installed(place)) if place else dict(every)
        pins = {name: every.get(name, version) for name, version in pins.items()}
    if "lm-eval" not in pins:
        own = closure(wanted if not pins else ["lm-eval[hf]", "pyarrow"], _installed(None))
        pins = {**own, **pins}
    missing = [name for name in ("torch", "transformers", "lm-eval") if name not in pins]
    if missing:
        raise SpecError(f"freeze: {missing[0]} is not installed; run 'python3 local.py scorecard env build'")
    known = _hashed()
    lines = [known.get((name, version), f"{name}=={version}") for name, version in sorted(pins.items())]
    return HEADER + "\n".join(lines) + "\n"


def transformers_version(runner: BaseRunner) -> str:
    """In the environment that the runner names, as its lock says."""
    if runner.environment != CORE:
        locked = environments.versions(runner.environment, ["transformers"])
        if locked:
            return locked["transformers"]
    return importlib.metadata.version("transformers")


def distributions(imports: Iterable[str]) -> list[str]:
    """The installed distributions of top-level modules. Raises SpecError for a module that has none."""
    known = importlib.metadata.packages_distributions()
    wanted = sorted(set(imports))
    for name in wanted:
        if name not in known:
            raise SpecError(f"freeze: {name} is not installed; run 'python3 local.py scorecard doctor'")
    return [known[name][0] for name in wanted]


def direct(runner: BaseRunner, text: str, more: Iterable[str] = ()) -> list[str]:
    """Pins of what the folder's code itself imports, ``more`` among it: the dependencies in its
    pyproject.toml."""
    pins = locks.parse("requirements", text, "requirements.txt").pins
    names = [_name(one) for one in (*NEEDED, *runner.requires, *more)]
    return [f"{name}=={pins[name]}" for name in dict.fromkeys(names) if name in pins]


def named_by(folder: Path) -> list[str]:
    """What a user's folder asks for in its pyproject.toml, and what every user may count on."""
    lines = CORE_REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line[:1].isalnum()]
    path = folder / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        found += project.get("dependencies", [])
    return found


def closure(
    wanted: Iterable[str], installed: Mapping[str, importlib.metadata.Distribution]
) -> dict[str, str]:
    """Versions of ``wanted`` and of all that they require, of what is installed; public versions only.

    A distribution that is missing is left out: an extra or a marker that does not hold here asks for it.
    """
    seen: dict[str, set[str]] = {}
    todo = [(_name(one), _extras(one)) for one in wanted]
    while todo:
        name, extras = todo.pop()
        if name not in installed or (name in seen and extras <= seen[name]):
            continue
        seen[name] = seen.get(name, set()) | extras
        todo += _required(installed[name], seen[name])
    return {name: installed[name].version.partition("+")[0] for name in seen}


def _required(distribution: importlib.metadata.Distribution, extras: set[str]) -> list[tuple[str, set[str]]]:
    from packaging.requirements import Requirement

    found = []
    for one in map(Requirement, distribution.requires or ()):
        contexts = [{"extra": extra} for extra in ("", *extras)]
        if one.marker is None or any(one.marker.evaluate(context) for context in contexts):
            found.append((locks.normalised(one.name), set(one.extras)))
    return found


def _installed(places: list[str] | None) -> dict[str, importlib.metadata.Distribution]:
    found = importlib.metadata.distributions(path=sys.path if places is None else places)
    return {locks.normalised(d.metadata["Name"]): d for d in found}


def _hashed() -> dict[tuple[str, str], str]:
    """Requirements with hashes of all locks, by name and version."""
    found = {}
    for name in locks.names():
        for line in locks.read(name).hashed.splitlines():
            pin, _, version = line.split()[0].partition("==")
            found[locks.normalised(pin), version] = line
    return found


def _name(requirement: str) -> str:
    return locks.normalised(re.split(r"[\s\[=<>!~;]", requirement.strip(), maxsplit=1)[0])


def _extras(requirement: str) -> set[str]:
    found = re.search(r"\[([^\]]*)\]", requirement)
    return {extra.strip() for extra in found[1].split(",")} if found else set()
