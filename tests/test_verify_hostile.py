"""Submissions that try to cheat, to escape or to harm: each gets its line, and the host is untouched."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import small_frozen
from hostile_code import ANSWERS, CONTAINED, REFUSED

from scorecard import sandbox
from scorecard.box import BoxLimits
from scorecard.supervise import descendants
from scorecard.verification import verify
from scorecard.verified import Report, VerifyOptions

pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("box")]

LIMITS = BoxLimits(
    wall_seconds=60, cpu_seconds=60, memory_bytes=1 << 30, processes=40, scratch_bytes=16 << 20, open_files=64
)
SHORT = {"sleeps for ever": {"wall_seconds": 8.0}, "works for ever": {"cpu_seconds": 4.0}}
SHORT["tells of progress without end"] = {"wall_seconds": 8.0, "cpu_seconds": 4.0}
TASKS, DOCUMENTS = ("tiny_pairs",), 10


@dataclass
class Host:
    """What an attack could harm: a file, a listener, a process, a token in the environment."""

    folder: Path
    canary: Path
    port: int
    listener: socket.socket
    bystander: subprocess.Popen[bytes]
    others: frozenset[int]  # processes that tests before this one left to this process

    def check(self) -> None:
        assert self.canary.read_text() == "untouched"
        assert self.bystander.poll() is None
        with pytest.raises(BlockingIOError):
            self.listener.accept()
        assert set(descendants(os.getpid())) - self.others == {self.bystander.pid}
        assert boxed_with(self.folder) == []


def boxed_with(folder: Path) -> list[int]:
    """Processes of any parent whose box shows something of ``folder``: its files are mounts there.

    Boxes of other tests, which may run beside this one, show other folders.
    """
    mounts = (path for path in Path("/proc").glob("[0-9]*/mountinfo") if str(folder).encode() in _read(path))
    return [int(path.parent.name) for path in mounts]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsTheTokenOfTheHost")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what a box shows is made under it
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    others = frozenset(descendants(os.getpid()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
            found = Host(tmp_path, canary, listener.getsockname()[1], listener, bystander, others)
            yield found
            bystander.kill()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen folder with true claims."""
    folder = tmp_path_factory.mktemp("frozen")
    original = small_frozen.write_original(folder / "original")
    return small_frozen.write_frozen(folder / "user", original, limit=DOCUMENTS, tasks=TASKS)


def run(folder: Path, tmp_path: Path, limits: BoxLimits = LIMITS, **options: Any) -> Report:
    archive = small_frozen.pack(folder, tmp_path / "submission.zip")
    return verify(archive, VerifyOptions(python=Path(sys.executable), box=limits, **options))


def with_code(honest: Path, tmp_path: Path, user_py: str) -> Path:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        (folder / "user.py").write_text(user_py)

    return small_frozen.changed(honest, tmp_path / "user", change)


def attacking(code: str, host: Host) -> str:
    """The honest model, with ``code`` run before its answers."""
    told = code.replace("{canary}", str(host.canary)).replace("{port}", str(host.port))
    told = told.replace("{{", "{").replace("}}", "}")
    body = "".join(f"        {line}\n" for line in ["self.attack()"])
    attack = "".join(f"        {line}\n" for line in told.splitlines())
    start = "    def loglikelihood(self, requests):\n"
    assert start in small_frozen.USER_PY
    return small_frozen.USER_PY.replace(start, f"    def attack(self):\n{attack}\n{start}{body}")


def line(report: Report, claim: str) -> str:
    return next(verdict.line for verdict in report.verdicts if verdict.claim == claim)


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_with_its_line(name: str, honest: Path, host: Host, tmp_path: Path) -> None:
    code, expected = REFUSED[name]
    limits = replace(LIMITS, **SHORT.get(name, {}))
    report = run(with_code(honest, tmp_path, attacking(code, host)), tmp_path, limits)
    told = line(report, "accuracy")
    assert told.startswith("accuracy ✗ not measured: user.py: ")
    assert re.search(expected, told), told
    assert told.isprintable()
    assert report.exit_code == 1
    host.check()


@pytest.mark.parametrize("name", CONTAINED)
def test_an_attack_changes_nothing(
    name: str, honest: Path, host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(with_code(honest, tmp_path, attacking(CONTAINED[name], host)), tmp_path)
    assert [v.line for v in report.verdicts if v.holds is not True] == []
    printed = capfd.readouterr()
    assert "✓" not in printed.out + printed.err
    host.check()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_refused(name: str, honest: Path, host: Host, tmp_path: Path) -> None:
    answer, expected = ANSWERS[name]
    code = small_frozen.USER_PY.replace(
        "return [(self.value(*request.args), False) for request in requests]", f"return {answer}"
    )
    assert code != small_frozen.USER_PY
    told = line(run(with_code(honest, tmp_path, code), tmp_path), "accuracy")
    assert re.search(expected, told), told
    host.check()


def test_a_model_that_knows_the_order_of_the_choices_gains_nothing(
    honest: Path, host: Host, tmp_path: Path
) -> None:
    """In tiny_pairs the first choice is always right."""
    code = small_frozen.USER_PY.replace(
        "return [(self.value(*request.args), False) for request in requests]",
        "return [(-1.0 - place % 2, False) for place, request in enumerate(requests)]",
    )
    folder = with_code(honest, tmp_path, code)
    original = honest.parent / "original"
    small_frozen.claim(folder, original, limit=100, tasks=TASKS)
    claimed = json.loads((folder / "manifest.json").read_text())["claims"]
    assert claimed["mean_accuracy"] == 1.0
    report = run(folder, tmp_path)
    assert report.exit_code == 1
    assert 0.2 < report.measured["mean_accuracy"] < 0.8


def test_nothing_runs_where_nothing_isolates(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scorecard.errors import SpecError

    monkeypatch.setattr(sandbox, "why_not", lambda: "the kernel says no")
    with pytest.raises(SpecError, match=r"cannot isolate .*the kernel says no.*--unsafe"):
        run(honest, tmp_path)
    report = run(honest, tmp_path, unsafe=True)
    assert report.exit_code == 0
    assert not report.isolated
    assert "not isolated" in report.notes[-1]


def test_a_box_ends_with_whoever_started_it(tmp_path: Path, honest: Path, host: Host) -> None:
    """A verify that is killed leaves no process of the submission behind."""
    folder = with_code(honest, tmp_path, attacking("import time; time.sleep(9999)", host))
    archive = small_frozen.pack(folder, tmp_path / "a.zip")
    command = [sys.executable, "-m", "scorecard", "verify", str(archive), "--python", sys.executable]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end and not boxed_with(tmp_path):
                time.sleep(0.1)
            below = descendants(process.pid)
            assert below
            assert boxed_with(tmp_path)
        finally:
            process.kill()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in below):
        time.sleep(0.05)
    host.check()
