"""One line of the score table: its keys, their meaning, and the scores a table can be ranked by.

The text beside each key is the only description of it: results.schema.json and the key table of
docs/results.md are made from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

RowStatus = Literal["ok", "failed", "skipped", "expected failure"]

GIB = 2**30
FLOORS = (99, 95, 90)

#: Most KL divergence to the original, in nats per token, that a floor score forgives. Were the original's
#: predictions the truth, this divergence would be the logarithm of the perplexity ratio, so 0.2 lets
#: perplexity grow by e^0.2 = 1.22. An accuracy floor alone is no guard: with a few hundred documents, or
#: tasks that the original itself does not know well, a model can keep its accuracy after its predictions
#: have become another model's. Published curves of 8B models lie well below it at 4 and 3 bits per weight
#: (0.01-0.1) and cross it between 2 and 2.5.
KL_GUARD = 0.2

#: What a table can be ranked by -> the key of Row that holds it. More is better for each.
SCORES: Mapping[str, str] = {
    "raw": "score_raw",
    "chance-corrected": "score_chance_corrected",
    "recovery": "recovery",
    **{f"floor-{floor}": f"score_floor_{floor}" for floor in FLOORS},
}
DEFAULT_RANKING = "floor-95"


@dataclass(frozen=True)
class TaskScore:
    """One task of one row."""

    metric: Annotated[str, "name of the task's main metric, as lm-eval calls it"]
    value: Annotated[float | None, "its value; null when it is not finite"]
    stderr: Annotated[float | None, "standard error of `value`"]
    n: Annotated[int, "documents scored"]
    chance: Annotated[float | None, "chance level: what a uniform guesser gets; null where there is none"]
    accuracy: Annotated[bool, "whether the task counts in the mean accuracy"]
    higher_is_better: Annotated[bool, "direction of the metric"]
    num_fewshot: Annotated[int | None, "examples shown before each question"] = None
    version: Annotated[str | None, "version of the task's definition"] = None
    chance_corrected: Annotated[
        float | None, "(value - chance) / (1 - chance) of an accuracy; below 0: worse than a guess"
    ] = None


Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class GateCheck:
    """One threshold of one row: `pass` or `fail` when all of the interval is on one side of it."""

    outcome: Annotated[Outcome, "`pass`, `fail` or `inconclusive`"]
    limit: Annotated[float, "the threshold"]
    value: Annotated[float | None, "what was measured; null: nothing was"]
    low: Annotated[float | None, "lower end of its 95 % interval; `value` for what is exact, such as a size"]
    high: Annotated[float | None, "upper end of its 95 % interval"]
    needs: Annotated[int | None, "about how many more documents (rounds, for speed) would decide it"]


@dataclass(frozen=True)
class Row:
    """One line of the score table. ``None`` means not measured, never zero."""

    case: Annotated[str, "id of the case, `set.name@version-config`; `#2` for the baseline of another group"]
    model: Annotated[str, "id of the model, `set.name@version`"]
    config: Annotated[str, "name of the config; `null` and `lossless` for the reference rows"]
    runner: Annotated[str, "backend that made the artifact; `reference` for the reference rows"]
    status: Annotated[RowStatus, "`ok`, `failed`, `skipped` or `expected failure`"]
    reason: Annotated[
        str | None, "why the status is not `ok`: the stage and the first line of its message"
    ] = None
    reference: Annotated[
        bool, "true for the two reference rows, which take no part in ranks and Pareto front"
    ] = False
    baseline: Annotated[bool, "true for the uncompressed model that the others are compared with"] = False
    group: Annotated[
        int | None,
        "cases of a model with one number were scored under the same conditions; 1: the baseline's",
    ] = None
    differs: Annotated[
        tuple[str, ...], "conditions that are not those of group 1, `name: value, not value`"
    ] = field(default_factory=tuple)
    stages: Annotated[Mapping[str, str], "status of each stage that was asked for"] = field(
        default_factory=dict
    )
    keys: Annotated[Mapping[str, str], "stage key of each stage: where its record lies in the store"] = field(
        default_factory=dict
    )

    size_bytes: Annotated[int | None, "apparent bytes of all files of the artifact"] = None
    size_ratio: Annotated[float | None, "`size_bytes` / the baseline's"] = None
    size_gib: Annotated[float | None, "the same in GiB (2^30 bytes)"] = None
    bits_per_weight: Annotated[float | None, "bits of all weight files / parameters of the original"] = None
    bits_per_weight_body: Annotated[float | None, "the same for the body's Linear layers only"] = None
    could_shrink_by_bytes: Annotated[int | None, "bytes that zstd would still take off the weight files"] = (
        None
    )

    tasks: Annotated[Mapping[str, TaskScore], "every task's result"] = field(default_factory=dict)
    documents: Annotated[int | None, "documents of the accuracy tasks, all together"] = None
    stopped_early: Annotated[
        bool, "true where tasks end as soon as the comparison with the baseline is decided"
    ] = False
    mean_accuracy: Annotated[float | None, "mean of `value` over the accuracy tasks"] = None
    mean_accuracy_stderr: Annotated[float | None, "its standard error, tasks taken as independent"] = None
    chance_corrected_accuracy: Annotated[
        float | None,
        "max(0, mean of (a - h) / (1 - h)) over the accuracy tasks, h the chance level",
    ] = None
    recovery: Annotated[float | None, "`mean_accuracy` / the baseline's `mean_accuracy`"] = None
    recovery_low: Annotated[float | None, "lower end of its paired 95 % interval"] = None
    recovery_high: Annotated[float | None, "upper end of its paired 95 % interval"] = None
    delta_accuracy: Annotated[float | None, "`mean_accuracy` - the baseline's"] = None
    delta_accuracy_low: Annotated[float | None, "lower end of its paired 95 % interval"] = None
    delta_accuracy_high: Annotated[float | None, "upper end of its paired 95 % interval"] = None
    mcnemar_p: Annotated[
        float | None,
        "exact two-sided McNemar p: as many documents lost as gained against the baseline; "
        "documents that share a context are swapped together",
    ] = None
    mcnemar_p_holm: Annotated[
        float | None, "the same, corrected for the number of cases of the group (Holm)"
    ] = None
    flips: Annotated[int | None, "documents right in one of the two and wrong in the other"] = None

    kl: Annotated[float | None, "KL divergence from the original on held-out text, nats per token"] = None
    kl_stderr: Annotated[float | None, "its standard error"] = None
    top1: Annotated[
        float | None, "share of held-out tokens whose most likely next token is the original's"
    ] = None
    top1_stderr: Annotated[float | None, "its standard error"] = None
    heldout_documents: Annotated[int | None, "documents of the held-out text"] = None
    perplexity: Annotated[float | None, "perplexity per token on held-out text"] = None
    bits_per_byte: Annotated[float | None, "bits needed per byte of held-out text"] = None

    prefill_p50_ms: Annotated[float | None, "median time to the first token, milliseconds"] = None
    prefill_tokens_per_second: Annotated[float | None, "prompt tokens read per second, whole batch"] = None
    decode_p50_ms: Annotated[float | None, "median time per generated token, milliseconds"] = None
    decode_tokens_per_second: Annotated[float | None, "tokens generated per second, whole batch"] = None
    prefill_speedup: Annotated[
        float | None, "baseline's p10 / this p10, timed interleaved in one process"
    ] = None
    prefill_speedup_low: Annotated[float | None, "lower end of its 95 % interval"] = None
    prefill_speedup_high: Annotated[float | None, "upper end of its 95 % interval"] = None
    decode_speedup: Annotated[float | None, "the same for decode"] = None
    decode_speedup_low: Annotated[float | None, "lower end of its 95 % interval"] = None
    decode_speedup_high: Annotated[float | None, "upper end of its 95 % interval"] = None
    timing_rounds: Annotated[int | None, "timed rounds"] = None
    load_seconds: Annotated[float | None, "seconds to load the artifact"] = None
    peak_host_memory_bytes: Annotated[int | None, "peak host memory of load, prefill and decode"] = None
    peak_cuda_memory_bytes: Annotated[int | None, "peak CUDA memory of the same; null without CUDA"] = None
    compress_seconds: Annotated[float | None, "seconds to compress"] = None
    compress_peak_host_memory_bytes: Annotated[int | None, "peak host memory of compressing"] = None
    compress_peak_cuda_memory_bytes: Annotated[int | None, "peak CUDA memory of compressing"] = None

    score_raw: Annotated[float | None, "`mean_accuracy` / `size_gib`"] = None
    score_raw_low: Annotated[float | None, "lower end of its 95 % interval"] = None
    score_raw_high: Annotated[float | None, "upper end of its 95 % interval"] = None
    score_chance_corrected: Annotated[float | None, "`chance_corrected_accuracy` / `size_gib`"] = None
    score_floor_99: Annotated[
        float | None, "`score_raw` if recovery >= 0.99 and KL <= the guard, else null"
    ] = None
    score_floor_95: Annotated[
        float | None, "`score_raw` if recovery >= 0.95 and KL <= the guard, else null"
    ] = None
    score_floor_90: Annotated[
        float | None, "`score_raw` if recovery >= 0.90 and KL <= the guard, else null"
    ] = None
    rank: Annotated[
        int | None, "rank within the group by the table's ranking score; equal ranks are ties"
    ] = None
    rank_low: Annotated[int | None, "best rank that it can have, all ranks together with 95 %"] = None
    rank_high: Annotated[int | None, "worst rank that it can have, likewise"] = None
    pareto: Annotated[
        bool | None,
        "no other case of the model is as small and as accurate, and better in one of the two",
    ] = None

    gate: Annotated[str | None, "`pass`, `fail` or `inconclusive`; null where nothing is asked for"] = None
    gate_checks: Annotated[Mapping[str, GateCheck], "every threshold of the gate"] = field(
        default_factory=dict
    )

    findings: Annotated[tuple[str, ...], "what the audit found, `level: text`"] = field(default_factory=tuple)
    notes: Annotated[tuple[str, ...], "what a reader must know beside the numbers"] = field(
        default_factory=tuple
    )

    def score(self, ranking: str) -> float | None:
        """The score that `ranking`, a key of SCORES, stands for."""
        value: float | None = getattr(self, SCORES[ranking])
        return value

    def flat(self) -> dict[str, Any]:
        """One scalar per key: ``tasks.NAME.value`` for what is nested, lists joined by ``; ``."""
        return dict(_flat("", {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}))


@dataclass(frozen=True)
class Table:
    """What every report format takes: rows in the order they are shown, and what holds for all of them."""

    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ranking(self) -> str:
        return str(self.settings.get("ranking", DEFAULT_RANKING))

    def models(self) -> Iterator[tuple[str, list[Row]]]:
        """Each model with its rows, in the order of first appearance."""
        for model in dict.fromkeys(row.model for row in self.rows):
            yield model, [row for row in self.rows if row.model == model]


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one model by what they may be ranked with, each group with what sets it apart: nothing for
    the first, which the reference rows and those without a result belong to."""
    for label in dict.fromkeys("; ".join(row.differs) for row in rows):
        yield label, [row for row in rows if "; ".join(row.differs) == label]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, (tuple, list)):
        yield prefix, "; ".join(map(str, value)) or None
    else:
        yield prefix, value
