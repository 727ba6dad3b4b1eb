"""A process that has imported what every worker imports, and forks a worker for each request.

    <python> -P -m scorecard.preload

On standard input, a line of JSON each: ``{"request": PATH}``. On standard output: ``{"ready": null}``, or why
not; then ``{"started": PATH, "pid": N}`` and ``{"ended": PATH, "code": N}`` for each request, in any order.
The end of the input ends this process, and with it its workers. A worker has a process group of its own and
sees no model but its own: this process never reads one.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import selectors
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from scorecard import worker
from scorecard.request import LOG

MODULES = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "datasets",
    "pandas",
    "scipy.special",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
)
_PDEATHSIG = 1


def main() -> int:
    for module in MODULES:
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    reason = unsafe()
    _say({"ready": reason})
    if reason is None:
        _serve()
    return 0


def unsafe() -> str | None:
    """Why a fork of this process would not be as good as a new one; ``None`` when it is.

    A CUDA context does not survive a fork (CUDA C++ Programming Guide, "Interprocess Communication").
    """
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()).startswith("/dev/nvidia"):
                return "an import has opened the GPU"
    torch = sys.modules.get("torch")
    return "an import has initialised CUDA" if torch and torch.cuda.is_initialized() else None


def _say(message: dict[str, Any]) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


def _serve() -> None:
    ended, tell = os.pipe()
    for end in (ended, tell):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    workers: dict[int, str] = {}
    with selectors.DefaultSelector() as waiting, os.fdopen(0, "rb", buffering=0, closefd=False) as asked:
        waiting.register(asked, selectors.EVENT_READ)
        waiting.register(ended, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in waiting.select()}
            if ended in ready:
                os.read(ended, 4096)
                _collect(workers)
            if asked in ready:
                line = asked.readline()
                if not line:
                    return
                path = str(json.loads(line)["request"])
                workers[_fork(Path(path), (ended, tell))] = path
                _say({"started": path, "pid": next(reversed(workers))})


def _collect(workers: dict[int, str]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = found
            _say({"ended": workers.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _fork(request: Path, pipe: tuple[int, int]) -> int:
    parent = os.getpid()
    child = os.fork()
    if not child:
        _become_worker(request, parent, pipe)
    return child


def _become_worker(request: Path, parent: int, pipe: tuple[int, int]) -> NoReturn:
    """What ``python -m scorecard.worker REQUEST`` is when it starts: its own session, directory and log."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in pipe:
            os.close(end)
        os.setsid()
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() == parent:
            _redirect(request.parent / LOG)
            os.chdir(request.parent)
            code = worker.main([str(request)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in enumerate((nothing, nothing, errors)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(errors)


if __name__ == "__main__":
    sys.exit(main())
