"""Twenty real A/A comparisons: one model scored again and again, in other batches and another order.

    python -m benchmarks.repeated [--runs 20] [--limit 60] [--dtype float32]

Scores the embedded model in this process and compares each run with the first, as two cases would be. Prints
a Markdown table. A right-or-wrong answer changes only where rounding tips a near tie, so nothing should be
told apart. About a minute of processor time with the defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import base
from scorecard.compare import paired
from scorecard.documents import REPOSITORY
from scorecard.evaluate import evaluate
from scorecard.pairs import read_documents
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("tiny_pairs", "tiny_cloze", "tiny_facts")
BATCHES = (16, 1, 7, 32, 3, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="comparisons [%(default)s]")
    parser.add_argument("--limit", type=int, default=60, help="documents of each task [%(default)s]")
    parser.add_argument("--dtype", default="auto", help="type to compute in [%(default)s]")
    options = parser.parse_args()
    spec = EvalSpec(TASKS, ("embedded:tasks",), limit=options.limit, dtype=options.dtype)
    first, metrics = scored(spec)
    print(
        "| run | batch size | flips | Δ points [95 %] | p | told apart |\n|--:|--:|--:|--:|--:|:--|",
        flush=True,
    )
    apart = 0
    for run in range(1, options.runs + 1):
        batch = BATCHES[run % len(BATCHES)]
        other, _ = scored(dataclasses.replace(spec, batch_size=batch, shuffle=run))
        found = paired(other, first, metrics)
        delta, p = found.delta_accuracy, found.mcnemar_p
        assert delta is not None
        assert p is not None
        told = p <= 0.05 or delta.excludes_zero
        apart += told
        ends = ", ".join(f"{100 * end:+.1f}" for end in (delta.low, delta.high))
        word = "yes" if told else "no"
        print(
            f"| {run} | {batch} | {found.flips} | {100 * delta.value:+.2f} [{ends}] | {p:.2f} | {word} |",
            flush=True,
        )
    print(f"\n{apart} of {options.runs} told apart, {found.documents} documents")


def scored(spec: EvalSpec) -> tuple[pd.DataFrame, dict[str, str]]:
    """The documents of one run, and the metric that counts for each accuracy task."""
    model = ModelSpec("embedded", "tiny-llama", "1", "embedded:tiny-llama")
    case = Case(model, ConfigSpec("baseline", "baseline"), spec)
    lm = base.get("baseline")(case, None, REPOSITORY / "embedded" / "tiny-llama").load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "documents.parquet")
        result: dict[str, Any] = evaluate(lm, spec, reference=None, write_reference=None, documents=path)
        frame = read_documents(path)
    return frame, {name: task["metric"] for name, task in result["tasks"].items() if task["accuracy"]}


if __name__ == "__main__":
    main()
