"""The evaluate stage: tasks against lm-eval run by hand, metrics, identities, errors."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_evaluation import load_lm, write_model, write_tasks

from scorecard import metrics
from scorecard.errors import DataUnavailable, ScorecardError, SpecError
from scorecard.evaluate import evaluate, mean_accuracy, resolve
from scorecard.spec import EvalSpec, from_json

pytestmark = pytest.mark.backend

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_lm(write_model(tmp_path_factory.mktemp("model")))


def spec_of(folder: Path, *tasks: str, **settings: Any) -> EvalSpec:
    return EvalSpec(tasks=tasks, task_paths=(str(folder),), **settings)


def scored(lm: Any, spec: EvalSpec, out: Path) -> dict[str, Any]:
    return evaluate(lm, spec, reference=None, write_reference=None, documents=out / "documents.parquet")


def by_hand(lm: Any, spec: EvalSpec, folder: Path) -> dict[str, Any]:
    """The same tasks through lm-eval's own front door."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(spec.tasks),
        num_fewshot=spec.num_fewshot,
        limit=spec.limit,
        bootstrap_iters=spec.bootstrap_iters,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        **dict.fromkeys(seeds, spec.seed),
    )
    assert found is not None
    return dict(found["results"])


@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 3}, {"limit": 5}, {"bootstrap_iters": 0}])
def test_equals_lm_eval_by_hand(lm: Any, folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    spec = spec_of(folder, "t_choice", "t_pairs", "t_generate", "t_rolling", **settings)
    found, wanted = scored(lm, spec, tmp_path)["tasks"], by_hand(lm, spec, folder)
    for task, score in found.items():
        for name, metric in score["metrics"].items():
            key = name if "," in name else f"{name},none"
            assert metric["value"] == wanted[task][key], (task, name)
            stderr = wanted[task][key.replace(",", "_stderr,")]
            assert stderr == "N/A" or metric["stderr"] == stderr
            assert isinstance(metric["stderr"], float), (task, name)


def test_record_and_documents(lm: Any, folder: Path, tmp_path: Path) -> None:
    import pandas as pd

    result = scored(lm, spec_of(folder, "t_group", "t_generate", "t_rolling"), tmp_path)
    tasks = result["tasks"]
    assert list(tasks) == ["t_choice", "t_pairs", "t_generate", "t_rolling"]
    assert [t["metric"] for t in tasks.values()] == ["acc", "acc", "exact_match,plain", "word_perplexity"]
    assert [t["accuracy"] for t in tasks.values()] == [True, True, True, False]
    assert [t["chance"] for t in tasks.values()] == [0.25, 0.5, 0.0, None]
    assert [t["num_fewshot"] for t in tasks.values()] == [2, 0, 0, 0]
    assert [t["higher_is_better"] for t in tasks.values()] == [True, True, True, False]
    assert {t["n"] for t in tasks.values()} == {12}
    assert {t["version"] for t in tasks.values()} == {2}
    assert set(tasks["t_generate"]["metrics"]) == {"exact_match,plain", "exact_match,first-word"}
    assert result["heldout"] is None
    assert result["heldout_reason"] == "no held-out text is named"
    assert json.loads(json.dumps(result, allow_nan=False)) == result

    frame = pd.read_parquet(tmp_path / "documents.parquet")
    assert list(frame.columns) == ["task", "doc", "metric", "value", "cluster"]
    assert (frame.cluster <= frame.doc).all()
    assert result["conditions"]["adds_bos"] is True
    assert len(result["conditions"]["tokenizer_sha256"]) == 64
    assert result["conditions"]["chat_template_sha256"] is None
    means = frame.groupby(["task", "metric"]).value.mean()
    for name in ("t_choice", "t_pairs", "t_generate"):
        for metric, numbers in tasks[name]["metrics"].items():
            assert means[name, metric] == pytest.approx(numbers["value"])
    assert set(frame[frame.task == "t_rolling"].metric) == {"word_perplexity", "bits_per_byte"}
    assert frame.groupby(["task", "metric"]).doc.apply(lambda d: sorted(d) == list(range(12))).all()


def test_a_single_document_has_no_stderr(lm: Any, folder: Path, tmp_path: Path) -> None:
    result = scored(lm, spec_of(folder, "t_pairs", "t_rolling", limit=1), tmp_path)
    assert {t["n"] for t in result["tasks"].values()} == {1}
    assert all(m["stderr"] is None for t in result["tasks"].values() for m in t["metrics"].values())
    assert result["mean_accuracy"] in (0.0, 1.0)
    assert result["mean_accuracy_stderr"] is None


def test_names_groups_tags_patterns_and_files(folder: Path) -> None:
    both = {"t_choice", "t_pairs"}
    for name in ("t_group", "t_tag", str(folder / "group.yaml")):
        assert set(resolve(spec_of(folder, name), offline=False)["tasks"]) == both
    alone = EvalSpec(tasks=(str(folder / "rolling.yaml"),))
    assert set(resolve(alone, offline=False)["tasks"]) == {"t_rolling"}
    assert resolve(EvalSpec(tasks=()), offline=False)["tasks"] == {}


def test_resolve_describes_the_tasks(folder: Path) -> None:
    found = resolve(spec_of(folder, "t_choice", "t_rolling", limit=5), offline=False)
    choice = found["tasks"]["t_choice"]
    assert choice["documents"] == 12
    assert choice["output_type"] == "multiple_choice"
    assert (choice["version"], choice["chance"]) == (2, 0.25)
    assert found["tasks"]["t_rolling"]["chance"] is None
    assert found["heldout_sha256"] is None


def test_identity_is_the_same_in_another_process_folder_and_place(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    names = ("t_choice", "t_pairs", "t_generate", "t_rolling")
    code = (
        "import json, sys; from scorecard.evaluate import resolve; from scorecard.spec import EvalSpec;"
        "spec = EvalSpec(tasks=tuple(sys.argv[2:]), task_paths=(sys.argv[1],));"
        "json.dump(resolve(spec, offline=True), open('found.json', 'w'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "5"}
    subprocess.run(
        [sys.executable, "-c", code, "elsewhere", *names], cwd=tmp_path, env=environment, check=True
    )
    assert copy.is_dir()
    assert json.loads((tmp_path / "found.json").read_text()) == resolve(
        spec_of(folder, *names), offline=False
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("pairs.yaml", "{{choices[0]}}", "{{choices[1]}}", "config_sha256"),
        ("data.py", "upper()", "lower()", "config_sha256"),
        ("test.jsonl", "cat", "tree", "documents_sha256"),
    ],
)
def test_identity_changes_with_what_it_stands_for(
    tmp_path: Path, file: str, old: str, new: str, changed: str
) -> None:
    before = write_tasks(tmp_path / "before")
    after = write_tasks(tmp_path / "after")
    text = (after / file).read_text()
    assert old in text
    (after / file).write_text(text.replace(old, new))
    one, other = (resolve(spec_of(f, "t_pairs"), offline=False)["tasks"]["t_pairs"] for f in (before, after))
    assert {k for k in one if one[k] != other[k]} == {changed}


def test_examples_count_only_where_they_are_used(tmp_path: Path) -> None:
    before, after = write_tasks(tmp_path / "before"), write_tasks(tmp_path / "after")
    (after / "examples.jsonl").write_text((after / "examples.jsonl").read_text().replace("cat", "tree"))
    names = ("t_choice", "t_pairs")
    one, other = (resolve(spec_of(f, *names), offline=False)["tasks"] for f in (before, after))
    assert one["t_choice"]["documents_sha256"] != other["t_choice"]["documents_sha256"]
    assert one["t_pairs"]["documents_sha256"] == other["t_pairs"]["documents_sha256"]


def edited(folder: Path, out: Path, name: str, **lines: str) -> Path:
    """A copy of one task file with top-level keys replaced."""
    kept = [line for line in (folder / name).read_text().splitlines() if line.split(":")[0] not in lines]
    out.mkdir()
    (out / name).write_text("\n".join([*kept, *(f"{k}: {v}" for k, v in lines.items())]) + "\n")
    for data in ("data.py", "test.jsonl", "examples.jsonl"):
        shutil.copy(folder / data, out)
    return out


def test_chance(folder: Path, tmp_path: Path) -> None:
    def chance_of(place: str, **lines: str) -> Any:
        made = edited(folder, tmp_path / place, "choice.yaml", **lines)
        return resolve(spec_of(made, "t_choice"), offline=False)["tasks"]["t_choice"]["chance"]

    assert chance_of("declared", metadata="{version: 1, chance: 0.125}") == 0.125
    assert chance_of("own-scores", process_results="!function data.shout") is None
    measured = chance_of("own-choice", process_results="!function data.first_or_last")
    assert measured == pytest.approx(0.5, abs=0.1)
    assert chance_of("own-choice-again", process_results="!function data.first_or_last") == measured
    assert chance_of("several-right", doc_to_target="'[0, 2]'") == 0.5
    assert chance_of("whole-text", metric_list="[{metric: exact_match}]") == 0.0


ERRORS = {
    "missing data set": (
        {"custom_dataset": "null", "dataset_path": "no-such/data-set", "dataset_kwargs": "null"},
        1,
    ),
    "missing file": ({"dataset_kwargs": "{files: {test: absent.jsonl}}"}, 1),
    "unsafe": ({"unsafe_code": "true"}, 0),
    "reserved": ({"task": "heldout"}, 0),
    "no module": ({"doc_to_text": "!function no_such_module.f"}, 0),
}


@pytest.mark.parametrize(("lines", "is_data"), ERRORS.values(), ids=ERRORS.keys())
def test_tasks_that_cannot_be_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: dict[str, str], is_data: int
) -> None:
    import datasets
    from huggingface_hub import constants

    for module in (datasets.config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)  # put back what resolve sets
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    made = edited(folder, tmp_path / "made", "choice.yaml", **lines)
    with pytest.raises(DataUnavailable if is_data else SpecError) as raised:
        resolve(spec_of(made, lines.get("task", "t_choice")), offline=True)
    message = str(raised.value)
    assert "\n" not in message
    assert ";" in message
    if "dataset_path" in lines:
        assert "data set 'no-such/data-set' is not in the cache and the hub is off" in message


def test_wrong_files_and_folders(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    for text in ("- a list\n", "{unclosed", "no_name: 1\n"):
        bad.write_text(text)
        with pytest.raises(SpecError, match=r"bad\.yaml: "):
            resolve(EvalSpec(tasks=(str(bad),)), offline=False)
    with pytest.raises(SpecError, match="'nowhere' is no folder"):
        resolve(EvalSpec(tasks=("x",), task_paths=("nowhere",)), offline=False)


def test_a_task_named_twice(folder: Path) -> None:
    with pytest.raises(SpecError, match="name it once"):
        resolve(spec_of(folder, "t_choice", "t_group"), offline=False)
    twice = spec_of(folder, "t_pairs", "t_pairs")
    assert list(resolve(twice, offline=False)["tasks"]) == ["t_pairs"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["acc_norm", "acc"], "acc"),
        (["f1", "acc_norm"], "acc_norm"),
        (["bleu", "exact_match,b", "exact_match,a"], "exact_match,b"),
        (["word_perplexity", "bits_per_byte"], "word_perplexity"),
    ],
)
def test_primary_metric(names: list[str], wanted: str) -> None:
    assert metrics.primary_metric(names) == wanted


def test_is_accuracy() -> None:
    assert all(
        metrics.is_accuracy(m, True) for m in ("acc", "acc_norm", "exact_match,x", "pass@1", "mc2_acc")
    )
    assert not any(metrics.is_accuracy(m, True) for m in ("f1", "bleu", "perplexity", "likelihood"))
    assert not metrics.is_accuracy("acc", False)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30))
def test_ratio_with_equal_weights_is_the_mean(values: list[float]) -> None:
    from lm_eval.api.metrics import mean, mean_stderr

    value, error = metrics.ratio(values, [1.0] * len(values))
    assert value == pytest.approx(mean(values), abs=1e-12)
    assert error == pytest.approx(mean_stderr(values), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=30), st.floats(0.1, 10))
def test_ratio_is_unit_free(pairs: list[tuple[float, int]], scale: float) -> None:
    numerators, weights = [p[0] for p in pairs], [float(p[1]) for p in pairs]
    value, error = metrics.ratio(numerators, weights)
    scaled, scaled_error = metrics.ratio(numerators, [w * scale for w in weights])
    assert scaled * scale == pytest.approx(value)
    assert (error is None) == (len(pairs) == 1)
    if error is not None and scaled_error is not None:
        assert scaled_error * scale == pytest.approx(error, abs=1e-9)


def test_mean_accuracy_weighs_tasks_alike() -> None:
    def score(value: float, stderr: float | None, accuracy: bool = True) -> dict[str, Any]:
        return {"value": value, "stderr": stderr, "accuracy": accuracy}

    found = mean_accuracy(
        {"a": score(0.5, 0.03), "b": score(0.7, 0.04), "c": score(12.0, 1.0, accuracy=False)}
    )
    assert found["mean_accuracy"] == pytest.approx(0.6)
    assert found["mean_accuracy_stderr"] == pytest.approx(0.025)
    assert mean_accuracy({"a": score(0.5, None)})["mean_accuracy_stderr"] is None
    assert mean_accuracy({}) == {"mean_accuracy": None, "mean_accuracy_stderr": None}


@pytest.mark.backend
def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown task 'hellaswagg'; did you mean 'hellaswag'\?"):
        resolve(EvalSpec(tasks=("hellaswagg",)), offline=True)


@pytest.mark.backend
def test_embedded_tasks_equal_lm_eval_on_the_command_line(tmp_path: Path) -> None:
    model = REPOSITORY / "embedded" / "tiny-llama"
    if not (model / "config.json").is_file():
        pytest.skip("the embedded model is not trained yet")
    tasks, folder = "tiny_pairs,tiny_facts,tiny_generate,tiny_text", str(REPOSITORY / "embedded" / "tasks")
    settings = ["--tasks", tasks, "--include_path", folder, "--limit", "20", "--seed", "1234"]
    wanted = command_line(tmp_path, model, {}, *settings)
    spec = {"tasks": tasks.split(","), "task_paths": ["embedded:tasks"], "limit": 20}
    compare_with_command_line(in_fresh_process(tmp_path, model, spec, {}), wanted)


@pytest.mark.backend
@pytest.mark.skipif(not SHARED.is_dir(), reason="development data are not here")
def test_standard_tasks_from_a_cache_equal_lm_eval_on_the_command_line(tmp_path: Path) -> None:
    home = tmp_path / "huggingface"
    maker = [
        sys.executable,
        str(SHARED / "tools" / "make_cache.py"),
        str(SHARED / "hub"),
        str(home / "datasets"),
    ]
    subprocess.run([*maker, "nyu-mll/blimp"], check=True, capture_output=True)
    hub = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    model, task = SHARED / "models" / "stories260k-pad", SHARED / "blimp14.yaml"
    (tmp_path / "group").mkdir()
    shutil.copy(task, tmp_path / "group")
    settings = [
        "--tasks",
        "blimp14",
        "--include_path",
        str(tmp_path / "group"),
        "--limit",
        "50",
        "--seed",
        "1234",
    ]
    wanted = command_line(tmp_path, model, hub, *settings)
    found = in_fresh_process(tmp_path, model, {"tasks": [str(task)], "limit": 50}, hub)
    assert found["mean_accuracy"] == pytest.approx(wanted["blimp14"]["acc,none"], abs=1e-12)
    compare_with_command_line(found, wanted)


def command_line(folder: Path, model: Path, environment: dict[str, str], *settings: str) -> dict[str, Any]:
    """Results of ``lm_eval run`` in a process of its own."""
    out, arguments = folder / "by-hand", f"pretrained={model},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments]
    command += ["--device", "cpu", "--batch_size", "16", "--output_path", str(out), *settings]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True)
    (file,) = out.rglob("results_*.json")
    return dict(json.loads(file.read_text())["results"])


def in_fresh_process(
    folder: Path, model: Path, spec: dict[str, Any], environment: dict[str, str]
) -> dict[str, Any]:
    """Results of ``evaluate`` in a process of its own, started in another folder."""
    asked = {"model": str(model), "spec": spec, "out": str(folder)}
    env = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, __file__, json.dumps(asked)]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return dict(json.loads((folder / "result.json").read_text()))


def compare_with_command_line(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["tasks"]
    for task, score in found["tasks"].items():
        for name, metric in score["metrics"].items():
            key = name if "," in name else f"{name},none"
            assert metric["value"] == pytest.approx(wanted[task][key], abs=1e-12), (task, name)


def main() -> None:
    asked = json.loads(sys.argv[1])
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=asked["model"], device="cpu", dtype="float32", batch_size=16)
    spec = from_json(EvalSpec, {**asked["spec"], "tasks": tuple(asked["spec"]["tasks"])})
    result = scored(lm, spec, Path(asked["out"]))
    assert math.isfinite(result["seconds"])
    (Path(asked["out"]) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except ScorecardError as error:
        sys.exit(str(error))
