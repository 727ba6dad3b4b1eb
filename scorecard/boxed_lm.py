"""An lm-eval LM whose model is code of strangers in a box: no answer is believed before it is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from scorecard.errors import SubmissionError
from scorecard.lm_client import KEPT_LINES, Connection, Forwarding
from scorecard.plain import plain
from scorecard.sandbox import Boxed

ABOVE_ZERO = 1e-4  # a sum of logarithms of probabilities, rounded
LARGEST = 1e15  # no log-likelihood is near it; NaN is not below it either
MOST_CHARACTERS = 100_000  # of one generated text
_LINE_BYTES = 1 << 16
_BYTES_EACH = {"loglikelihood": 256, "loglikelihood_rolling": 256, "generate_until": 6 * MOST_CHARACTERS}
_OTHER_BYTES = 1 << 26
_FACTS = {"tokenizer_name": str, "eot_token_id": int, "prefix_token_id": int, "max_length": int}


class BoxedConnection(Connection):
    """The conversation with ``scorecard.box_server`` in ``boxed``. Raises SubmissionError for all that is
    not an answer to the question."""

    def __init__(self, boxed: Boxed) -> None:
        self._boxed, self._most = boxed, _LINE_BYTES
        self._begin(boxed.process, "user.py")

    def call(self, method: str, **arguments: Any) -> Any:
        each = _BYTES_EACH.get(method)
        count = len(arguments.get("requests", ()))
        self._most = _OTHER_BYTES if each is None else _LINE_BYTES + each * count
        return super().call(method, **arguments)

    def close(self) -> None:
        self._boxed.end(grace_seconds=0)  # nobody asks how it ended
        super().close()

    def _heard(self, text: str) -> None:
        self._keep(text)  # never shown as it is: it could look like our own words

    def _read(self) -> dict[str, Any]:
        while "progress" in (answer := self._line()):
            continue
        if "error" in answer:
            error = answer["error"]
            told = error if isinstance(error, dict) else {}
            raise SubmissionError(f"user.py: {plain(told.get('type'), 80)}: {plain(told.get('message'))}")
        if "protocol" not in answer and (answer.get("id") != self._id or "result" not in answer):
            raise self._refused("answered a question that was not asked")
        return answer

    def _line(self) -> dict[str, Any]:
        line = self._answers.readline(self._most)
        if not line.endswith(b"\n"):
            if len(line) >= self._most:
                self.close()
                raise SubmissionError(f"user.py: an answer of more than {self._most:,} bytes; answer in full")
            raise self._death()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._refused("wrote something into the protocol that is no answer")
        return answer

    def _refused(self, what: str) -> SubmissionError:
        self.close()
        return SubmissionError(f"user.py: {what}; leave the server's pipes alone")

    def _death(self) -> SubmissionError:  # type: ignore[override]
        ended = self._boxed.end()
        super().close()
        if ended.error:
            return SubmissionError(f"user.py: the box cannot be made: {plain(ended.error)}")
        if ended.limit:
            return SubmissionError(f"user.py: passed {ended.limit}")
        code = ended.code or 0
        how = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
        lines = [line.strip() for line in self._printed.splitlines() if line.strip()]
        last = plain("; ".join(lines[-KEPT_LINES:])) or "it printed nothing"
        return SubmissionError(f"user.py: the process with the model died ({how}): {last}")


def boxed_lm(connection: BoxedConnection, folder: str, arguments: dict[str, Any], seed: int) -> Any:
    """Load the submission's model; an ``lm_eval.api.model.LM``.

    ``seen`` of it holds the log-likelihood of each choice: {(task, document): {place: (value, length)}},
    length in characters of the continuation without the blanks before it.
    """
    from lm_eval.api.model import LM

    class BoxedLM(Forwarding, LM):  # type: ignore[misc]
        def __init__(self, server: Connection, facts: dict[str, Any]) -> None:
            super().__init__()
            self._server, self._facts = server, facts
            self.seen: dict[tuple[str, int], dict[int, tuple[float, int]]] = {}

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            answers = _pairs(self._forward("loglikelihood", requests), len(requests))
            for request, (value, _) in zip(requests, answers, strict=True):
                place = self.seen.setdefault((request.task_name, request.doc_id), {})
                place[request.idx] = (value, len(request.args[1].lstrip()))
            return answers

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            answers = _counted(self._forward("loglikelihood_rolling", requests), len(requests))
            return [_logprob(value) for value in answers]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            answers = _counted(self._forward("generate_until", requests), len(requests))
            return [_text(value) for value in answers]

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            template = super().chat_template(chat_template)
            return template if template is None else _text(template)

    told = connection.call("load_user", folder=folder, arguments=arguments, seed=seed)
    facts = _facts(told)
    return BoxedLM(connection, {**facts, "conditions": {"tokenizer_sha256": None, "adds_bos": None}})


def _facts(told: Any) -> dict[str, Any]:
    """Those that lm-eval may read, where they are of the kind that they should be."""
    given = told if isinstance(told, dict) else {}
    return {
        name: value if kind is int else plain(value)
        for name, kind in _FACTS.items()
        if isinstance(value := given.get(name), kind) and not isinstance(value, bool)
    }


def _counted(answers: Any, count: int) -> list[Any]:
    if not isinstance(answers, list) or len(answers) != count:
        found = len(answers) if isinstance(answers, list) else "no list of"
        raise SubmissionError(f"user.py: {found} answers to {count} requests; answer each one")
    return answers


def _pairs(answers: Any, count: int) -> list[tuple[float, bool]]:
    found = []
    for answer in _counted(answers, count):
        if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[1], bool):
            raise SubmissionError(f"user.py: {plain(answer, 80)} is no (log-likelihood, is greedy)")
        found.append((_logprob(answer[0]), answer[1]))
    return found


def _logprob(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    if not number:
        raise SubmissionError(f"user.py: log-likelihood {plain(value, 80)} is no finite number")
    if value > ABOVE_ZERO:
        raise SubmissionError(f"user.py: log-likelihood {value:g} is above 0; no probability is above 1")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        raise SubmissionError(
            f"user.py: a generated answer is no text, or has over {MOST_CHARACTERS:,} letters"
        )
    return value.encode(errors="replace").decode()
