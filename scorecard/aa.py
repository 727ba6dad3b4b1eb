"""The baseline of a model scored twice, through the stages that every case goes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scorecard.against import metrics
from scorecard.noise import again, noise_floor
from scorecard.pairs import read_documents
from scorecard.records import CaseRecords, own_row
from scorecard.run import Run
from scorecard.spec import Case, Record, to_json
from scorecard.stages import Bench


def measured(run: Run, baseline: Case, *, build: bool) -> dict[str, Any] | str:
    """The noise floor of a model, or why there is none; with ``build=False`` from what the store has."""
    bench = run.beside(baseline, build=build)
    try:
        second = again(baseline)
        records = [bench.record(case, "evaluate") for case in (baseline, second)]
    finally:
        bench.close()
    bad = next((record for record in records if record.status != "ok"), None)
    return f"evaluate {bad.status}: {bad.reason}" if bad else _floor(bench, baseline, records)


def of_models(run: Run, baselines: Mapping[str, Case]) -> dict[str, Any]:
    """By model id, the noise floors that were measured."""
    found = {name: measured(run, baseline, build=False) for name, baseline in baselines.items()}
    return {name: noise for name, noise in found.items() if not isinstance(noise, str)}


def _floor(bench: Bench, baseline: Case, records: list[Record]) -> dict[str, Any]:
    frames = [read_documents(bench.store.path(record.key) / "documents.parquet") for record in records]
    case = CaseRecords(
        baseline.id, baseline.model.id, baseline.config.name, "baseline", {"evaluate": records[0]}
    )
    noise: dict[str, Any] = to_json(noise_floor(frames[0], frames[1], metrics(own_row(case))))
    return noise
