"""Build a frozen folder in a fresh environment, run it, and compare it with what it was frozen from.

python tests/frozen_folder.py FOLDER SCRATCH prints the comparison of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard import installing, locks
from scorecard.manifest import Manifest, read_manifest
from scorecard.store import sha256_tree

ORIGINAL = Path(__file__).resolve().parents[1] / "embedded" / "tiny-llama"


@dataclass(frozen=True)
class Rebuilt:
    """``different`` are the files of the model that are not as claimed, ``documents`` the (task, document,
    metric) whose value is another one, of ``compared``."""

    manifest: Manifest
    measured: dict[str, Any]
    different: list[str]
    documents: list[Any]
    compared: int
    said: str


def environment(folder: Path, target: Path) -> Path:
    """A virtual environment with the pins of requirements.txt alone; its bin folder."""
    text = (folder / "requirements.txt").read_text()
    installing.install(locks.parse("frozen", text, "requirements.txt"), target, print)
    return target / "bin"


def sealed(folder: Path, programs: Path) -> dict[str, str]:
    """What a stranger's shell has: that Python, a home of its own, and nothing of ours."""
    kept = {n: v for n, v in os.environ.items() if n in ("LANG", "TMPDIR")}
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    return {**kept, "PATH": path, "HOME": str(home), "HF_HUB_OFFLINE": "1", "MODEL_DIR": str(ORIGINAL)}


def run(folder: Path, env: dict[str, str], *command: str) -> str:
    """Raises AssertionError with what it printed where a script fails."""
    done = subprocess.run(
        ["bash", *command], cwd=folder.parent, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def rebuild(folder: Path, programs: Path) -> Rebuilt:
    """build.sh --compress, then run.sh."""
    env = sealed(folder, programs)
    run(folder, env, str(folder / "build.sh"), "--compress")
    said = run(folder, env, str(folder / "run.sh"))
    manifest = read_manifest(folder)
    found = sha256_tree(folder / manifest.artifact_folder)
    claimed = {name: entry.sha256 for name, entry in manifest.artifact.items()}
    different = [name for name in sorted({*found, *claimed}) if found.get(name) != claimed.get(name)]
    measured = json.loads((folder / "results" / "results.json").read_text())
    old, new = (documents(folder / name) for name in ("documents.parquet", "results/documents.parquet"))
    apart = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return Rebuilt(manifest, measured, different, apart, len(old), said)


def documents(path: Path) -> dict[tuple[str, int, str], float]:
    """Each document's metrics, without the held-out text."""
    import pandas as pd

    frame = pd.read_parquet(path)
    rows = frame[frame["task"] != "heldout"][["task", "doc", "metric", "value"]].itertuples(index=False)
    return {(task, doc, metric): value for task, doc, metric, value in rows}


if __name__ == "__main__":
    place, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    made = rebuild(place, environment(place, scratch) if not scratch.exists() else scratch / "bin")
    claims = made.manifest.claims
    print(made.said)
    print(f"bytes: claimed {claims.size_bytes:,}, rebuilt {made.measured['size_bytes']:,}")
    print(f"accuracy: claimed {claims.mean_accuracy}, rebuilt {made.measured['mean_accuracy']}")
    print(f"files that differ: {made.different or 'none'}; documents that differ: {made.documents or 'none'}")
    print(f"of {made.compared} documents")
