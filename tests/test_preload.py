"""Workers forked from a preloaded process: the same results, failures and limits as of fresh ones."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_files
import psutil
import pytest

from scorecard import load, preload
from scorecard.executor import ProcessExecutor
from scorecard.perform import Settings
from scorecard.request import Outcome, Request
from scorecard.spec import Case, Limit, Record
from scorecard.stages import Bench
from scorecard.store import Store

pytestmark = pytest.mark.backend


class Always(ProcessExecutor):
    """Forks every worker, and says whether it did."""

    def __init__(self) -> None:
        super().__init__()
        self.forked: list[bool] = []

    def run(self, request: Request) -> Outcome:
        return super().run(dataclasses.replace(request, preload=True))

    def _forked(self, folder: Path, request: Request) -> int | None:
        code = super()._forked(folder, request)
        self.forked.append(code is not None)
        return code

    def parents(self) -> list[int]:
        return [p._process.pid for p in self._preloaded.values()]


TORCH = """
class cuda:
    is_available = is_initialized = staticmethod(lambda: False)
"""
CONFIGS: dict[str, dict[str, Any]] = {
    "w4": {},
    "w2": {"bits": 2},
    "crash": {"fail": "crash"},
    "kill": {"fail": "kill"},
    "hang": {"fail": "hang"},
    "slow": {"seconds": 30.0},
}


class Place:
    def __init__(self, folder: Path, models_yaml: str | None = None) -> None:
        self.folder, self.executor = folder, Always()
        path = folder / "models.yaml"
        if models_yaml:
            path.write_text(models_yaml)
        self.suite = load.load(path if models_yaml else bench_files.write_suite(folder, CONFIGS))
        self.cases = {case.config.name: case for case in self.suite.cases}
        self.bench = self.another("store", self.executor)

    def another(self, store: str, executor: ProcessExecutor) -> Bench:
        settings = Settings(models_dir=self.folder / "models", jobs=2, offline=True)
        return Bench(Store(self.folder / store), self.suite.baseline_of, settings, executor)

    def record(self, name: str, stage: Any = "compress") -> Record:
        return self.bench.record(self.cases[name], stage)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Its preloaded process finds empty packages to import: what is tested here is how it forks and ends."""
    for name in preload.MODULES:
        path = tmp_path.joinpath("packages", *name.split("."), "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.parents[: name.count(".") + 1]:
            (folder / "__init__.py").touch()
    (tmp_path / "packages" / "torch" / "__init__.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    made = Place(tmp_path)
    yield made
    made.bench.close()


def limited(case: Case, limit: Limit) -> Case:
    return dataclasses.replace(case, limits={"compress": limit})


def test_a_forked_worker_ends_as_a_fresh_one_does(place: Place) -> None:
    assert place.record("w4").status == "ok"
    crashed = place.record("crash")
    assert crashed.log_tail[0].startswith("Traceback")
    assert crashed.reason == "RuntimeError: fake: was told to crash"
    assert place.record("kill").reason == "the worker died (killed by signal 9)"
    hung = place.bench.record(limited(place.cases["hang"], Limit(time_seconds=1.0)), "compress")
    assert (hung.reason or "").startswith("passed the time limit of 1 s")
    assert place.executor.forked == [True] * 4
    assert len(place.executor.parents()) == 1


REAL = """
models:
  - {set: embedded, name: tiny-llama, version: 1, source: "embedded:tiny-llama", tasks: [tiny_pairs],
     configs: [baseline, w4], evaluation: {dtype: float32, limit: 8, heldout: "embedded:heldout",
                                         heldout_documents: 2}}
configs:
  baseline: {runner: baseline}
  w4: {runner: rtn, bits: 4, group_size: 128}
"""


def test_both_ways_give_the_same_records(tmp_path: Path) -> None:
    place = Place(tmp_path, REAL)
    fresh = place.another("fresh", ProcessExecutor(preload=False))
    try:
        for stage in ("compress", "evaluate"):
            one, other = place.record("w4", stage), fresh.record(place.cases["w4"], stage)
            assert (one.key, one.status) == (other.key, "ok"), (one.reason, other.reason)
            measured = {"seconds", "peak_host_memory_bytes"}
            assert kept(one.result, measured) == kept(other.result, measured)
            assert kept(one.files, {"worker.log"}) == kept(other.files, {"worker.log"})
    finally:
        fresh.close()
        place.bench.close()
    assert place.executor.forked
    assert all(place.executor.forked)


def kept(result: Any, left_out: set[str]) -> Any:
    if not isinstance(result, Mapping):
        return result
    return {name: kept(value, left_out) for name, value in result.items() if name not in left_out}


def test_closing_ends_the_workers_and_what_they_were_forked_from(place: Place) -> None:
    place.record("w4")
    parents = place.executor.parents()
    place.bench.submit([(place.cases["slow"], "compress"), (place.cases["hang"], "compress")])
    while len(family := below(parents)) < 4:  # two workers, each with the child that it watches
        time.sleep(0.02)
    closing = threading.Thread(target=place.bench.close)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert not [pid for pid in [*parents, *family] if running(pid)]
    assert list((place.folder / "store" / "failures").iterdir()) == []


def below(parents: list[int]) -> list[int]:
    return [child.pid for pid in parents for child in psutil.Process(pid).children(recursive=True)]


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_preloaded_process_that_dies_takes_its_work_along_and_no_more(place: Place) -> None:
    place.record("w4")
    (parent,) = place.executor.parents()
    future = place.bench.future(place.cases["slow"], "compress")
    while not (family := below([parent])):
        time.sleep(0.02)
    os.kill(parent, signal.SIGKILL)
    assert future.result(timeout=20).status == "failed"
    deadline = time.monotonic() + 20
    while any(map(running, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, family))
    assert place.record("w2").status == "ok"
    assert place.executor.forked[-1] is False


def test_a_process_that_has_touched_the_gpu_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preload.unsafe() is None
    cuda = SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert preload.unsafe() == "an import has initialised CUDA"
