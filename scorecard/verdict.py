"""The gate in a pytest run: which stages it waits for, and what becomes of a case that is not decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scorecard import results
from scorecard.errors import EXIT_INCONCLUSIVE, SpecError
from scorecard.gate import told
from scorecard.run import Run
from scorecard.spec import Case, GateSpec, Stage

#: What each threshold is measured by.
_STAGES: dict[str, Stage] = {
    "recovery": "evaluate",
    "delta_accuracy": "evaluate",
    "kl": "evaluate",
    "size_gib": "audit",
    "size_ratio": "audit",
    "prefill_speedup": "measure",
    "decode_speedup": "measure",
}
PROPERTY = "gate"


def add_option(add: Callable[..., Any]) -> None:
    add(
        "--gate-inconclusive",
        metavar="pass|fail|CODE",
        default=str(EXIT_INCONCLUSIVE),
        help="what a gate that is not decided does: pass, fail, or end a run without failures with this exit "
        "code [%(default)s]",
    )


def exit_code(text: str) -> int | None:
    """The exit code that was asked for; ``None`` for ``pass`` and ``fail``. Raises SpecError."""
    if text in ("pass", "fail"):
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) < 256:
        return int(text)
    raise SpecError(f"--gate-inconclusive: '{text}' is not possible; write pass, fail or an exit code")


def stages(gate: GateSpec) -> list[Stage]:
    """The stages whose results the thresholds of a gate are about."""
    return list(dict.fromkeys(stage for name, stage in _STAGES.items() if getattr(gate, name) is not None))


def judge(run: Run, node: pytest.Item, case: Case, undecided: str) -> str:
    """The outcome of a case whose stages are done; the test of one that is not decided fails, is skipped or
    passes as `undecided`, the option, says."""
    row = next(r for r in results.summarise(run, [case], write=False).table.rows if r.case == case.id)
    if row.gate is None:
        pytest.skip(f"{row.status}: {row.reason}")
    for name, check in row.gate_checks.items():
        node.user_properties.append((f"{PROPERTY}.{name}", check.outcome))
    node.user_properties.append((PROPERTY, row.gate))
    lines = [told(name, check) for name, check in row.gate_checks.items() if check.outcome != "pass"]
    if row.gate == "fail" or (row.gate == "inconclusive" and undecided == "fail"):
        pytest.fail("\n".join([f"{case.id}: gate {row.gate}", *lines]), pytrace=False)
    if row.gate == "inconclusive" and undecided != "pass":
        pytest.skip("; ".join(lines))
    return row.gate
