"""The order of stages of a case, each run at most once: a small graph of futures over a pool of workers.

fetch ──▶ compress ──▶ audit
              └──────▶ evaluate  (after ``prepare`` and after the baseline's evaluate, which is its reference)
              └──────▶ measure   (alone on the machine, after everything else)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from runners import _calibration_source, base
from scorecard import keys, machine, sources
from scorecard.errors import DataUnavailable, RunnerUnavailable, ScorecardError
from scorecard.executor import ProcessExecutor
from scorecard.graph import Graph
from scorecard.perform import NOT_RUN, Executor, Performer, Settings
from scorecard.spec import CalibrationSpec, Case, EvalSpec, ModelSpec, Record, Stage
from scorecard.store import Store, now, stage_key


def default_jobs(model_bytes: int) -> int:
    """Workers at once: one on a GPU, else one per core as far as memory goes (4 copies of a model each)."""
    if machine.gpus():
        return 1
    available = machine.memory_bytes("MemAvailable") or 0
    return max(1, min(machine.cores(), available // (4 * model_bytes + 2**30)))


class Bench:
    """Runs stages of cases; ask it from one thread. A stage that did not work out raises nothing: it is a
    Record whose status says so."""

    def __init__(
        self,
        store: Store,
        baseline_of: Callable[[Case], Case],
        settings: Settings,
        executor: Executor | None = None,
    ) -> None:
        self.store, self.baseline_of, self.settings = store, baseline_of, settings
        self._performer = Performer(store, settings, executor or ProcessExecutor())
        self._perform = self._performer.record
        self._graph = Graph(settings.jobs)

    def submit(self, wanted: Iterable[tuple[Case, Stage]]) -> None:
        """Begin work on all of these; timings start when nothing else is left to do."""
        pairs = sorted(wanted, key=lambda pair: pair[1] == "measure")
        for case, stage in pairs:
            self.future(case, stage)

    def record(self, case: Case, stage: Stage) -> Record:
        """The record of one stage of a case; waits for it and everything it needs."""
        return self.future(case, stage).result()

    def future(self, case: Case, stage: Stage) -> Future[Record]:
        plan = {
            "compress": self._compress,
            "audit": self._audit,
            "evaluate": self._evaluate,
            "measure": self._measure,
        }[stage]
        return self._graph.once(f"{stage} {stage_key({'case': case})}", lambda: plan(case))

    def close(self) -> None:
        """Stop: nothing queued is started, workers are ended with all their processes."""
        self._graph.close(self._performer.close)

    # -- the graph ---------------------------------------------------------------------------------------

    def _fetch(self, model: ModelSpec) -> Future[Any]:
        def fetch() -> Any:
            try:
                return sources.fetch(model, self.settings.models_dir, offline=self.settings.offline)
            except ScorecardError as error:
                return error

        return self._graph.once(f"fetch {model.id}", lambda: self._graph.after([], fetch))

    def _prepare(self, spec: EvalSpec) -> Future[Record]:
        inputs = keys.prepare(spec)
        request = {"evaluation": spec}
        return self._graph.once(
            f"prepare {stage_key(inputs)}",
            lambda: self._graph.after(
                [], lambda: self._perform("prepare", ", ".join(spec.tasks), inputs, request)
            ),
        )

    def _compress(self, asked: Case) -> Future[Record]:
        model, text = self._fetch(asked.model), self._calibration(asked)

        def run() -> Record:
            fetched, case = model.result(), text.result()
            if isinstance(fetched, ScorecardError):
                return _not_done("compress", asked, "failed", str(fetched))
            if isinstance(case, ScorecardError):
                status = "skipped" if isinstance(case, DataUnavailable) else "failed"
                return _not_done("compress", asked, status, str(case))
            try:
                runner = base.get(case.config.runner)(case, None, Path())
                runner.check()
                inputs = keys.compress(case, runner, fetched.sha256)
            except RunnerUnavailable as error:
                return _not_done("compress", case, "skipped", str(error))
            except ScorecardError as error:
                return _not_done("compress", case, "failed", str(error))
            return self._perform("compress", case.id, inputs, {"case": case, "model_dir": str(fetched.path)})

        return self._graph.after([model, text], run)

    def _calibration(self, case: Case) -> Future[Any]:
        """The case with its calibration text as one local file, which every environment can read."""
        needed = base.get(case.config.runner)(case, None, Path()).calibrates
        spec = case.calibration if needed else None
        text = self._calibration_text(spec) if spec else None

        def placed() -> Any:
            found = text.result() if text else case.calibration
            return (
                found if isinstance(found, ScorecardError) else dataclasses.replace(case, calibration=found)
            )

        return self._graph.after([text] if text else [], placed)

    def _calibration_text(self, spec: CalibrationSpec) -> Future[Any]:
        """``spec`` with its data resolved, once for all cases that share it; or the error."""

        def resolve() -> Any:
            offline = self.settings.offline or not self.settings.build
            folder = self.store.root / "calibration"
            try:
                path = _calibration_source.resolve(spec, folder, offline=offline)
            except ScorecardError as error:
                return error
            return dataclasses.replace(spec, data=str(path))

        return self._graph.once(
            f"calibration {stage_key({'calibration': spec})}", lambda: self._graph.after([], resolve)
        )

    def _audit(self, case: Case) -> Future[Record]:
        model, compressed = self._fetch(case.model), self.future(case, "compress")

        def run() -> Record:
            parent = compressed.result()
            if parent.status != "ok":
                return _blocked("audit", case, parent)
            request = {
                "case": case,
                "model_dir": str(model.result().path),
                "artifact": self._artifact(parent),
            }
            return self._perform("audit", case.id, keys.audit(parent.key), request)

        return self._graph.after([model, compressed], run)

    def _evaluate(self, case: Case) -> Future[Record]:
        baseline = self.baseline_of(case)
        refers = baseline.id != case.id
        needs = [self._fetch(case.model), self.future(case, "compress"), self._prepare(case.evaluation)]
        needs += [self.future(baseline, "evaluate")] if refers else []
        text = self._calibration(case)

        def run() -> Record:
            fetched, *records = [need.result() for need in needs]
            bad = next((r for r in records if r.status != "ok"), None)
            if bad:
                return _blocked("evaluate", case, bad)
            parent, tasks = records[:2]
            reference = records[2] if refers else None
            compared = reference and (case.evaluation.heldout or case.evaluation.early_stop)
            runner = base.get(case.config.runner)
            inputs = keys.evaluate(
                case, runner, parent.key, tasks.result, reference.key if reference and compared else None
            )
            request = {
                "case": text.result(),
                "artifact": self._artifact(parent),
                "hidden": self._hidden(fetched),
                "reference": reference and str(self.store.path(reference.key)),
                "writes_reference": not refers and case.evaluation.heldout is not None,
            }
            return self._perform("evaluate", case.id, inputs, request)

        return self._graph.after([*needs, text], run)

    def _measure(self, case: Case) -> Future[Record]:
        baseline = self.baseline_of(case)
        compare = baseline.id != case.id and case.measure.interleave
        needs = [self._fetch(case.model), self.future(case, "compress")]
        needs += [self.future(baseline, "compress")] if compare else []

        def run() -> Record:
            fetched, *records = [need.result() for need in needs]
            bad = next((r for r in records if r.status != "ok"), None)
            if bad:
                return _blocked("measure", case, bad)
            runner = base.get(case.config.runner)
            inputs = keys.measure(case, runner, records[0].key, records[1].key if compare else None)
            request = {
                "case": case,
                "artifact": self._artifact(records[0]),
                "hidden": self._hidden(fetched),
                "baseline": baseline if compare else None,
                "baseline_artifact": self._artifact(records[1]) if compare else None,
                "baseline_bytes": sum(f.size_bytes for f in fetched.files.values()) if compare else None,
                "threads": case.measure.threads or machine.cores(),
            }
            with self._alone():
                return self._perform("measure", case.id, inputs, request)

        barrier = self._graph.all() if self.settings.build else []
        return self._graph.after([*needs, *barrier], run)

    def _alone(self) -> AbstractContextManager[None]:
        """Timings of several runs on one machine wait for each other."""
        return self.store.lock("measure") if self.settings.build else nullcontext()

    def _artifact(self, compressed: Record) -> str:
        return str(self.store.path(compressed.key) / "artifact")

    def _hidden(self, fetched: Any) -> tuple[str, ...]:
        """Everything through which a stage could reach the original: the store holds a copy of it too."""
        hub = os.environ.get("HF_HUB_CACHE") or Path(
            os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"), "hub"
        )
        places = [self.store.root, self.settings.models_dir, fetched.path, fetched.origin]
        return tuple(str(p) for p in [*places, *sorted(Path(hub).glob("models--*"))] if p)


def _not_done(stage: Stage, case: Case, status: Any, reason: str) -> Record:
    return Record(stage, "", case.id, status, {}, now(), 0.0, reason=reason)


def _blocked(stage: Stage, case: Case, by: Record) -> Record:
    """A stage that cannot run because one that it needs has no result."""
    if by.reason == NOT_RUN:
        return _not_done(stage, case, "skipped", NOT_RUN)
    whose = by.stage if by.case == case.id else f"{by.stage} of {by.case}"
    return _not_done(stage, case, "skipped", f"{whose} {by.status}: {by.reason}")
