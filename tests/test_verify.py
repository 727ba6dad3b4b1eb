"""A zip with true claims holds, and each false claim in a manifest is caught with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_frozen

from scorecard.__main__ import main
from scorecard.machine import ROOT
from scorecard.verification import verify
from scorecard.verified import Report, VerifyOptions

pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("box")]

PAGE = (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen folder with true claims."""
    folder = tmp_path_factory.mktemp("frozen")
    original = small_frozen.write_original(folder / "original")
    return small_frozen.write_frozen(folder / "user", original)


def run(folder: Path, tmp_path: Path, **options: Any) -> Report:
    archive = small_frozen.pack(folder, tmp_path / "submission.zip")
    return verify(archive, VerifyOptions(python=Path(sys.executable), **options))


def lines(report: Report) -> dict[str, str]:
    return {verdict.claim: verdict.line for verdict in report.verdicts}


def test_true_claims_hold(honest: Path, tmp_path: Path) -> None:
    report = run(honest, tmp_path, original=honest.parent / "original")
    told = lines(report)
    assert report.exit_code == 0, told
    assert list(told) == [
        *("files", "size", "packages", "original", "tasks"),
        *("task tiny_facts", "task tiny_pairs", "accuracy", "score"),
    ]
    assert told["size"] == "size ✓ 13 bytes"
    assert told["packages"] == "packages ✓ 1 pins"
    assert told["task tiny_facts"].endswith("each of 30 documents as claimed")
    manifest = json.loads((honest / "manifest.json").read_text())
    assert report.measured["mean_accuracy"] == manifest["claims"]["mean_accuracy"]
    assert "only the first 30 documents of each task count" in report.notes
    assert report.settings["limit"] == 30


def more_accuracy(folder: Path, manifest: dict[str, Any]) -> None:
    """One point, in the mean and in the score alone."""
    claim = manifest["claims"]
    claim["mean_accuracy"] += 0.01
    claim["score"] = claim["mean_accuracy"] / (claim["size_bytes"] / small_frozen.GIB)


def more_of_a_task(folder: Path, manifest: dict[str, Any]) -> None:
    claim = manifest["claims"]
    claim["tasks"]["tiny_facts"]["value"] += 0.02
    more_accuracy(folder, manifest)


def a_byte_less(folder: Path, manifest: dict[str, Any]) -> None:
    claim = manifest["claims"]
    claim["size_bytes"] -= 1
    claim["score"] = claim["mean_accuracy"] / (claim["size_bytes"] / small_frozen.GIB)


def other_documents(folder: Path, manifest: dict[str, Any]) -> None:
    """One answer of a task is turned round, and all that follows from it."""
    import pandas as pd

    frame = pd.read_parquet(folder / "documents.parquet")
    rows = frame.index[(frame["task"] == "tiny_facts") & (frame["metric"] == "acc") & (frame["value"] == 0)]
    frame.loc[rows[0], "value"] = 1.0
    frame.to_parquet(folder / "documents.parquet")
    claim, task = manifest["claims"], manifest["claims"]["tasks"]["tiny_facts"]
    task["value"] += 1 / 30
    claim["mean_accuracy"] += 1 / 60
    claim["score"] = claim["mean_accuracy"] / (claim["size_bytes"] / small_frozen.GIB)


def no_documents(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "documents.parquet").write_bytes(b"PAR1 and no more")


def another_package(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["packages"] = {"packaging": "24.0", "torch": "2.13.0+cpu"}


def another_lm_eval(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["lm_eval"] = "0.3.0"


def other_settings(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["claims"]["tasks"]["tiny_facts"]["config_sha256"] = "1" * 64


def other_data(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["claims"]["tasks"]["tiny_facts"]["documents_sha256"] = "1" * 64


def another_original(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["original"]["original.json"]["sha256"] = "1" * 64


def less_code(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["sums"] = {"code_bytes": 1}


def a_task_more(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["claims"]["tasks"]["tiny_text"] = manifest["claims"]["tasks"]["tiny_facts"]


CAUGHT: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str, str]] = {
    "a point of accuracy": (more_accuracy, "accuracy ✗ claimed", "; its own tasks give"),
    "points of one task": (more_of_a_task, "task tiny_facts ✗ claimed", "its own documents give"),
    "a byte": (a_byte_less, "size ✗ claimed 12 bytes, measured 13", ""),
    "other results of documents": (other_documents, "task tiny_facts ✗ claimed", "1 of 30 documents differ"),
    "no table of documents": (no_documents, "accuracy ✗ not measured: user.py: Arrow", ""),
    "another package version": (
        another_package,
        "packages ✗ packaging: claimed 24.0, pinned 25.0",
        "",
    ),
    "other settings of a task": (
        other_settings,
        "tasks ✗ task tiny_facts: settings: claimed 1111111111111111…",
        "",
    ),
    "another original": (another_original, "original ✗ original.json is not the one that it names", ""),
    "less code": (less_code, "sums ✗ code_bytes: claimed 1, its files have", ""),
    "a task more": (a_task_more, "task tiny_text ✗ claimed, and not among its tasks", ""),
}
OPEN: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "another lm-eval": (another_lm_eval, "tasks ? lm-eval: claimed 0.3.0, here"),
    "other documents of a task": (
        other_data,
        "accuracy ? not measured: task tiny_facts: other documents than those of the claim",
    ),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_false_claim_is_caught(name: str, honest: Path, tmp_path: Path) -> None:
    change, begins, holds = CAUGHT[name]
    folder = small_frozen.changed(honest, tmp_path / "user", change)
    report = run(folder, tmp_path, original=honest.parent / "original")
    told = [verdict.line for verdict in report.verdicts if verdict.holds is False]
    assert report.exit_code == 1
    assert any(line.startswith(begins) and holds in line for line in told), told


@pytest.mark.parametrize("name", OPEN)
def test_what_cannot_be_decided_says_so(name: str, honest: Path, tmp_path: Path) -> None:
    change, begins = OPEN[name]
    report = run(small_frozen.changed(honest, tmp_path / "user", change), tmp_path)
    told = [verdict.line for verdict in report.verdicts if verdict.holds is None]
    assert report.exit_code == 6
    assert any(line.startswith(begins) for line in told), told


def test_a_file_with_another_hash_is_not_run(honest: Path, tmp_path: Path) -> None:
    folder = small_frozen.changed(honest, tmp_path / "user", lambda folder, manifest: None)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["artifact"]["weights.json"]["sha256"] = "1" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = lines(run(folder, tmp_path))
    assert told["files"] == "files ✗ output_model/weights.json: its sha256 is not the manifest's"
    assert told["accuracy"] == "accuracy ? not measured: the files are not the manifest's"


def test_without_documents_totals_are_compared(honest: Path, tmp_path: Path) -> None:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        (folder / "documents.parquet").unlink()
        manifest["documents"] = None

    report = run(small_frozen.changed(honest, tmp_path / "user", change), tmp_path)
    assert report.exit_code == 0
    assert lines(report)["task tiny_facts"].endswith("over 30 documents")
    assert "no per-document results in it: totals are compared" in report.notes


def test_a_model_that_user_py_only_registers(honest: Path, tmp_path: Path) -> None:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        code = small_frozen.USER_PY.replace("class UserLM:", '@register_model("user")\nclass Mine(LM):')
        start = "from lm_eval.api.model import LM\nfrom lm_eval.api.registry import register_model\n"
        (folder / "user.py").write_text(code.replace("import hashlib", f"import hashlib\n{start}", 1))

    report = run(small_frozen.changed(honest, tmp_path / "user", change), tmp_path)
    assert report.exit_code == 0, lines(report)


def test_a_python_below_tmp_is_seen(honest: Path, tmp_path: Path) -> None:
    """/tmp of the box is its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    archive = small_frozen.pack(honest, tmp_path / "a.zip")
    report = verify(archive, VerifyOptions(python=tmp_path / "env" / "bin" / "python"))
    assert report.exit_code == 0, lines(report)


# -- rebuild -----------------------------------------------------------------------------------------


def test_rebuild_makes_the_same_files_again(honest: Path, tmp_path: Path) -> None:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        code = small_frozen.COMPRESS_PY + '\nassert (Path(__file__).parents[1] / "manifest.json").is_file()\n'
        (folder / "compression" / "compress.py").write_text(code)

    folder = small_frozen.changed(honest, tmp_path / "user", change)
    report = run(folder, tmp_path, rebuild=True, original=honest.parent / "original")
    assert lines(report)["rebuild"] == "rebuild ✓ 1 files, each with the sha256 of the manifest"


def test_rebuild_needs_the_original(honest: Path, tmp_path: Path) -> None:
    told = lines(run(honest, tmp_path, rebuild=True))
    assert told["rebuild"] == "rebuild ? the original model is not at hand; give its folder with --original"
    other = small_frozen.write_original(tmp_path / "other", salt="b")
    report = run(honest, tmp_path, rebuild=True, original=other)
    assert lines(report)["original"].startswith("original ✗ original.json")
    assert lines(report)["rebuild"].startswith("rebuild ? original.json: is not the original's")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import sys; sys.exit('no')", "rebuild ✗ build.sh: exit code 1: no"),
        (
            small_frozen.COMPRESS_PY.replace("write_text(text)", "write_text(text + ' ')"),
            "rebuild ✗ 1 of 1 files differ; 14 bytes, claimed 13",
        ),
        (
            small_frozen.COMPRESS_PY.replace("write_text(text)", "write_text(text.replace('a\"', 'b\"'))"),
            "rebuild ✗ 1 of 1 files differ; 13 bytes as claimed, accuracy claimed",
        ),
    ],
)
def test_a_rebuild_that_fails(code: str, line: str, honest: Path, tmp_path: Path) -> None:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        (folder / "compression" / "compress.py").write_text(code)

    folder = small_frozen.changed(honest, tmp_path / "user", change)
    told = lines(run(folder, tmp_path, rebuild=True, original=honest.parent / "original"))
    assert told["rebuild"].startswith(line), told["rebuild"]


# -- the command -------------------------------------------------------------------------------------


def test_the_command_prints_json(honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = small_frozen.pack(honest, tmp_path / "team-a.zip")
    assert main(["verify", str(archive), "--python", sys.executable, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == "team-a.zip"
    assert told["exit_code"] == 0
    assert {"claim": "size", "holds": True, "text": "13 bytes", "details": []} in told["verdicts"]
    for key in (*told, *told["measured"], *told["settings"]):
        assert f"`{key}`" in PAGE, key
