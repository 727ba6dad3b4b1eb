"""Mean accuracy of $OUTPUT_MODEL over lm-eval tasks, its size, and accuracy per GiB."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import user

EMBEDDED_TASKS = Path(__file__).resolve().parents[1] / "embedded" / "tasks"
TASKS = "tiny_pairs,tiny_cloze,tiny_facts"
GIB = 1 << 30


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--tasks", default=TASKS, help="lm-eval names, commas between")
    parser.add_argument("--include-path", default=str(EMBEDDED_TASKS), help="folder with more task files")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    return parser.parse_args()


def evaluate(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy ± standard error for each task and their mean, apparent size of all files, the score."""
    tasks = options.tasks.split(",")
    shipped = {path.stem for path in Path(options.include_path).glob("*.yaml")}
    manager = TaskManager(include_path=options.include_path, include_defaults=not set(tasks) <= shipped)
    lm = user.UserLM(str(folder), batch_size=options.batch_size)
    settings = {"task_manager": manager, "limit": options.limit, "bootstrap_iters": 0}
    output = simple_evaluate(model=lm, tasks=tasks, **settings)
    results = {name: accuracy(values) for name, values in output["results"].items() if "acc,none" in values}
    if not results:
        raise SystemExit(f"run.sh: none of {options.tasks} reports acc; choose other --tasks")
    mean = sum(result["acc"] for result in results.values()) / len(results)
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "tasks": results,
        "accuracy": mean,
        "accuracy_stderr": math.hypot(*(result["stderr"] for result in results.values())) / len(results),
        "size_bytes": size_bytes,
        "size_gib": size_bytes / GIB,
        "score": mean / (size_bytes / GIB),
    }


def accuracy(values: dict[str, Any]) -> dict[str, float]:
    """``acc`` of one task with the standard error of a proportion."""
    acc, n = float(values["acc,none"]), int(values["sample_len"])
    return {"acc": acc, "stderr": math.sqrt(acc * (1 - acc) / max(1, n - 1))}


def main() -> None:
    """Evaluate and print."""
    options = arguments()
    folder = Path(os.environ["OUTPUT_MODEL"])
    if not folder.is_dir():
        raise SystemExit(f"run.sh: {folder} does not exist; run 'bash build.sh --compress' first")
    result = evaluate(folder, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, task in result["tasks"].items():
        print(f"{name:20} {task['acc']:.4f} ± {task['stderr']:.4f}")
    print(f"accuracy             {result['accuracy']:.4f} ± {result['accuracy_stderr']:.4f}")
    print(f"size                 {result['size_bytes']:,} bytes = {result['size_gib']:.6f} GiB")
    print(f"score                {result['score']:.3f} accuracy per GiB")


if __name__ == "__main__":
    main()
