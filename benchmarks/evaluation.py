"""How much faster than lm-eval's HFLM the same scores come out, task by task.

``python -m benchmarks.evaluation --help`` in the root of the repository; ``benchmarks/README.md`` says how
to read the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from benchmarks import models, tasks
from benchmarks.agreement import Agreement, agreement
from benchmarks.sides import BatchSize, Sample, Setting, started
from scorecard import machine

Run = Callable[[tasks.Task, BatchSize], Sample]
# HFLM's search for a batch size begins with this one and runs each so many times.
AUTO_BATCH, SEARCHES = 64, 5


@dataclass(frozen=True)
class Outcome:
    """All rounds of one task: samples without their answers, in the order in which they ran."""

    model: str
    task: str
    documents: int
    requests: int
    batch_size: BatchSize
    tried: dict[str, float | str]  # batch size: seconds for a part of the task, or why it was not run
    hflm: list[Sample]
    ours: list[Sample]
    agreement: Agreement

    def ratios(self, quantity: str) -> list[float]:
        pairs = zip(self.hflm, self.ours, strict=True)
        return [getattr(hflm, quantity) / getattr(ours, quantity) for hflm, ours in pairs]

    def work_ratio(self) -> float:
        """HFLM's multiply-adds with weights by ours: what sharing alone can give."""
        body, head = models.multiply_adds(self.model)
        hflm, ours = (s[-1].tokens * body + s[-1].head_rows * head for s in (self.hflm, self.ours))
        return hflm / ours


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    outcomes: list[Outcome] = []
    for name in options.model:
        setting = Setting(name, options.device, options.dtype, options.threads)
        with contextlib.ExitStack() as stack:
            hflm = stack.enter_context(started("hflm", setting))
            ours = stack.enter_context(started(options.ours, setting))
            for task_name in options.tasks:
                task = tasks.task(task_name, options.documents, setting.seed)
                outcomes.append(_measured(hflm, ours, task, setting, options))
                print(_row(outcomes[-1]), file=sys.stderr)
    print(_table(outcomes))
    if options.json:
        document = {
            "machine": machine.describe(),
            "packages": machine.packages(["lm_eval", "torch", "transformers"]),
            "options": vars(options) | {"json": None},
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=__doc__.split("\n")[0]
    )
    take = parser.add_argument
    take(
        "--model",
        nargs="+",
        default=["m15", "m50"],
        choices=models.SHAPES,
        metavar="NAME",
        help="of m15 m50 1b 8b",
    )
    take("--tasks", nargs="+", default=list(tasks.SHAPES), choices=tasks.SHAPES, metavar="NAME")
    take("--documents", type=int, help="per task (default: some tens, by task)")
    take("--rounds", type=int, default=5)
    take(
        "--batch-sizes",
        nargs="+",
        type=_batch_size,
        default=[1, 8, 32, "auto"],
        help="that HFLM chooses from",
    )
    take("--threads", type=int, default=1)
    take("--device", default="cpu")
    take("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    take("--ours", default="fast", choices=["fast", "plain"], help="what is compared with HFLM")
    take("--json", type=Path, help="where all samples go")
    return parser.parse_args(arguments)


def _batch_size(text: str) -> BatchSize:
    return text if text == "auto" else int(text)


def _measured(
    hflm: Run, ours: Run, task: tasks.Task, setting: Setting, options: argparse.Namespace
) -> Outcome:
    """HFLM's best batch size for a part of the task, then pairs of runs; which side begins alternates."""
    quantity = "wall_seconds" if setting.device.startswith("cuda") else "cpu_seconds"
    best, tried = _best_batch_size(hflm, task, setting, options.batch_sizes, quantity)
    ours(task.part(), None)  # a first run, as HFLM has had
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    for turn in range(options.rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            samples[side].append(hflm(task, best) if side == 0 else ours(task, None))
    found = agreement(task, samples[0][-1].answers, samples[1][-1].answers)
    bare = [[replace(sample, answers=[]) for sample in side] for side in samples]
    return Outcome(
        setting.model,
        task.name,
        task.owners[-1] + 1,
        len(task.requests),
        best,
        tried,
        bare[0],
        bare[1],
        found,
    )


def _best_batch_size(
    hflm: Run, task: tasks.Task, setting: Setting, sizes: Sequence[BatchSize], quantity: str
) -> tuple[BatchSize, dict[str, float | str]]:
    tried: dict[str, float | str] = {}
    for size in sizes:
        if (reason := _out_of_question(task, setting, size)) is not None:
            tried[str(size)] = reason
            continue
        try:
            tried[str(size)] = getattr(hflm(task.part(), size), quantity)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            tried[str(size)] = "out of memory"
    seconds = {size: value for size in sizes if isinstance(value := tried[str(size)], float)}
    return min(seconds, key=lambda size: seconds[size]), tried


def _out_of_question(task: tasks.Task, setting: Setting, size: BatchSize) -> str | None:
    """Why HFLM is not run with ``size`` on the CPU, where too much memory ends more than this process."""
    if setting.device != "cpu":
        return None
    lengths = [sum(len(part.split()) for part in row if isinstance(part, str)) for row in task.requests]
    longest = min(max(lengths), models.MAX_LENGTH)
    if task.kind == "generate_until":
        longest = models.MAX_LENGTH if size == "auto" else 1  # its search takes the whole window
    searched = SEARCHES * AUTO_BATCH * longest
    if size == "auto" and searched > sum(lengths):
        return f"the search alone forwards {searched:,} tokens, the task {sum(lengths):,}"
    logits = (
        (AUTO_BATCH if size == "auto" else int(size or 1)) * longest * models.SHAPES[setting.model][-1] * 4
    )
    needed, free = 2.2 * logits, psutil.virtual_memory().available  # logits and their log-softmax
    return f"needs {needed / 2**30:.0f} GiB" if needed > free / 2 else None


COLUMNS = (
    "model", "task", "docs", "HFLM's batch", "CPU time ratio (min–max)", "wall ratio", "work ratio",
    "tokens HFLM → ours", "head rows HFLM → ours", "outside the model", "peak MB HFLM → ours",
    "relative difference", "flips",
)  # fmt: skip


def _table(outcomes: Sequence[Outcome]) -> str:
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*head, *map(_row, outcomes)])


def _row(outcome: Outcome) -> str:
    cpu, hflm, ours = outcome.ratios("cpu_seconds"), outcome.hflm[-1], outcome.ours[-1]
    cells = [
        outcome.model,
        outcome.task,
        str(outcome.documents),
        str(outcome.batch_size),
        f"{statistics.median(cpu):.2f} ({min(cpu):.2f}–{max(cpu):.2f})",
        f"{statistics.median(outcome.ratios('wall_seconds')):.2f}",
        f"{outcome.work_ratio():.2f}",
        f"{hflm.tokens:,} → {ours.tokens:,}",
        f"{hflm.head_rows:,} → {ours.head_rows:,}",
        _outside(outcome.ours),
        f"{_peak(outcome.hflm)} → {_peak(outcome.ours)}",
        outcome.agreement.difference_text,
        outcome.agreement.flips_text,
    ]
    return "| " + " | ".join(cells) + " |"


def _outside(samples: Sequence[Sample]) -> str:
    """The share of CPU time that is not in the model: tokenization, planning, log-softmax."""
    shares = [1 - s.model_seconds / s.cpu_seconds for s in samples if s.model_seconds is not None]
    return f"{statistics.median(shares):.1%}" if shares else "–"


def _peak(samples: Sequence[Sample]) -> str:
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return f"{max(peaks) / 1e6:,.0f}" if peaks else "–"


if __name__ == "__main__":
    sys.exit(main())
