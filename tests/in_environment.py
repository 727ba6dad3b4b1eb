"""Run a runner, or a snippet, with the interpreter of its locked environment: a fresh process every time.

in_environment.py compress CASE.json MODEL OUTPUT    what a worker does in its compress stage
in_environment.py logits CASE.json OUTPUT LOGITS.pt  what the runner's load() makes of the artifact
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import base
from scorecard.spec import Case, from_json, to_json

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]


def python(environment: str) -> Path:
    """The interpreter of an environment, built when it is not there."""
    from scorecard import environments

    return Path(sys.executable) if environment == base.CORE else environments.ensure(environment).python


def run_python(environment: str, code: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run ``code`` with ``python -c``; returns what it printed. Raises AssertionError with its errors."""
    return _run([python(environment), "-c", code, *arguments], cwd)


def compress(case: Case, model: Path, output: Path) -> Path:
    """Compress ``model`` into ``output``, as the worker does: shapes are checked first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    request = output.with_name(f"{output.name}.case.json")
    request.write_text(json.dumps(to_json(case)))
    output.mkdir()
    _run([_python_of(case), __file__, "compress", request, model, output], output.parent)
    return output


def load_logits(case: Case, output: Path) -> torch.Tensor:
    """Logits [2, 48, vocabulary] of ``fresh_logits.tokens()``, from the artifact alone."""
    import torch

    request, result = (
        output.with_name(f"{output.name}.case.json"),
        output.with_name(f"{output.name}.logits.pt"),
    )
    request.write_text(json.dumps(to_json(case)))
    _run([_python_of(case), __file__, "logits", request, output, result], output.parent)
    return torch.load(result)


def _python_of(case: Case) -> Path:
    return python(base.get(case.config.runner).environment)


def _run(command: Sequence[str | Path], cwd: Path | None) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONNOUSERSITE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _compress(case: Case, model: Path, output: Path) -> None:
    from runners._hf import shapes

    runner = base.get(case.config.runner)(case, model, output)
    runner.check_shapes(shapes(model, case))
    runner.compress()


def _logits(case: Case, output: Path, result: Path) -> None:
    import torch
    from fresh_logits import logits

    lm: Any = base.get(case.config.runner)(case, None, output).load()
    torch.save(logits(lm.model), result)


if __name__ == "__main__":
    verb, file, *paths = sys.argv[1:]
    given = from_json(Case, json.loads(Path(file).read_text()))
    {"compress": _compress, "logits": _logits}[verb](given, *map(Path, paths))
