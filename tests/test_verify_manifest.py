"""What ``verify`` refuses before anything of a submission runs, and its options on the page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_frozen

from scorecard import verify_command
from scorecard.errors import ManifestError
from scorecard.machine import ROOT
from scorecard.verification import verify
from scorecard.verified import VerifyOptions

PAGE = (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A frozen folder with claims that nobody measured."""
    return small_frozen.unmeasured(tmp_path / "user")


def run(folder: Path, tmp_path: Path) -> None:
    verify(small_frozen.pack(folder, tmp_path / "submission.zip"), VerifyOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("claims"), "claims is missing"),
        (lambda m: m.update(more=1), "more is unknown"),
        (lambda m: m["claims"].update(size_bytes="13"), "claims.size_bytes: is no int"),
        (lambda m: m["claims"].update(size_bytes=True), "claims.size_bytes: True cannot be"),
        (lambda m: m.update(schema=2), "schema is not 1"),
        (lambda m: m.update(artifact_folder="../.."), "artifact_folder: ../.. is no path in the folder"),
        (lambda m: m["evaluation"].update(tasks=["/etc/passwd"]), "/etc/passwd is no name of a task"),
        (lambda m: m["evaluation"].update(num_fewshot=10**6), "evaluation.num_fewshot: 1000000 is out of"),
        (lambda m: m["claims"].update(score=1e300), "claims.score: 1e+300 cannot be"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, folder: Path, tmp_path: Path
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError) as error:
        run(folder, tmp_path)
    assert message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["[" * 10**5, '{"schema": NaN}', '{"schema": 1, "schema": 1}', "\xff", "7"])
def test_what_is_no_manifest_is_refused(text: str, folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError):
        run(folder, tmp_path)


def test_every_option_is_described() -> None:
    parser = argparse.ArgumentParser()
    verify_command.add_arguments(parser)
    for action in parser._actions:
        for option in action.option_strings:
            assert option in ("-h", "--help") or f"`{option}" in PAGE, option
