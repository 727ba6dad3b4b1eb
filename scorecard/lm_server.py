"""Serve a loaded model to a process that has lm-eval, from an environment that cannot hold lm-eval.

    python -m scorecard.lm_server

JSON objects, one a line (RFC 8259, and ``NaN`` and ``Infinity`` as Python writes them), in ASCII; a float
reads back as the same float. The server begins with ``{"protocol": 1}`` and answers requests in turn:

    {"id": 7, "method": "loglikelihood", "arguments": {"requests": [["a", " b"]]}}
    {"id": 7, "progress": [16, 64]}       any number of times: done, total
    {"id": 7, "result": [[-1.5, false]]}  or  {"id": 7, "error": {"type": "SpecError", "message": "…"}}

    method                 arguments                                 result
    load                   case, artifact, hidden, granted           facts about the LM, see ``FACTS``
    loglikelihood          requests: [[context, continuation], …]    [[logprob, is_greedy], …]
    loglikelihood_rolling  requests: [[text], …]                     [logprob, …]
    generate_until         requests: [[context, settings], …]        [text, …]
    apply_chat_template    chat_history, add_generation_prompt       text
    chat_template          chat_template                             text or null
    heldout                spec, reference, write_reference          fields of ``scorecard.heldout.Heldout``

Standard input and output are moved away before any library is imported, so that nothing a library prints
or reads can come between. The server ends with its input, and is killed when its parent dies (Linux).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROTOCOL = 1
FACTS = (
    "tokenizer_name",
    "eot_token_id",
    "prefix_token_id",
    "max_length",
    "max_gen_toks",
    "batch_size",
    "add_bos_token",
)
_PDEATHSIG = 1


@dataclass(frozen=True)
class Served:
    """What lm-eval's own LMs read of a request."""

    args: tuple[Any, ...]


class Server:
    """Answers one request after the other; ``send`` writes one line."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send, self._id = send, 0
        self._lm: Any = None
        self._methods: dict[str, Callable[..., Any]] = {
            "load": self.load,
            "loglikelihood": lambda requests: self._requests("loglikelihood", requests),
            "loglikelihood_rolling": lambda requests: self._requests("loglikelihood_rolling", requests),
            "generate_until": lambda requests: self._requests("generate_until", requests),
            "apply_chat_template": lambda **arguments: self.lm.apply_chat_template(**arguments),
            "chat_template": lambda **arguments: self.lm.chat_template(**arguments),
            "heldout": self.heldout,
        }

    @property
    def lm(self) -> Any:
        if self._lm is None:
            raise RuntimeError("nothing is loaded; send 'load' first")
        return self._lm

    def answer(self, request: dict[str, Any]) -> None:
        """Run one request; whatever it raises becomes its answer."""
        self._id = request["id"]
        try:
            result = self._methods[request["method"]](**request["arguments"])
        except Exception as error:  # noqa: BLE001 - the boundary: the client raises it again
            traceback.print_exc()
            told = {"type": type(error).__name__, "message": str(error)}
            self._send({"id": self._id, "error": told})
        else:
            self._send({"id": self._id, "result": result})

    def load(
        self, case: dict[str, Any], artifact: str, hidden: list[str], granted: dict[str, str]
    ) -> dict[str, Any]:
        """Load the artifact; ``hidden`` is given where the client's isolation does not reach this process."""
        from runners import base
        from scorecard import conditions, isolation
        from scorecard.spec import Case, from_json
        from scorecard.tasks import seed

        if hidden:
            isolation.watch([Path(p) for p in hidden], {name: Path(p) for name, p in granted.items()})
        read = from_json(Case, case)
        os.environ["OUTPUT_MODEL"] = artifact
        lm: Any = base.get(read.config.runner)(read, None, Path(artifact)).load()
        if hasattr(lm, "progress"):
            lm.progress = lambda done, total: self._send({"id": self._id, "progress": [done, total]})
        seed(read.evaluation.seed)  # as the client's process, so that sampling gives the same texts
        self._lm = lm
        facts = {name: getattr(lm, name) for name in FACTS if hasattr(lm, name)}
        return {**facts, "conditions": conditions.of_tokenizer(lm)}

    def _requests(self, method: str, requests: list[list[Any]]) -> Any:
        return getattr(self.lm, method)([Served(tuple(arguments)) for arguments in requests])

    def heldout(
        self, spec: dict[str, Any], reference: str | None, write_reference: str | None
    ) -> dict[str, Any]:
        from scorecard.heldout import heldout
        from scorecard.spec import EvalSpec, from_json

        result = heldout(
            self.lm,
            from_json(EvalSpec, spec),
            reference=Path(reference) if reference else None,
            write_reference=Path(write_reference) if write_reference else None,
        )
        return dataclasses.asdict(result)


def main(kind: type[Server] = Server) -> int:
    """Serve until the input ends."""
    _die_with_parent()
    requests, answers = _take_standard_streams()

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode("ascii") + b"\n")
        answers.flush()

    send({"protocol": PROTOCOL})
    server = kind(send)
    for request in _lines(requests):
        server.answer(request)
    return 0


def _lines(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in stream:
        yield json.loads(line)


def _take_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes to the client; from now on prints go to standard error, and there is nothing to read."""
    requests, answers = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
