"""Mean accuracy of $OUTPUT_MODEL over the tasks of manifest.json, the size of all its files, and their ratio.

lm-eval runs the tasks; every number comes from its results in memory. Sizes are apparent bytes of all files;
links, sparse files and the like are refused. Options: bash run.sh --help
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scorecard.artifact import regular_files
from scorecard.errors import ArtifactError
from scorecard.evaluate import document_rows, mean_accuracy, run_tasks, task_score, write_documents
from scorecard.tasks import keep_compiled_templates, seed, set_fewshot
from scorecard.user_class import taken

FOLDER = Path(__file__).resolve().parent
GIB = 2**30


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.sh", description="Score $OUTPUT_MODEL.")
    parser.add_argument("--limit", type=int, help="documents of each task, for a quick look")
    parser.add_argument("--batch-size", type=int, help="another batch size than the manifest's")
    parser.add_argument(
        "--results", type=Path, default=FOLDER / "results", help="folder for what is measured"
    )
    return parser.parse_args()


def load_tasks(manifest: Mapping[str, Any], spec: Any) -> dict[str, Any]:
    """The tasks by name, those of the folder ``tasks`` first; seeds the generators as lm-eval does."""
    from lm_eval.tasks import TaskManager

    seed(spec.seed)
    keep_compiled_templates()
    names = list(manifest["claims"]["tasks"])
    folder = FOLDER / (manifest["tasks_folder"] or "tasks")
    local = [folder] if folder.is_dir() else []
    manager = TaskManager(include_path=local, include_defaults=False)
    if not all(name in manager.task_index for name in names):  # lm-eval's own take seconds to index
        manager = TaskManager(include_path=local)
    tasks: dict[str, Any] = dict(manager.load(names)["tasks"])
    for task in tasks.values():
        set_fewshot(task, spec)
    return tasks


def load_model(folder: Path, spec: Any) -> Any:
    """The model of user.py from ``folder``."""
    from lm_eval.api.registry import get_model

    import user

    kind = getattr(user, "UserLM", None) or get_model("user")
    dtype = None if spec.dtype == "auto" else spec.dtype
    given = {"max_length": spec.max_length, "add_bos_token": spec.add_bos_token, "dtype": dtype}
    settings = {name: value for name, value in given.items() if value is not None}
    return kind(pretrained=str(folder), batch_size=spec.batch_size, **taken(kind, settings))


def measure(folder: Path, manifest: Mapping[str, Any], spec: Any, results: Path) -> dict[str, Any]:
    """Score and weigh; per-document results go to ``results``, as the scorecard keeps its own."""
    size_bytes = sum(path.stat().st_size for path in regular_files(folder))
    tasks = load_tasks(manifest, spec)
    found = run_tasks(load_model(folder, spec), tasks, spec)
    scores = {name: task_score(task, name, found) for name, task in tasks.items()}
    rows = [row for name, task in tasks.items() for row in document_rows(task, name, found["samples"][name])]
    results.mkdir(parents=True, exist_ok=True)
    write_documents(results / "documents.parquet", rows)
    mean = mean_accuracy(scores)
    accuracy = mean["mean_accuracy"]
    return {
        **mean,
        "size_bytes": size_bytes,
        "size_gib": size_bytes / GIB,
        "score": None if accuracy is None else accuracy / (size_bytes / GIB),
        "tasks": scores,
        "settings": vars(spec),
    }


def show(measured: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """The table, and whether it is what the manifest claims."""
    for name, task in measured["tasks"].items():
        print(f"{name:24} {task['metric']:16} {number(task['value'])} ± {number(task['stderr'])}")
    print(f"accuracy {number(measured['mean_accuracy'])} ± {number(measured['mean_accuracy_stderr'])}")
    print(f"size     {measured['size_bytes']:,} bytes = {measured['size_gib']:.6f} GiB")
    print(f"score    {number(measured['score'], 3)} accuracy per GiB")
    accuracy = f"{number(claims['mean_accuracy'])} ± {number(claims['mean_accuracy_stderr'])}"
    print(f"claimed  {accuracy}, {claims['size_bytes']:,} bytes, score {number(claims['score'], 3)}")


def number(value: float | None, digits: int = 6) -> str:
    """A number for people; – where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Evaluate, print, and write results.json."""
    options = arguments()
    folder = Path(os.environ.get("OUTPUT_MODEL") or FOLDER / "output_model").resolve()
    if not folder.is_dir():
        sys.exit(f"run.sh: {folder} does not exist; run 'bash build.sh --compress' first")
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    changed = {"limit": options.limit, "batch_size": options.batch_size}
    spec = SimpleNamespace(
        **{**manifest["evaluation"], **{name: value for name, value in changed.items() if value}}
    )
    try:
        measured = measure(folder, manifest, spec, options.results)
    except ArtifactError as error:
        sys.exit(f"run.sh: {error}")
    text = json.dumps(measured, indent=2, default=str)
    (options.results / "results.json").write_text(text + "\n", encoding="utf-8")
    show(measured, manifest["claims"])


if __name__ == "__main__":
    main()
