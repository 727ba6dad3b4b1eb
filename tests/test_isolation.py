"""Isolation: the artifact is there, the original, its copies and the network are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scorecard import isolation
from scorecard.machine import ROOT

SCRIPT = """
import json, os, sys
from pathlib import Path
from scorecard import isolation
from scorecard.errors import IsolationError
base = Path(sys.argv[1])
if {force!r}:
    isolation._new_namespaces = lambda: False
os.environ["HF_TOKEN"] = "hf_secret"
store = base / "store"
seen = isolation.enter(
    base / "scratch", hidden=[base / "original", store],
    granted={{"artifact": store / "a", "baseline": store / "b", "out": store / "o"}},
    later=["baseline"], writable=["out"],
)
def read(path):
    try:
        return path.read_text()
    except (OSError, IsolationError) as error:
        return type(error).__name__
def connect():
    import socket
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=0.2).close()
    except OSError as error:
        return error.strerror
facts = {{
    "mode": seen.mode,
    "artifact": read(seen.granted["artifact"] / "model"),
    "original": read(base / "original" / "model"),
    "through_link": read(base / "link" / "model"),
    "store": read(base / "store" / "b" / "model"),
    "baseline_before": read(seen.granted["baseline"] / "model"),
    "token": os.environ.get("HF_TOKEN"),
    "offline": os.environ["HF_HUB_OFFLINE"],
    "network": connect(),
}}
facts["baseline_after"] = read(seen.reveal("baseline") / "model")
(seen.granted["out"] / "result").write_text("done")
print(json.dumps(facts))
"""


def run(base: Path, force: bool) -> dict[str, str]:
    for name in ("original", "store/a", "store/b", "store/o", "scratch"):
        (base / name).mkdir(parents=True)
    for name in ("original", "store/a", "store/b"):
        (base / name / "model").write_text(name)
    (base / "link").symlink_to(base / "original")
    command = [sys.executable, "-c", SCRIPT.format(force=force), str(base)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, str] = json.loads(done.stdout)
    return facts


def check(facts: dict[str, str], base: Path) -> None:
    assert facts["artifact"] == "store/a"
    assert facts["baseline_after"] == "store/b"
    for hidden in ("original", "through_link", "store", "baseline_before"):
        assert facts[hidden].endswith("Error"), hidden
    assert facts["token"] is None
    assert facts["offline"] == "1"
    assert (base / "store" / "o" / "result").read_text() == "done"
    assert (base / "original" / "model").read_text() == "original"


def test_in_a_namespace_nothing_but_the_artifact_is_there(tmp_path: Path) -> None:
    if isolation.available() != "namespace":
        pytest.skip("this kernel gives no namespaces to this user")
    facts = run(tmp_path, force=False)
    check(facts, tmp_path)
    assert facts["mode"] == "namespace"
    assert facts["network"] == "Network is unreachable"


def test_without_namespaces_python_is_kept_from_the_original(tmp_path: Path) -> None:
    facts = run(tmp_path, force=True)
    check(facts, tmp_path)
    assert facts["mode"] == "audit-hook"


def test_a_hidden_folder_may_not_hold_what_the_worker_needs(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from scorecard import isolation\n"
        "isolation.enter(Path(sys.argv[1]), hidden=[Path(sys.prefix).parent], granted={})"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "holds the original model and" in done.stderr
