"""Kill a run again and again at random moments, finish it, and compare it with one that nobody disturbed.

    python tools/kill_runs.py --rounds 20

Every round starts with an empty store, kills pytest with SIGKILL after a random time, looks for processes
left behind, runs pytest to its end, and compares every record with the undisturbed run's: key, status,
result and files, less what measures time or memory. Prints a line a round; exit code 1 at any difference.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
MODELS = """
models:
  - set: embedded
    name: tiny-llama
    version: 1
    source: embedded:tiny-llama
    tasks: [tiny_pairs, tiny_text]
    configs: [baseline, rtn-w2-g128]
configs:
  baseline: {runner: baseline}
  rtn-w2-g128: {runner: rtn, bits: 2, group_size: 128}
defaults:
  evaluation: {limit: 40, heldout: "embedded:heldout", heldout_documents: 8}
  measure: {threads: 1, repeats: 2}
"""
VARIABLE = ("seconds", "started_at", "load_average", "log_tail", "machine", "isolation")


def command(folder: Path) -> list[str]:
    places = {
        "models-yaml": "models.yaml",
        "work-dir": "store",
        "models-dir": "models",
        "results-dir": "results",
    }
    options = [f"--{name}={folder / place}" for name, place in places.items()]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--offline", *options]


def run(folder: Path, after: float | None = None) -> float:
    """Run pytest in ``folder``; with ``after`` kill it then. Returns the seconds it took."""
    (folder / "models.yaml").write_text(MODELS)
    begin = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command(folder), cwd=ROOT, stdout=log, stderr=log)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if after is None and process.returncode != 0:
        sys.exit(f"pytest ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    return time.monotonic() - begin


def orphans(folder: Path, patience: float = 3.0) -> list[str]:
    """Command lines of processes that still work in ``folder`` after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while (left := _working_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _working_in(folder: Path) -> list[str]:
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line and "kill_runs" not in line]


def records(folder: Path) -> dict[tuple[str, str], Any]:
    """What a run left, without what differs between two undisturbed runs."""
    found = {}
    for path in sorted((folder / "store" / "objects").glob("*/*/record.json")):
        record = json.loads(path.read_text())
        if record["stage"] == "measure":
            record["result"] = sorted(record["result"])
        record["files"].pop("worker.log", None)
        found[record["case"], record["stage"]] = _stable(record)
    return found


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {
            k: v for k, v in value.items() if k not in VARIABLE and "memory" not in k and "caches" not in k
        }
        return {k: _stable(v) for k, v in kept.items()}
    return [_stable(v) for v in value] if isinstance(value, list) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, faults = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as base:
        (calm := Path(base, "calm")).mkdir()
        whole = run(calm)
        expected = records(calm)
        print(f"undisturbed: {whole:.1f} s, {len(expected)} records")
        for number in range(given.rounds):
            (folder := Path(base, f"round{number}")).mkdir()
            moment = chance.uniform(0.2, whole)
            run(folder, moment)
            left = orphans(folder)
            done = len(records(folder)) if (folder / "store").exists() else 0
            seconds = run(folder)
            same = records(folder) == expected
            partial = len(list((folder / "store" / "partial").iterdir()))
            faults += bool(left) or not same or bool(partial)
            print(
                f"round {number:2}: killed at {moment:5.1f} s with {done:2} records; orphans {len(left)}; "
                f"rerun {seconds:5.1f} s; records {'the same' if same else 'DIFFERENT'}; partial {partial}",
                flush=True,
            )
    print(f"{given.rounds} rounds, {faults} with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
