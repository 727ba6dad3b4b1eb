"""The order of stages with real workers and the fake backend: once each, kept, retried, limited, stopped."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_files
import psutil
import pytest

from scorecard import keys, load
from scorecard.perform import NOT_RUN, Settings
from scorecard.spec import Case, Limit, Record
from scorecard.stages import Bench
from scorecard.store import Store, stage_key


class Runs:
    """Benches over one folder, closed at the end of a test."""

    def __init__(self, folder: Path, configs: dict[str, dict[str, Any]], **model: Any) -> None:
        self.folder = folder
        self.suite = load.load(bench_files.write_suite(folder, configs, **model))
        self.cases = {case.config.name: case for case in self.suite.cases}
        self.benches: list[Bench] = []

    def bench(self, **settings: Any) -> Bench:
        made = Settings(models_dir=self.folder / "models", offline=True, **{"jobs": 2, **settings})
        self.benches.append(Bench(Store(self.folder / "store"), self.suite.baseline_of, made))
        return self.benches[-1]

    def record(self, name: str, stage: Any = "compress", **settings: Any) -> Record:
        return self.bench(**settings).record(self.cases[name], stage)

    def events(self, what: str) -> list[tuple[str, str]]:
        lines = (self.folder / "store" / "events.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [(e["stage"], e["case"].rpartition("-")[2]) for e in found if e["event"] == what]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    made: list[Runs] = []

    def make(configs: dict[str, dict[str, Any]], **model: Any) -> Runs:
        made.append(Runs(tmp_path, configs, **model))
        return made[-1]

    yield make
    for run in made:
        for bench in run.benches:
            bench.close()


def test_a_stage_runs_once_and_is_found_again(runs: Any) -> None:
    run = runs({"w4": {"bits": 4}, "w2": {"bits": 2}})
    first = run.bench()
    first.submit([(case, stage) for case in run.cases.values() for stage in ("compress", "audit")])
    made = {name: first.record(case, "audit") for name, case in run.cases.items()}
    assert {record.status for record in made.values()} == {"ok"}
    assert len(run.events("started")) == 6
    again = run.bench()
    assert {n: again.record(c, "audit").key for n, c in run.cases.items()} == {
        n: r.key for n, r in made.items()
    }
    assert len(run.events("started")) == 6
    sizes = {name: record.result["ledger"]["size_bytes"] for name, record in made.items()}
    assert sizes["w2"] < sizes["w4"] < sizes["baseline"]


def test_the_artifact_is_what_was_weighed(runs: Any) -> None:
    run = runs({"w4": {"bits": 4}})
    bench = run.bench()
    compressed, audited = (bench.record(run.cases["w4"], stage) for stage in ("compress", "audit"))
    artifact = bench.store.path(compressed.key) / "artifact"
    weighed = {f"artifact/{f['path']}": f["sha256"] for f in audited.result["ledger"]["files"]}
    assert weighed == {n: sha for n, sha in compressed.files.items() if n.startswith("artifact/")}
    assert sum(p.stat().st_size for p in artifact.rglob("*")) == audited.result["ledger"]["size_bytes"]


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("compress", "was told to fail in compress"),
        ("crash", "RuntimeError: fake: was told to crash"),
        ("kill", "the worker died (killed by signal 9)"),
    ],
)
def test_a_failure_is_a_record_and_the_next_run_tries_again(runs: Any, fail: str, reason: str) -> None:
    run = runs({"bad": {"fail": fail}, "good": {}})
    record = run.record("bad")
    assert record.status == "failed"
    assert reason in (record.reason or "")
    assert run.record("good").status == "ok"
    blocked = run.record("bad", "audit")
    assert blocked.status == "skipped"
    assert (blocked.reason or "").startswith("compress failed: ")
    assert run.events("started").count(("compress", "bad")) == 2
    assert run.record("bad", build=False).reason == record.reason


def test_a_crash_leaves_its_last_lines(runs: Any) -> None:
    log = runs({"bad": {"fail": "crash"}}).record("bad").log_tail
    assert log[0].startswith("Traceback")
    assert log[-1] == "RuntimeError: fake: was told to crash"


@pytest.mark.parametrize(
    ("fail", "limit", "reason"),
    [
        ("hang", Limit(time_seconds=1.0), "passed the time limit of 1 s"),
        ("memory", Limit(memory_gib=0.3), "passed the memory limit of 0.3 GiB"),
    ],
)
def test_limits_end_a_stage(runs: Any, fail: str, limit: Limit, reason: str) -> None:
    run = runs({"bad": {"fail": fail}})
    case = dataclasses.replace(run.cases["bad"], limits={"compress": limit})
    record = run.bench().record(case, "compress")
    assert (record.status, (record.reason or "")[: len(reason)]) == ("failed", reason)


def test_without_building_nothing_is_computed(runs: Any) -> None:
    run = runs({"w4": {}})
    for stage in ("compress", "audit", "evaluate", "measure"):
        assert run.record("w4", stage, build=False).reason == NOT_RUN
    assert not (run.folder / "store" / "events.jsonl").exists()


def test_a_rerun_computes_again_and_replaces(runs: Any) -> None:
    run = runs({"w4": {}})
    first, second = run.record("w4"), run.record("w4", rerun=True)
    assert first.key == second.key
    assert first.started_at < second.started_at
    assert run.record("w4").started_at == second.started_at


def test_closing_ends_what_runs_and_publishes_nothing(runs: Any) -> None:
    run = runs({"bad": {"fail": "hang"}, "other": {"fail": "hang", "bits": 8}, "queued": {}})
    bench = run.bench()
    bench.submit([(case, "compress") for name, case in run.cases.items() if name != "baseline"])
    marker = str(run.folder / "store" / "partial")
    while len(working_in(marker)) < 4:
        time.sleep(0.02)
    closing = threading.Thread(target=bench.close)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert working_in(marker) == []
    assert ("compress", "queued") not in run.events("started")
    assert list((run.folder / "store" / "partial").iterdir()) == []
    assert list((run.folder / "store" / "failures").iterdir()) == []


def working_in(marker: str) -> list[str]:
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if marker in line]


def test_two_runs_at_once_share_the_work(runs: Any) -> None:
    run = runs({"w4": {"seconds": 0.5}})
    benches = [run.bench(), run.bench()]
    futures = [bench.future(run.cases["w4"], "compress") for bench in benches]
    assert len({future.result().started_at for future in futures}) == 1
    assert run.events("started") == [("compress", "w4")]
    assert run.events("reused") == [("compress", "w4")]


def test_a_missing_model_is_a_failed_case_with_one_clear_line(runs: Any) -> None:
    record = runs({"w4": {}}, source="path:nowhere").record("w4")
    assert record.status == "failed"
    assert "nowhere" in (record.reason or "")
    assert "\n" not in (record.reason or "")


def change(case: Case, **options: Any) -> Case:
    return dataclasses.replace(case, config=dataclasses.replace(case.config, options=options))


def test_a_key_changes_with_whatever_changes_the_result(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runners.fake import Runner

    case = runs({"w4": {"bits": 4}}).cases["w4"]

    def key(case: Case, model: str = "m") -> str:
        return stage_key(keys.compress(case, Runner(case, None, Path()), model))

    same = {key(case), key(change(case, bits=4)), key(change(case, bits=4, group_size=128))}
    assert len(same) == 1, "defaults written out are the same recipe"
    different = {key(case), key(change(case, bits=3)), key(case, "other model")}
    monkeypatch.setattr(Runner, "version", 2)
    different.add(key(case))
    monkeypatch.setattr(Runner, "calibrates", True)
    different.add(key(dataclasses.replace(case, calibration=_calibration(case, "one"))))
    different.add(key(dataclasses.replace(case, calibration=_calibration(case, "two"))))
    assert len(different) == 6


def test_the_key_of_a_score_changes_with_settings_data_and_reference(runs: Any, tmp_path: Path) -> None:
    from runners.fake import Runner

    case = runs({"w4": {}}).cases["w4"]
    tasks = {"tasks": {"t": {"version": 1, "documents_sha256": "a"}}}
    text = tmp_path / "heldout.txt"

    def key(parent: str = "p", tasks: Any = tasks, reference: str | None = "r", **settings: Any) -> str:
        spec = dataclasses.replace(case.evaluation, **settings)
        changed = dataclasses.replace(case, evaluation=spec)
        return stage_key(keys.evaluate(changed, Runner, parent, tasks, reference))

    text.write_text("one")
    made = [key(), key(parent="q"), key(reference=None), key(limit=7), key(num_fewshot=3), key(seed=1)]
    made += [key(batch_size=1), key(dtype="float32"), key(apply_chat_template=True), key(heldout=str(text))]
    made.append(key(tasks={"tasks": {"t": {"version": 1, "documents_sha256": "b"}}}))
    text.write_text("two")
    made.append(key(heldout=str(text)))
    assert len(set(made)) == len(made)
    assert key(tasks=tasks) == key(), "equal inputs have equal keys"


def _calibration(case: Case, text: str) -> Any:
    from scorecard.spec import CalibrationSpec

    path = Path(case.model.source.partition(":")[2]).with_name(f"{text}.txt")
    path.write_text(text)
    return CalibrationSpec(data=str(path))
