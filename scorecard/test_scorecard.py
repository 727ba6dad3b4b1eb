"""The bench: every case of models.yaml through every stage. ``-k`` cuts by model and by config."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scorecard.spec import Case, Record, Stage


def test_compress(case: Case, finished: Callable[[Case, Stage], Record]) -> None:
    """The backend writes an artifact."""
    assert finished(case, "compress").files, "the artifact holds no files"


def test_size(case: Case, finished: Callable[[Case, Stage], Record]) -> None:
    """Every byte of the artifact is accounted for."""
    ledger = finished(case, "audit").result["ledger"]
    assert sum(ledger["by_category"].values()) == ledger["size_bytes"] > 0


def test_audit(case: Case, finished: Callable[[Case, Stage], Record]) -> None:
    """The compression that was asked for did happen."""
    findings = finished(case, "audit").result["audit"]["findings"]
    errors = [finding["what"] for finding in findings if finding["level"] == "error"]
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)


def test_evaluate(case: Case, finished: Callable[[Case, Stage], Record]) -> None:
    """Every task has a result."""
    tasks = finished(case, "evaluate").result["tasks"]
    assert tasks, "no task was scored"
    assert all(task["n"] > 0 for task in tasks.values())


def test_latency(case: Case, finished: Callable[[Case, Stage], Record]) -> None:
    """Prefill and decode are timed, or the record says why not."""
    result = finished(case, "measure").result
    assert result["load_seconds"] > 0
    assert result["prefill"] or result["reason"]


def test_gate(case: Case, judged: Callable[[Case], str]) -> None:
    """The case reaches what models.yaml asks of it."""
    assert judged(case) != "fail"
