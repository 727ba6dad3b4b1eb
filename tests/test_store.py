"""The store: atomic publish, races, kills, full disks and flipped bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecard.errors import ScorecardError
from scorecard.spec import Record
from scorecard.store import Store, sha256_tree, stage_key, write_atomic

KEY = "ab" + "0" * 62


def record(key: str = KEY, **changes: object) -> Record:
    fields = {"result": {"n": 1}, **changes}
    return Record("compress", key, "a.b@1-c", "ok", {}, "2026-01-01T00:00:00Z", 1.0, **fields)


def publish(store: Store, text: str = "hello", key: str = KEY) -> Record:
    with store.lock(key), store.partial(key) as folder:
        (folder / "artifact").mkdir()
        (folder / "artifact" / "model").write_text(text)
        return store.publish(folder, record(key))


def test_what_is_published_is_found_again_by_another_process(tmp_path: Path) -> None:
    made = publish(Store(tmp_path))
    again = Store(tmp_path)
    assert again.get(KEY, verify=True) == made
    assert (again.path(KEY) / "artifact" / "model").read_text() == "hello"
    assert list((tmp_path / "partial").iterdir()) == []


def test_an_unpublished_folder_is_never_found(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def crash() -> None:
        with store.partial(KEY) as folder:
            (folder / "model").write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert store.get(KEY) is None
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "remove", "record"])
def test_a_damaged_object_is_dropped_and_can_be_built_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    publish(store)
    model = store.path(KEY) / "artifact" / "model"
    if damage == "flip":
        model.write_text("hellp")
    elif damage == "remove":
        model.unlink()
    else:
        (store.path(KEY) / "record.json").write_text('{"stage": ')
    assert store.get(KEY, verify=True) is None
    assert publish(store).files["artifact/model"]
    assert store.get(KEY, verify=True) is not None
    assert "discarded" in (tmp_path / "events.jsonl").read_text()


def test_a_failure_is_remembered_and_forgotten_when_the_stage_succeeds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fail(_failed())
    assert store.get(KEY) is None
    assert (store.failure(KEY) or record()).reason == "no luck"
    publish(store)
    assert store.failure(KEY) is None


def _failed() -> Record:
    return Record("compress", KEY, "a.b@1-c", "failed", {}, "2026-01-01T00:00:00Z", 1.0, reason="no luck")


def _race(root: str, built: str) -> None:
    store = Store(Path(root))
    with store.lock(KEY):
        if store.get(KEY) is None:
            with store.partial(KEY) as folder:
                time.sleep(0.05)
                (folder / "model").write_text("x" * 1000)
                store.publish(folder, record())
            Path(built, str(os.getpid())).touch()


def test_eight_processes_build_a_stage_once(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(str(tmp_path / "s"), str(built))) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 8
    assert len(list(built.iterdir())) == 1


def test_without_the_lock_the_loser_of_the_rename_keeps_the_winner(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.partial("ab1") as folder:
        (folder / "model").write_text("late")
        publish(store, "early")
        kept = store.publish(folder, record())
    assert (store.path(KEY) / "artifact" / "model").read_text() == "early"
    assert kept.files == (store.get(KEY) or record()).files


def test_the_lock_and_the_leftovers_of_a_killed_builder_are_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")

    def build_forever() -> None:
        store = Store(tmp_path)
        with store.lock(KEY), store.partial(KEY) as folder:
            (folder / "half").touch()
            time.sleep(60)

    builder = context.Process(target=build_forever)
    builder.start()
    while not list(tmp_path.glob(f"partial/{KEY}.*/half")):
        time.sleep(0.01)
    os.kill(builder.pid or 0, signal.SIGKILL)
    builder.join()
    publish(Store(tmp_path))
    assert Store(tmp_path).get(KEY, verify=True) is not None
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_full_disk_is_one_clear_line_and_publishes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        store = Store(root)
        with store.partial(KEY) as folder:
            (folder / "model").write_bytes(b"x" * 40_000)
            (folder / "fill").write_bytes(b"")
            with pytest.raises(OSError, match="No space"), (folder / "fill").open("wb") as file:
                file.write(b"y" * 200_000)
            with pytest.raises(ScorecardError, match="no space left"):
                store.publish(folder, record(result={"n": "z" * 100_000}))
        assert store.get(KEY) is None
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_events_of_several_processes_are_whole_lines(tmp_path: Path) -> None:
    def log(n: int) -> None:
        for i in range(200):
            Store(tmp_path).event("tick", n=n, i=i, text="x" * 200)

    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=log, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {(e["n"], e["i"]) for e in events} == {(n, i) for n in range(4) for i in range(200)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_a_key_depends_on_content_and_not_on_order(inputs: dict[str, object]) -> None:
    backwards = dict(reversed(inputs.items()))
    assert stage_key(inputs) == stage_key(backwards)
    assert stage_key({**inputs, "extra": 1}) != stage_key({**inputs, "extra": 2})


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(sha256_tree(tmp_path)) == ["a.json"]
