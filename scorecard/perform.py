"""One stage of one case: its record found in the store, or made by a worker and published."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from runners import base
from scorecard import environments, locks, machine
from scorecard.errors import RunnerUnavailable
from scorecard.request import OUTCOME, REQUEST, Outcome, Request
from scorecard.spec import Case, Limit, Record, Stage, to_json
from scorecard.store import Store, now, stage_key

NOT_RUN = "not run yet"


class Executor(Protocol):
    def run(self, request: Request) -> Outcome: ...
    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run goes about its work; nothing here changes a result.

    ``build=False`` reports only what the store has; ``rerun`` computes again what it has.
    """

    models_dir: Path
    jobs: int = 1
    threads: int = 1
    offline: bool = False
    build: bool = True
    rerun: bool = False


class Performer:
    """Has stages done by an executor, each key at most once however many ask for it."""

    def __init__(self, store: Store, settings: Settings, executor: Executor) -> None:
        self.store, self.settings, self.executor = store, settings, executor
        self._closed = False

    def close(self) -> None:
        """End the workers; what they leave unfinished is neither published nor remembered as failed."""
        self._closed = True
        self.executor.close()

    def record(
        self, stage: Stage, name: str, inputs: Mapping[str, Any], request: Mapping[str, Any]
    ) -> Record:
        """The record of one stage: found in the store, or made by a worker and published."""
        key = stage_key(inputs)
        found = None if self.settings.rerun else self.store.get(key)
        if found:
            return self._reuse(found, name)
        if not self.settings.build:
            missing = Record(stage, key, name, "skipped", inputs, now(), 0.0, reason=NOT_RUN)
            return self.store.failure(key) or missing
        with self.store.lock(key):
            found = None if self.settings.rerun else self.store.get(key)
            return self._reuse(found, name) if found else self._work(stage, key, name, inputs, request)

    def _reuse(self, record: Record, name: str) -> Record:
        if self.settings.build:
            self.store.event("reused", stage=record.stage, case=name, key=record.key)
        return dataclasses.replace(record, case=name)

    def _work(
        self, stage: Stage, key: str, name: str, inputs: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> Record:
        case: Case | None = fields.get("case")
        try:
            interpreters = self._interpreters(stage, case)
        except RunnerUnavailable as error:
            return Record(stage, key, name, "skipped", inputs, now(), 0.0, reason=str(error))
        settings = {
            **interpreters,
            "evaluation": case.evaluation if case else None,
            "limit": case.limits.get(stage, Limit()) if case else Limit(),
            "threads": self.settings.threads,
            "offline": self.settings.offline,
            "preload": stage in ("evaluate", "measure") or (stage == "compress" and "python" in interpreters),
        }
        begin, started_at = time.monotonic(), now()
        self.store.event("started", stage=stage, case=name, key=key)
        with self.store.partial(key) as folder:
            outcome = self.executor.run(Request(stage, str(folder), **{**settings, **fields}))
            record = Record(
                stage=stage,
                key=key,
                case=name,
                status=outcome.status,
                inputs=to_json(inputs),
                started_at=started_at,
                seconds=time.monotonic() - begin,
                result=outcome.result,
                reason=outcome.reason,
                log_tail=outcome.log_tail,
                machine=machine.describe(),
                packages=inputs.get("packages", {}),
            )
            record = self._keep(folder, record)
        self.store.event(record.status, stage=stage, case=name, key=key, seconds=record.seconds)
        return record

    def _interpreters(self, stage: Stage, case: Case | None) -> dict[str, str]:
        """What the worker runs with: the environment of the case's runner, built when it is not there.

        An audit reads files only. An environment without lm-eval serves its model to a worker that has it.
        Raises RunnerUnavailable when the environment cannot be had.
        """
        name = base.get(case.config.runner).environment if case else base.CORE
        if name == base.CORE or stage == "audit":
            return {}
        begin, built = time.monotonic(), environments.find(name) is None
        python = str(environments.ensure(name, offline=self.settings.offline).python)
        if built:
            self.store.event("environment", name=name, seconds=time.monotonic() - begin)
        served = stage == "evaluate" and not locks.read(name).has_lm_eval
        return {"served_by" if served else "python": python}

    def _keep(self, folder: Path, record: Record) -> Record:
        if record.status != "ok":
            if not self._closed:
                self.store.fail(record)
            return record
        for name in (REQUEST, OUTCOME):
            (folder / name).unlink(missing_ok=True)
        if self.settings.rerun:
            shutil.rmtree(self.store.path(record.key), ignore_errors=True)
        return self.store.publish(folder, record)
