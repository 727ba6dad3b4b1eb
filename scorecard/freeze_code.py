"""The programs of a frozen folder: a backend's own code with the options and the calibration of one case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import base
from runners.base import BaseRunner
from scorecard import libraries
from scorecard.errors import SpecError
from scorecard.extract import Key, extract
from scorecard.spec import Case

PROGRAMS = Path(__file__).with_name("frozen")
SEAMS = "scorecard.frozen.seams"
CASE: Key = ("scorecard.frozen.case", "CASE")
PLACEHOLDER = "runners.baseline"  # the backend that the programs name
#: Backends that have nothing to cut out, with the reason.
NOT_COVERED = {"fake": "it compresses nothing"}
#: Each program, and how many folders below the frozen folder it lies.
PROGRAM_DEPTHS = {"compression/compress.py": 1, "user.py": 0}
# What a program has in addition where it needs a package of ours that is not cut out (scorecard.libraries).
WITH_LIBRARIES = """
from pathlib import Path

from scorecard.frozen.seams import package

LIBRARIES = [package(name, Path(__file__).resolve().parents[{depth}]) for name in {names}]
"""


@dataclass(frozen=True)
class Calibration:
    """``text`` is calibration.jsonl, a sequence of token ids a line; ``sha256`` is its hash."""

    text: str
    sha256: str
    samples: int
    tokens: int
    tokens_sha256: str


def programs(
    case: Case, runner: BaseRunner, calibration: Calibration | None, *, old_transformers: bool
) -> dict[str, str]:
    """``compression/compress.py`` and ``user.py``. Raises SpecError for a backend that cannot be frozen."""
    name = type(runner).__module__.rpartition(".")[2]
    if name in NOT_COVERED:
        raise SpecError(
            f"freeze: the runner '{name}' cannot be frozen: {NOT_COVERED[name]}; name another case"
        )
    if case.calibration and calibration and case.calibration.vision_samples:
        raise SpecError(
            f"freeze: {case.id} was calibrated on pictures, which are not frozen; name another case"
        )
    moved = _moved(name, old_transformers)
    kind = type(runner).Options
    options: Key = (kind.__module__, kind.__name__)
    fields = {name: _default(value) for name, value in runner.frozen_options().items()}
    values = {options: fields, CASE: {"": _case(case, calibration, kind.__name__)}}

    def cut(path: str, more: str = "") -> str:
        text = (PROGRAMS / Path(path).name).read_text(encoding="utf-8") + more
        return extract(text.replace(PLACEHOLDER, f"runners.{name}"), moved, values)

    found = {path: cut(path) for path in PROGRAM_DEPTHS}
    if names := [library.name for library in libraries.needed(found.values())]:
        found = {
            path: cut(path, WITH_LIBRARIES.format(depth=depth, names=names))
            for path, depth in PROGRAM_DEPTHS.items()
        }
    return found


def evaluation() -> str:
    """``evaluate.py``."""
    return extract((PROGRAMS / "evaluate.py").read_text(encoding="utf-8"), {}, {})


def _moved(name: str, old_transformers: bool) -> dict[Key, Key]:
    """What the programs have in another form."""
    names = {
        "runners.base": ["BaseRunner"],
        "runners._calibration": ["token_lists", "vision_rows"],
        "runners._functions": ["function"],
        "runners._hf": ["to_lm"],
        "runners.llmcompressor": ["recipe_of"],
    }
    if not old_transformers:
        names["runners._old_transformers"] = ["is_old", "readable"]
    return {(module, one): (SEAMS, one) for module, some in names.items() for one in some}


def _default(value: Any) -> str:
    """Source of a field's default."""
    if isinstance(value, list | dict | set):
        return f"field(default_factory=lambda: {value!r})"
    return repr(value)


def _case(case: Case, calibration: Calibration | None, options: str) -> str:
    """Source of what the code reads of the case."""
    model, evaluation = case.model, case.evaluation
    parts = {
        "id": repr(case.id),
        "model": _space({"trust_remote_code": model.trust_remote_code, "allow_pickle": model.allow_pickle}),
        "config": _space({"name": case.config.name, "runner": case.config.runner}),
        "evaluation": _space({"dtype": evaluation.dtype}),
        "calibration": _calibration(case, calibration),
        "options": f"{options}()",
    }
    inner = "".join(f"    {name}={text},\n" for name, text in parts.items())
    return f"SimpleNamespace(\n{inner})"


def _calibration(case: Case, calibration: Calibration | None) -> str:
    if case.calibration is None or calibration is None:
        return "None"
    spec = dataclasses.asdict(case.calibration)
    kept = ("samples", "max_length", "seed", "vision_samples")
    return _space({**{name: spec[name] for name in kept}, "sha256": calibration.sha256})


def _space(values: Mapping[str, Any]) -> str:
    return f"SimpleNamespace({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def runner_of(case: Case, model_dir: Path | None) -> BaseRunner:
    """The case's runner, which may read the original in ``model_dir``."""
    return base.get(case.config.runner)(case, model_dir, Path())
