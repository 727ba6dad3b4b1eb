"""Made-up cases with complete records, for tests of the score table. No number here was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from scorecard.records import CaseRecords
from scorecard.spec import Record

MODEL = "embedded.tiny-llama@1"
TASKS = {"pairs": 0.5, "cloze": 0.25}
DOCUMENTS = 400


def frame(loss: float = 0.0, kl: float = 0.0, *, documents: int = DOCUMENTS, seed: int = 0) -> pd.DataFrame:
    """Per-document results: the same 9 of 10 documents right for all, less a share `loss` lost at random."""
    parts = []
    for place, task in enumerate(TASKS):
        right = np.random.default_rng(place).random(documents) < 0.9
        kept = np.random.default_rng(1000 * seed + place).random(documents) >= loss
        parts.append(
            pd.DataFrame(
                {"task": task, "doc": range(documents), "metric": "acc", "value": 1.0 * (right & kept)}
            )
        )
    tokens = np.random.default_rng(7).integers(20, 60, 32).astype(float)
    spread = np.random.default_rng(seed).uniform(0.5, 1.5, 32)
    for metric, values in {"kl": kl * spread, "tokens": tokens, "nll": 1 + kl * spread}.items():
        parts.append(pd.DataFrame({"task": "heldout", "doc": range(32), "metric": metric, "value": values}))
    return pd.concat(parts, ignore_index=True).assign(cluster=lambda table: table["doc"])


def evaluation(table: pd.DataFrame, kl: float) -> dict:
    """The evaluate result that belongs to a frame."""
    tasks = {}
    for task, chance in TASKS.items():
        values = table[(table["task"] == task) & (table["metric"] == "acc")]["value"]
        stderr = float(values.std() / np.sqrt(len(values)))
        tasks[task] = {
            "metric": "acc", "value": float(values.mean()), "stderr": stderr, "higher_is_better": True,
            "n": len(values), "version": 1.0, "num_fewshot": 0, "chance": chance, "accuracy": True,
            "stopped": None, "metrics": {"acc": {"value": float(values.mean()), "stderr": stderr}},
        }  # fmt: skip
    tasks["text"] = {
        "metric": "word_perplexity", "value": 9.5, "stderr": 0.2, "higher_is_better": False, "n": 50,
        "version": 1.0, "num_fewshot": 0, "chance": None, "accuracy": False,
        "metrics": {"word_perplexity": {"value": 9.5, "stderr": 0.2}},
    }  # fmt: skip
    mean = sum(tasks[t]["value"] for t in TASKS) / len(TASKS)
    stderr = float(np.hypot(*(tasks[t]["stderr"] for t in TASKS)) / len(TASKS))
    return {
        "tasks": tasks, "mean_accuracy": mean, "mean_accuracy_stderr": stderr,
        "heldout": {
            "kl": kl, "kl_stderr": kl / 20, "top1": max(0.0, 1 - kl / 4), "top1_stderr": 0.004,
            "perplexity": 3 + kl, "perplexity_stderr": 0.05,
            "bits_per_byte": 1.1, "bits_per_byte_stderr": 0.01, "tokens": 1280, "documents": 32,
            "kl_truncation_bound": 0.0, "reference_bytes_per_token": 1032.0,
        },
        "heldout_reason": None,
        "calibration_overlap": {t: {"documents": 0, "of": 100, "ngram": 13} for t in TASKS},
        "conditions": {"tokenizer_sha256": "0" * 64, "adds_bos": True, "chat_template_sha256": None},
        "lm_eval_version": "0.4.13", "seconds": 1.0, "lm_notes": [],
        "settings": {"limit": None, "dtype": "bfloat16"}, "isolation": "namespace", "threads": 1,
    }  # fmt: skip


def ledger(size: int) -> dict:
    by_category = {
        "weights": size - 3000, "scales": 1000, "embeddings": 500, "tokenizer": 800, "config": 700,
        "code": 0, "other": 0,
    }  # fmt: skip
    return {
        "size_bytes": size, "size_gib": size / 2**30, "by_category": by_category,
        "files": [{"path": "a.safetensors", "size_bytes": size, "sha256": "0" * 64, "category": "weights"}],
        "parameters": 1_000_000, "bits_per_weight": 8 * size / 1e6, "bits_per_weight_body": 8 * size / 1.1e6,
        "duplicates": [{"what": "identical files", "paths": ["a", "b"], "size_bytes": 1}],
        "zstd_bytes": size - 100, "could_shrink_by_bytes": 100,
    }  # fmt: skip


def measurement(decode_ms: float) -> dict:
    def samples(ms: float) -> dict:
        return {
            "samples_seconds": [ms / 1e3],
            **dict.fromkeys(("p10", "p50", "p90", "p99"), ms / 1e3),
            "n": 1,
        }

    return {
        "load_seconds": 0.5, "peak_host_memory_bytes": 300 * 2**20, "peak_cuda_memory_bytes": None,
        "host_memory": {"rss_anon_bytes": 1, "rss_file_bytes": 1},
        "prefill": samples(4 * decode_ms), "decode": samples(decode_ms),
        "prefill_tokens_per_second": 64 / (4e-3 * decode_ms), "decode_tokens_per_second": 1e3 / decode_ms,
        "baseline": {"prefill": samples(8.0), "decode": samples(2.0)}, "baseline_reason": None,
        "prefill_speedup": 2 / decode_ms, "decode_speedup": 2 / decode_ms, "threads": 1,
        "load_average": [0.5, 0.5, 0.5], "settings": {"batch_size": 1}, "reason": None,
        "isolation": "namespace",
    }  # fmt: skip


def compression() -> dict:
    return {
        "artifact_sha256": "0" * 64, "seconds": 3.5, "peak_host_memory_bytes": 500 * 2**20,
        "peak_cuda_memory_bytes": None, "device": "cpu",
        "calibration": {"data": "embedded:calibration", "sha256": "0" * 64, "samples": 128, "tokens": 9000},
    }  # fmt: skip


def record(case: str, stage: str, result: dict, status: str = "ok", reason: str | None = None) -> Record:
    return Record(stage, f"{stage}-key", case, status, {}, "2026-01-01T00:00:00Z", 1.0, result, reason)


class Cases:
    """Cases of one model with their frames kept in memory; `read` is what `score.rows` reads them with."""

    def __init__(self, model: str = MODEL) -> None:
        self.model, self.frames, self.all = model, {}, []

    def add(
        self, config: str, size: int, loss: float = 0.0, kl: float = 0.0, *,
        runner: str = "rtn", seed: int = 1, findings: tuple = (), documents: int = DOCUMENTS,
    ) -> CaseRecords:  # fmt: skip
        case = f"{self.model}-{config}"
        table = frame(loss, kl, documents=documents, seed=seed)
        results = {
            "compress": compression(),
            "audit": {"ledger": ledger(size), "audit": {"layers": [], "findings": list(findings)}},
            "evaluate": evaluation(table, kl),
            "measure": measurement(1.0 + loss),
        }
        if runner == "baseline":
            results["audit"]["lossless_bytes"] = int(0.625 * size)
        path = Path(f"/nowhere/{case}.parquet")
        self.frames[path] = table
        records = {stage: record(case, stage, result) for stage, result in results.items()}
        made = CaseRecords(case, self.model, config, runner, records, path)
        self.all.append(made)
        return made

    def fail(
        self, config: str, stage: str, reason: str, *, status: str = "failed", expected: str | None = None
    ) -> None:
        case = f"{self.model}-{config}"
        records = {stage: record(case, stage, {}, status, reason)}
        self.all.append(CaseRecords(case, self.model, config, "gptq", records, expected=expected))

    def read(self, path: Path) -> pd.DataFrame:
        return self.frames[path]


def usual() -> Cases:
    """A baseline, three good cases, a wreck, and one each that failed, was skipped, failed as declared."""
    cases = Cases()
    cases.add("baseline", 8_000_000, runner="baseline", seed=0)
    cases.add("rtn-w8", 4_000_000, 0.0, 0.001)
    cases.add("gptq-w4", 2_000_000, 0.01, 0.01, runner="gptq", seed=2)
    cases.add("rtn-w4", 2_010_000, 0.012, 0.03, seed=3)
    cases.add(
        "rtn-w2",
        700_000,
        0.5,
        2.5,
        seed=4,
        findings=({"level": "warning", "what": "lm_head is not compressed"},),
    )
    cases.fail(
        "awq-w4", "compress", "no module named 'gptqmodel'; install it with pip install 'scorecard[awq]'"
    )
    cases.fail("bnb-nf4", "compress", "bnb: needs a GPU", status="skipped")
    cases.fail("odd", "compress", "ValueError: group size 96", expected="does not divide the hidden size")
    return cases
