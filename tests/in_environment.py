"""Run a runner, or a snippet, with the interpreter of its locked environment, in a process of its own.

in_environment.py compress CASE.json MODEL OUTPUT    what a worker does in its compress stage
in_environment.py logits CASE.json OUTPUT LOGITS.pt  what the runner's load() makes of the artifact
in_environment.py original CASE.json MODEL LOGITS.pt what transformers makes of the original
in_environment.py all JOBS.json LOG                  many of these, each in a process of its own
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import fork_server

from runners import base
from scorecard.spec import Case, from_json, to_json

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
Job = Sequence[str | Path]


def python(environment: str) -> Path:
    """The interpreter of an environment, built when it is not there."""
    from scorecard import environments

    return Path(sys.executable) if environment == base.CORE else environments.ensure(environment).python


def run_python(environment: str, code: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run ``code`` as ``python -c`` does; returns what it printed. Raises AssertionError with its errors."""
    words = [str(word) for word in arguments]
    return fork_server.run(python(environment), _environment(), code, words, cwd)


def compress(case: Case, model: Path, output: Path, *, fresh: bool = False) -> Path:
    """Compress ``model`` into ``output``, as the worker does: shapes are checked first.

    ``fresh``: in a process that is started for it, with a hash seed of its own.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    request = output.with_name(f"{output.name}.case.json")
    request.write_text(json.dumps(to_json(case)))
    output.mkdir()
    _do_there(case, ["compress", request, model, output], output.parent, fresh=fresh)
    return output


def load_logits(case: Case, output: Path) -> torch.Tensor:
    """Logits [2, 48, vocabulary] of ``fresh_logits.tokens()``, from the artifact alone."""
    import torch

    request, result = (
        output.with_name(f"{output.name}.case.json"),
        output.with_name(f"{output.name}.logits.pt"),
    )
    request.write_text(json.dumps(to_json(case)))
    _do_there(case, ["logits", request, output, result], output.parent)
    return torch.load(result)


def run_all(environment: str, jobs: Sequence[Job], imports: Sequence[str] = ()) -> list[str]:
    """Each job in a process of its own, forked from one that has torch, transformers and ``imports``.

    A job is ("compress", CASE.json, MODEL, OUTPUT) or ("logits", CASE.json, OUTPUT, LOGITS.pt). Returns the
    last line of what each wrote to its standard error before it failed; "" for those that did not.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan, log = Path(folder) / "jobs.json", Path(folder) / "log"
        words = [[str(word) for word in job] for job in jobs]
        plan.write_text(json.dumps({"imports": ["torch", "transformers", *imports], "jobs": words}))
        _run([python(environment), __file__, "all", plan, log], None)
        return [_last_line(Path(f"{log}.{place}")) for place in range(len(jobs))]


def _last_line(failed: Path) -> str:
    if not failed.is_file():
        return ""
    lines = [line.strip() for line in failed.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it died without a word"


def _all(plan: Path, log: Path) -> None:
    asked = json.loads(plan.read_text())
    for name in asked["imports"]:
        importlib.import_module(name)
    for place, (verb, *paths) in enumerate(asked["jobs"]):
        errors = Path(f"{log}.{place}")
        child = os.fork()
        if not child:
            _one(verb, paths, errors)
        if os.waitpid(child, 0)[1] == 0:
            errors.unlink(missing_ok=True)


def _one(verb: str, paths: Sequence[str], errors: Path) -> NoReturn:
    with errors.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        status = 1
        try:
            do([verb, *paths])
            status = 0
        except Exception:  # noqa: BLE001 - the boundary: a backend may raise anything, and the parent reads it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _do_there(case: Case, job: Job, cwd: Path, *, fresh: bool = False) -> None:
    environment = base.get(case.config.runner).environment
    if fresh:
        _run([python(environment), __file__, *job], cwd)
    else:
        run_python(environment, "import in_environment, sys; in_environment.do(sys.argv[1:])", *job, cwd=cwd)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONNOUSERSITE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _run(command: Sequence[str | Path], cwd: Path | None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _compress(case: Case, model: Path, output: Path) -> None:
    from runners._hf import shapes

    runner = base.get(case.config.runner)(case, model, output)
    runner.check_shapes(shapes(model, case))
    runner.compress()


def _original(case: Case, model: Path, result: Path) -> None:
    import torch
    from fresh_logits import logits

    from runners._hf import load_causal_lm

    torch.save(logits(load_causal_lm(model, case)), result)


def _logits(case: Case, output: Path, result: Path) -> None:
    import torch
    from fresh_logits import logits

    lm: Any = base.get(case.config.runner)(case, None, output).load()
    torch.save(logits(lm.model), result)


def do(words: Sequence[str]) -> None:
    verb, file, *paths = words
    given = from_json(Case, json.loads(Path(file).read_text()))
    {"compress": _compress, "logits": _logits, "original": _original}[verb](given, *map(Path, paths))


if __name__ == "__main__":
    if sys.argv[1] == "all":
        _all(*map(Path, sys.argv[2:]))
    else:
        do(sys.argv[1:])
