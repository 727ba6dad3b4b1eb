"""A frozen folder in small: a model that answers by hashing, with claims that were really measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorecard.manifest import Claims, Manifest, TaskClaim
from scorecard.spec import EvalSpec, to_json
from scorecard.submission import entry_of

TASKS = ("tiny_facts", "tiny_pairs")
GIB = 2**30
ZERO_HASH = "sha256:" + "0" * 64

USER_PY = '''\
"""Scores a text by its hash: a model of no merit that takes no time to load."""

import hashlib
import json
from pathlib import Path


class UserLM:
    max_length = 512

    def __init__(self, pretrained, **kwargs):
        self.salt = json.loads((Path(pretrained) / "weights.json").read_text())["salt"]

    def value(self, *texts):
        digest = hashlib.sha256("\\0".join((self.salt, *texts)).encode()).digest()
        return -1 - int.from_bytes(digest[:6], "big") / 2**44

    def loglikelihood(self, requests):
        return [(self.value(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [self.value(*request.args) for request in requests]

    def generate_until(self, requests):
        return [request.args[0][:3] for request in requests]
'''

COMPRESS_PY = '''\
"""Takes what the model needs from the original."""

import json
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
text = json.dumps({"salt": json.loads((source / "original.json").read_text())["salt"]})
(target / "weights.json").write_text(text)
'''

BUILD_SH = """\
#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ "${1:-}" == --compress ]]; then python compression/compress.py "$MODEL_DIR" "$OUTPUT_MODEL"; fi
"""


def write_original(folder: Path, salt: str = "a") -> Path:
    folder.mkdir(parents=True)
    (folder / "original.json").write_text(json.dumps({"salt": salt, "unused": "x" * 1000}))
    return folder


def write_code(folder: Path, user_py: str = USER_PY) -> Path:
    """The folder as it is before anything is compressed or claimed."""
    (folder / "compression").mkdir(parents=True)
    (folder / "compression" / "compress.py").write_text(COMPRESS_PY)
    (folder / "build.sh").write_text(BUILD_SH)
    (folder / "run.sh").write_text("#!/usr/bin/env bash\nexec python evaluate.py\n")
    (folder / "user.py").write_text(user_py)
    (folder / "README.md").write_text("A model of no merit.\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "user-model"\nversion = "1"\n')
    (folder / "requirements.txt").write_text(f"packaging==25.0 \\\n    --hash={ZERO_HASH}\n")
    (folder / "output_model").mkdir()
    (folder / "output_model" / "weights.json").write_text(json.dumps({"salt": "a"}))
    return folder


def unmeasured(folder: Path) -> Path:
    """``write_code`` with claims that nobody measured."""
    write_code(folder)
    claims = Claims(13, 0.5, 0.1, None, None, None, {"tiny_pairs": TaskClaim("acc", 0.5, 0.1, 10)})
    model = {"id": "test.small@1", "source": "path:somewhere"}
    config = {"name": "hash", "runner": "custom", "options": {}}
    manifest = Manifest("test.small@1-hash", model, config, EvalSpec(("tiny_pairs",)), claims, "0.4.13")
    write_manifest(folder, to_json(manifest))
    return folder


def write_frozen(
    folder: Path, original: Path, *, documents: bool = True, limit: int = 30, tasks: tuple[str, ...] = TASKS
) -> Path:
    """Measure the model of ``write_code`` and claim what was measured."""
    write_code(folder)
    claim(folder, original, documents=documents, limit=limit, tasks=tasks)
    return folder


def claim(
    folder: Path,
    original: Path,
    *,
    documents: bool = True,
    limit: int = 30,
    tasks: tuple[str, ...] = TASKS,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Evaluate FOLDER/user.py in this process and write documents.parquet and manifest.json."""
    from scorecard.evaluate import evaluate, resolve

    spec = EvalSpec(tasks, task_paths=("embedded:tasks",), limit=limit, bootstrap_iters=0)
    table = folder / "documents.parquet"
    lm = direct(folder, arguments or {})
    result = evaluate(lm, spec, reference=None, write_reference=None, documents=table)
    identity = resolve(spec, offline=True)
    if not documents:
        table.unlink()
    size = sum(p.stat().st_size for p in (folder / "output_model").rglob("*") if p.is_file())
    score = result["mean_accuracy"] / (size / GIB)
    claims = Claims(
        size_bytes=size,
        mean_accuracy=result["mean_accuracy"],
        mean_accuracy_stderr=result["mean_accuracy_stderr"],
        score=score,
        score_low=score * 0.9,
        score_high=score * 1.1,
        tasks={name: task_claim(task, identity["tasks"][name]) for name, task in result["tasks"].items()},
    )
    manifest = Manifest(
        case="test.small@1-hash",
        model={"set": "test", "name": "small", "version": "1", "source": "path:somewhere"},
        config={"name": "hash", "runner": "custom", "options": {}},
        evaluation=spec,
        claims=claims,
        lm_eval=result["lm_eval_version"],
        original={p.name: entry_of(p) for p in sorted(original.iterdir())},
        documents="documents.parquet" if documents else None,
    )
    write_manifest(folder, to_json(manifest))


def task_claim(task: Mapping[str, Any], identity: Mapping[str, Any]) -> TaskClaim:
    kept = ("metric", "value", "stderr", "n", "accuracy", "chance", "num_fewshot")
    hashes = {name: identity[name] for name in ("documents_sha256", "config_sha256")}
    return TaskClaim(**{name: task[name] for name in kept}, version=str(task["version"]), **hashes)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """With the sizes and hashes of the files that are there."""
    model, code = folder / "output_model", {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_relative_to(model)):
        code[path.relative_to(folder).as_posix()] = to_json(entry_of(path))
    code.pop("manifest.json", None)
    artifact = {
        p.relative_to(model).as_posix(): to_json(entry_of(p)) for p in sorted(model.rglob("*")) if p.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, "code": code, "artifact": artifact}))


def direct(folder: Path, arguments: Mapping[str, Any]) -> Any:
    """FOLDER/user.py's model in this process, as an LM."""
    from lm_eval.api.model import LM

    spec = importlib.util.spec_from_file_location("frozen_user", folder / "user.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["frozen_user"] = module
    spec.loader.exec_module(module)
    model = str(folder / "output_model")
    if issubclass(module.UserLM, LM):
        return module.UserLM(pretrained=model, **arguments)

    class Direct(module.UserLM, LM):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            LM.__init__(self)
            module.UserLM.__init__(self, pretrained=model, **arguments)

    return Direct()


def changed(folder: Path, target: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A copy of a frozen folder after ``change(folder, manifest)``, its hashes made to agree again."""
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    change(target, manifest)
    write_manifest(target, manifest)
    return target


def pack(folder: Path, archive: Path) -> Path:
    """The zip of a folder without the checks of ``submit``."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(folder / "user.py", "user.py")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            zipped.write(path, f"user/{path.relative_to(folder).as_posix()}")
    return archive
