"""The supervisor: limits, deaths, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scorecard.machine import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="process trees are read from /proc"
)

RUN = """
import os, subprocess, sys, time
from scorecard.spec import Limit
from scorecard.supervise import run
def child():
    {body}
ended = run(child, Limit({limit}))
print(ended.code, ended.limit, ended.peak_bytes)
"""


def supervise(body: str, limit: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN.format(body=body, limit=limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=30)[0].split(None, 1)


def test_exit_code_and_peak_memory_come_back() -> None:
    body = "data = bytearray(200_000_000); time.sleep(0.6); return 3"
    code, rest = finish(supervise(body))
    peak = int(rest.split()[-1])
    assert code == "3"
    assert 200_000_000 < peak < 400_000_000


def test_a_child_that_kills_itself_is_reported_with_its_signal() -> None:
    assert finish(supervise("os.kill(os.getpid(), 11)"))[0] == "-11"


def test_the_time_limit_ends_a_child_that_hangs() -> None:
    begin = time.monotonic()
    code, rest = finish(supervise("time.sleep(60)", "time_seconds=0.3"))
    assert (code, rest.strip()[:37]) == ("-9", "passed the time limit of 0.3 s " + rest.strip()[31:37])
    assert time.monotonic() - begin < 20


def test_the_memory_limit_counts_grandchildren() -> None:
    hog = "import time; data = bytearray(300_000_000); time.sleep(60)"
    code, rest = finish(supervise(f"subprocess.run([sys.executable, '-c', {hog!r}])", "memory_gib=0.2"))
    assert code == "-9"
    assert "passed the memory limit of 0.2 GiB" in rest


def _alive(marker: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = process.info["cmdline"] or []
        if marker in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def _wait(marker: str, count: int) -> bool:
    for _ in range(500):
        if len(_alive(marker)) == count:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_supervisor_takes_detached_grandchildren_along(how: signal.Signals) -> None:
    marker = f"marker-{os.getpid()}-{how}"
    sleeper = f"[sys.executable, '-c', 'import time; time.sleep(60)', '{marker}']"
    process = supervise(f"subprocess.Popen({sleeper}, start_new_session=True); time.sleep(60)")
    assert _wait(marker, 1)
    process.send_signal(how)
    process.wait(timeout=10)
    assert _wait(marker, 0)


def test_leftovers_of_a_finished_child_are_ended() -> None:
    marker = f"marker-left-{os.getpid()}"
    sleeper = f"[sys.executable, '-c', 'import time; time.sleep(60)', '{marker}']"
    assert finish(supervise(f"subprocess.Popen({sleeper}, start_new_session=True); return 0"))[0] == "0"
    assert _alive(marker) == []


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    marker = f"marker-parent-{os.getpid()}"
    inner = RUN.format(
        body=f"subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{marker}'])", limit=""
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    parent = subprocess.Popen([sys.executable, "-c", outer], cwd=ROOT)
    assert _wait(marker, 1)
    parent.kill()
    parent.wait()
    assert _wait(marker, 0)
