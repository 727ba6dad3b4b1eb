"""The line protocol between a process with lm-eval and one with the model."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scorecard.errors import IsolationError, RunnerUnavailable, StageFailed
from scorecard.isolation import Isolation
from scorecard.lm_client import Connection, serve
from scorecard.lm_server import Served
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec

# Put in the server's path: a backend that prints where it can, and does what its config asks.
NOISY = """
import math, os, signal, sys, types

import runners.base

seeds = types.ModuleType("scorecard.tasks")
seeds.seed = lambda value: None
sys.modules["scorecard.tasks"] = seeds


class LM:
    max_length, progress = 7, None

    def loglikelihood(self, requests):
        print("library says", flush=True)
        os.write(1, b"{'no': json}\\n")
        os.system("echo a child prints; cat")
        self.progress(1, 2)
        return [(0.1 + 0.2, True), (math.nan, False), (-math.inf, False), (5e-324, True)][: len(requests)]

    def loglikelihood_rolling(self, requests):
        return [float(len(request.args[0])) for request in requests]

    def generate_until(self, requests):
        word = requests[0].args[0]
        if word == "die":
            print("the last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "open":
            return [open(requests[0].args[1]["path"]).read()]
        if word == "sleep":
            import time
            time.sleep(60)
        raise ZeroDivisionError("out of numbers")


class Runner:
    def __init__(self, case, model_dir, output):
        self.case = case

    def load(self):
        if self.case.config.name == "unavailable":
            from scorecard.errors import RunnerUnavailable
            raise RunnerUnavailable("needs more; buy it")
        return LM()


runners.base.get = lambda name: Runner
"""


def a_case(name: str = "config") -> Case:
    return Case(ModelSpec("s", "m", "1", "path:m"), ConfigSpec(name, "fake"), EvalSpec(("some",)))


@pytest.fixture(autouse=True)
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def lm() -> Iterator[Any]:
    with serve(Path(sys.executable), a_case(), Path("/artifact")) as served:
        yield served


def ask(count: int) -> list[Served]:
    return [Served(("a", "b"))] * count


def test_numbers_arrive_as_they_left_whatever_a_library_prints(
    lm: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.api.model import LM

    assert isinstance(lm, LM)
    first, nan, infinite, least = lm.loglikelihood(ask(4))
    assert first == (0.1 + 0.2, True)
    assert math.isnan(nan[0])
    assert infinite == (-math.inf, False)
    assert least == (5e-324, True)
    assert (lm.max_length, lm.rank, lm.world_size) == (7, 0, 1)
    lm.close()
    printed = capfd.readouterr()
    assert "library says" in printed.err
    assert "a child prints" in printed.err
    assert printed.out == ""


def test_a_large_batch_and_every_character_go_through(lm: Any) -> None:
    text = "line\u2028\n\r\0\ud800\U0001f600"
    requests = [Served((text * (place % 3),)) for place in range(100_000)]
    assert lm.loglikelihood_rolling(requests) == [float(len(text) * (place % 3)) for place in range(100_000)]


def test_an_error_there_is_an_error_here_and_the_server_goes_on(lm: Any) -> None:
    with pytest.raises(StageFailed, match=r"^ZeroDivisionError: out of numbers$"):
        lm.generate_until([Served(("", {}))])
    assert lm.loglikelihood(ask(1)) == [(0.1 + 0.2, True)]


def test_what_load_cannot_have_is_told_as_its_own_error() -> None:
    with pytest.raises(RunnerUnavailable, match=r"^needs more; buy it$"):
        serve(Path(sys.executable), a_case("unavailable"), Path("/artifact"))


def test_a_server_that_dies_is_one_error_with_its_last_words(lm: Any) -> None:
    with pytest.raises(StageFailed, match=r"died \(killed by signal 9\): .*the last words"):
        lm.generate_until([Served(("die", {}))])
    with pytest.raises(StageFailed, match="died"):
        lm.loglikelihood(ask(1))


def test_a_program_that_is_no_server_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("""#!/bin/sh\necho '{"protocol": 99}'\n""")
    other.chmod(0o755)
    with pytest.raises(StageFailed, match="speaks protocol 99, not 1"):
        Connection(other)
    other.write_text("#!/bin/sh\necho no such module >&2; exit 3\n")
    with pytest.raises(StageFailed, match=r"died \(exit code 3\): no such module"):
        Connection(other)


def test_the_audit_hook_is_set_up_in_the_server_too(tmp_path: Path) -> None:
    secret = tmp_path / "original" / "weights"
    secret.parent.mkdir()
    secret.write_text("seen")
    asked = [Served(("open", {"path": str(secret)}))]
    seen = Isolation("audit-hook", {"artifact": tmp_path / "artifact"}, (secret.parent,))
    with (
        serve(Path(sys.executable), a_case(), tmp_path / "artifact", seen) as lm,
        pytest.raises(IsolationError, match=r"load\(\) may read \$OUTPUT_MODEL only"),
    ):
        lm.generate_until(asked)
    with serve(Path(sys.executable), a_case(), tmp_path / "artifact") as lm:
        assert lm.generate_until(asked) == ["seen"]


CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_lm_server as t
lm = t.serve(Path(sys.executable), t.a_case(), Path("/artifact"))
print(lm._server.pid, flush=True)
lm.generate_until([t.Served(("sleep", {}))])
"""


def test_a_killed_client_leaves_no_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLIENT, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as client:
        assert client.stdout
        server = int(client.stdout.readline())
        client.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and _runs(server):
        time.sleep(0.05)
    assert not _runs(server)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False
