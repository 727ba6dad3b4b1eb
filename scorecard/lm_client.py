"""An lm-eval LM whose model lives in a process of another environment: see ``scorecard.lm_server``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from scorecard import errors
from scorecard.errors import ScorecardError, StageFailed
from scorecard.heldout import Heldout
from scorecard.isolation import Isolation
from scorecard.lm_server import PROTOCOL
from scorecard.machine import ROOT
from scorecard.spec import Case, EvalSpec, to_json

GRACE_SECONDS = 5.0
PROGRESS_SECONDS = 10.0
KEPT_LINES, KEPT_CHARACTERS = 3, 4000  # of what the server printed, for the error when it dies


class Connection:
    """A server process and the one conversation with it."""

    def __init__(self, python: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [str(python), "-P", "-m", "scorecard.lm_server"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._begin(process, str(python))

    def _begin(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Hear the greeting of a server that was started with three pipes."""
        self._process = process
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self._printed = ""
        self._copier = threading.Thread(target=self._copy, args=(self._process.stderr,), daemon=True)
        self._copier.start()
        self._id, self._shown = 0, time.monotonic()
        spoken = self._read().get("protocol")
        if spoken != PROTOCOL:
            self.close()
            raise StageFailed(f"{name}: speaks protocol {spoken}, not {PROTOCOL}; use one checkout for both")

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of one request. Raises the ScorecardError that the server raised, else StageFailed."""
        if self._requests.closed:
            raise self._death()
        self._id += 1
        request = {"id": self._id, "method": method, "arguments": arguments}
        try:
            self._requests.write(json.dumps(request).encode("ascii") + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None
        while "progress" in (answer := self._read()):
            self._show(method, *answer["progress"])
        if "error" in answer:
            raise _raised(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the server; it is killed if it does not end by itself."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._copier.join(GRACE_SECONDS)
        self._answers.close()

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> StageFailed:
        self.close()
        code = self._process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = [line.strip() for line in self._printed.replace("\r", "\n").splitlines() if line.strip()]
        last = "; ".join(lines[-KEPT_LINES:]) or "it printed nothing"
        return StageFailed(f"the process that holds the model died ({how}): {last}")

    def _copy(self, stream: IO[bytes]) -> None:
        """What the server prints goes where this process prints; the last lines are kept."""
        with stream:
            while data := os.read(stream.fileno(), 65536):
                self._heard(data.decode(errors="replace"))

    def _heard(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
        self._keep(text)

    def _keep(self, text: str) -> None:
        self._printed = (self._printed + text)[-KEPT_CHARACTERS:]

    def _show(self, method: str, done: int, total: int) -> None:
        if time.monotonic() - self._shown > PROGRESS_SECONDS:
            self._shown = time.monotonic()
            print(f"{method}: {done} of {total}", file=sys.stderr, flush=True)


def _raised(error: Mapping[str, str]) -> Exception:
    """The exception of the server: a ScorecardError as itself, all else by its name."""
    name, message = error["type"], error["message"]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ScorecardError):
        return kind(message)
    if name == "NotImplementedError":
        return NotImplementedError(message)
    return StageFailed(f"{name}: {message}")


class Forwarding:
    """The methods of an LM, each as one request."""

    _server: Connection
    _facts: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._facts:
            raise AttributeError(f"the served model tells no '{name}'")
        return self._facts[name]

    @property
    def tokenizer_name(self) -> str:
        return str(self._facts.get("tokenizer_name", ""))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(value, greedy) for value, greedy in self._forward("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return self._forward("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return self._forward("generate_until", requests)

    def _forward(self, method: str, requests: Sequence[Any]) -> list[Any]:
        answers: list[Any] = self._server.call(method, requests=[list(request.args) for request in requests])
        return answers

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        arguments = {"chat_history": chat_history, "add_generation_prompt": add_generation_prompt}
        return str(self._server.call("apply_chat_template", **arguments))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        template: str | None = self._server.call("chat_template", chat_template=chat_template)
        return template

    def heldout(self, spec: EvalSpec, *, reference: Path | None, write_reference: Path | None) -> Heldout:
        """``scorecard.heldout.heldout`` where the model is: only there are its logits."""
        paths = {"reference": reference, "write_reference": write_reference}
        told = {name: str(path) if path else None for name, path in paths.items()}
        result = self._server.call("heldout", spec=to_json(spec), **told)
        rows = [(document, metric, value) for document, metric, value in result["rows"]]
        return Heldout(result["summary"], result["reason"], rows)

    def close(self) -> None:
        """End the process that holds the model."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(python: Path, case: Case, artifact: Path, seen: Isolation | None = None) -> Any:
    """Load ``artifact`` with the interpreter ``python``; an ``lm_eval.api.model.LM``, and a context manager.

    ``seen`` is the isolation of this process. Namespaces are inherited by the server; the audit hook is
    not, so the server sets it up itself. Raises what ``load()`` raised, StageFailed where the server dies.
    """
    from lm_eval.api.model import LM

    class ServedLM(Forwarding, LM):  # type: ignore[misc]
        def __init__(self, server: Connection, facts: dict[str, Any]) -> None:
            super().__init__()
            self._server, self._facts = server, facts

    server = Connection(python)
    hooked = seen is not None and seen.mode == "audit-hook"
    try:
        facts = server.call(
            "load",
            case=to_json(case),
            artifact=str(artifact),
            hidden=[str(path) for path in seen.hidden] if seen and hooked else [],
            granted={name: str(path) for name, path in seen.granted.items()} if seen and hooked else {},
        )
    except BaseException:
        server.close()
        raise
    return ServedLM(server, facts)
