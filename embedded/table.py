"""Measure what the embedded model has to lose: `python embedded/table.py` rewrites the table of README.md.

Every case is compressed, loaded and evaluated by the project's own runners and evaluation. The command ends
with exit code 1 when a promise of the model card does not hold.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

import pandas as pd  # noqa: E402

from runners import base  # noqa: E402
from scorecard.compare import Comparison, paired, read_documents  # noqa: E402
from scorecard.evaluate import evaluate  # noqa: E402
from scorecard.spec import CalibrationSpec, Case, ConfigSpec, EvalSpec, ModelSpec  # noqa: E402

CHOICE_TASKS = ("tiny_pairs", "tiny_cloze", "tiny_facts")
OTHER_TASKS = ("tiny_generate", "tiny_text")
BASELINE = "baseline"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("baseline", {}),
    "bnb-nf4": ("bnb", {"format": "nf4"}),
    "awq-w4-g128": ("awq", {"bits": 4}),
    "gptq-w4-g128": ("gptq", {"bits": 4, "dequantize": True}),
    "rtn-w4-g128": ("rtn", {"bits": 4}),
    "gptq-w3-g128": ("gptq", {"bits": 3, "dequantize": True}),
    "rtn-w3-g128": ("rtn", {"bits": 3}),
    "rtn-w2-g128": ("rtn", {"bits": 2}),
}
FOUR_BITS = ("bnb-nf4", "awq-w4-g128", "gptq-w4-g128", "rtn-w4-g128")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Measured:
    """One case: the `evaluate` record's result, the score of each document, the bytes of its files."""

    result: dict[str, Any]
    documents: pd.DataFrame
    size_bytes: int

    def accuracy(self, task: str) -> float:
        return float(self.result["tasks"][task]["value"])

    def mean(self) -> float:
        return sum(map(self.accuracy, CHOICE_TASKS)) / len(CHOICE_TASKS)


def case(model: Path, config: str) -> Case:
    runner, options = CONFIGS[config]
    return Case(
        model=ModelSpec(set="embedded", name=model.name, version="1", source=f"path:{model}"),
        config=ConfigSpec(name=config, runner=runner, options=options),
        evaluation=EvalSpec(
            tasks=CHOICE_TASKS + OTHER_TASKS,
            task_paths=("embedded:tasks",),
            batch_size=64,
            bootstrap_iters=0,
            heldout="embedded:heldout",
        ),
        calibration=CalibrationSpec(data="embedded:calibration"),
    )


def measure(model: Path, config: str, folder: Path) -> Measured:
    """Compress into `folder`, load from there and evaluate. The baseline must come first."""
    one, output = case(model, config), folder / config
    output.mkdir()
    runner = base.get(one.config.runner)(one, model, output)
    runner.compress()
    reference, documents = folder / "reference", folder / f"{config}.parquet"
    first = config == BASELINE
    result = evaluate(
        runner.load(),
        one.evaluation,
        reference=None if first else reference,
        write_reference=reference if first else None,
        documents=documents,
    )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Measured(result, read_documents(documents), size)


def compared(first: Measured, second: Measured) -> Comparison:
    metrics = {task: first.result["tasks"][task]["metric"] for task in CHOICE_TASKS}
    return paired(first.documents, second.documents, metrics)


def table(measured: dict[str, Measured]) -> str:
    """Markdown, one row a case."""
    tasks = [*CHOICE_TASKS, "tiny_generate"]
    lines = [
        f"| config | size (MB) | {' | '.join(tasks)} | mean of three | KL | same top token | bits per byte |",
        "|---|" + "---:|" * (len(tasks) + 5),
    ]
    for config, one in measured.items():
        text = one.result["heldout"]
        bits = one.result["tasks"]["tiny_text"]["metrics"]["bits_per_byte"]["value"]
        scores = " | ".join(f"{100 * one.accuracy(task):.1f}" for task in tasks)
        lines.append(
            f"| {config} | {one.size_bytes / 1e6:.2f} | {scores} | {100 * one.mean():.1f} "
            f"| {text['kl']:.4f} | {text['top1']:.3f} | {bits:.3f} |"
        )
    return "\n".join(lines)


def promises(measured: dict[str, Measured]) -> dict[str, bool]:
    """What the model card says of the model, and whether it holds."""
    whole, two = measured[BASELINE], measured["rtn-w2-g128"]
    gptq = compared(measured["gptq-w3-g128"], measured["rtn-w3-g128"])
    lost = {c: max(whole.accuracy(t) - measured[c].accuracy(t) for t in CHOICE_TASKS) for c in FOUR_BITS}
    least = min(whole.accuracy(task) for task in CHOICE_TASKS)
    ruined = min(whole.accuracy(task) - two.accuracy(task) for task in CHOICE_TASKS)
    worst = max(lost, key=lambda config: lost[config])
    assert gptq.delta_kl is not None
    assert gptq.kl_p is not None
    return {
        f"bf16 has at least 90 % on each multiple-choice task (least: {100 * least:.1f} %)": least >= 0.9,
        "4-bit methods lose at most 2 points on each multiple-choice task "
        f"(most: {100 * lost[worst]:.1f}, {worst})": lost[worst] <= 0.02,
        "2-bit round-to-nearest loses at least 20 points on each multiple-choice task "
        f"(least: {100 * ruined:.1f})": ruined >= 0.2,
        "3-bit GPTQ is nearer to bf16 than 3-bit round-to-nearest "
        f"(KL {gptq.delta_kl.value:+.4f} nats a token, paired p = {gptq.kl_p:.2g}; accuracy: {gptq.gained} "
        f"documents gained, {gptq.lost} lost, McNemar p = {gptq.mcnemar_p:.2g})": gptq.delta_kl.value < 0
        and gptq.kl_p < 0.01,
    }


def written(page: Path, text: str) -> None:
    """Put `text` between the marks of `page`."""
    old = page.read_text(encoding="utf-8")
    new = re.sub(f"(?s){BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old)
    page.write_text(new, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "tiny-llama", help="[the embedded model]")
    parser.add_argument("--page", type=Path, default=HERE / "README.md", help="[embedded/README.md]")
    parser.add_argument("--print", action="store_true", help="print only, leave the page alone")
    options = parser.parse_args(arguments)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for config in CONFIGS:
            measured[config] = measure(options.model.resolve(), config, Path(folder))
            print(config, {task: measured[config].accuracy(task) for task in CHOICE_TASKS}, flush=True)
    kept = promises(measured)
    text = "\n".join(
        [table(measured), "", *(f"- {'yes' if ok else 'NO'}: {what}" for what, ok in kept.items())]
    )
    print(text)
    if not options.print:
        written(options.page, text)
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
