"""A Python that has imported what workers import, and forks a process for each job of a test.

Importing torch, transformers and lm-eval takes a new process 5 seconds of a core and more, and the tests of
the backends have some hundred that need them. A forked one has read no model and imported no backend: see
docs/decisions/0005-preloaded-workers.md. Only its hash seed is that of all others, so whatever must not
depend on one is to be tried in a process that is started anew.

fork_server.py    a line of JSON on standard input for each job, its exit code on standard output
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scorecard.preload import MODULES

_MOST = 2  # servers at once: each holds half a GiB
_servers: dict[Path, subprocess.Popen[str]] = {}


def run(
    python: Path, environment: Mapping[str, str], code: str, arguments: Sequence[str], cwd: Path | None
) -> str:
    """What ``python -c code arguments`` prints. Raises AssertionError with its errors where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = {
            "code": code,
            "argv": ["-c", *arguments],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err),
        }
        exit_code = _ask(_server(python, environment), job)
        assert exit_code == 0, err.read_text(errors="replace")[-3000:]
        return out.read_text(errors="replace")


def _server(python: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    found = _servers.pop(python, None)
    if found is None or found.poll() is not None:
        while len(_servers) >= _MOST:
            _end(_servers.pop(next(iter(_servers))))
        found = subprocess.Popen(
            [python, "-P", __file__],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    _servers[python] = found  # the last is the one that was used last
    return found


def _ask(server: subprocess.Popen[str], job: Mapping[str, Any]) -> int:
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the server died"
    return int(answer)


def _end(server: subprocess.Popen[str]) -> None:
    if server.stdin:
        with contextlib.suppress(OSError):
            server.stdin.close()
    server.wait()


@atexit.register
def _end_all() -> None:
    while _servers:
        _end(_servers.popitem()[1])


def _serve() -> None:
    for module in MODULES:
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints later is no answer
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{code}\n".encode())


def _become(job: Mapping[str, Any]) -> NoReturn:
    """What ``python -c`` is when it starts, but for its imports."""
    for place, target in enumerate((os.devnull, job["out"], job["err"])):
        flags = os.O_RDONLY if place == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(target, flags, 0o644), place)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["cwd"])
        sys.argv = list(job["argv"])
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(job["code"], "<string>", "exec"), main.__dict__)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the boundary: as the interpreter itself ends with any error
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
