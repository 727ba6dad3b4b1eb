"""How to verify a submission, and what was found: plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard.box import BoxLimits
from scorecard.claims import Verdict
from scorecard.errors import EXIT_FAILED, EXIT_INCONCLUSIVE
from scorecard.pairs import Column
from scorecard.unpack import UnpackLimits

TIE_NATS = 0.01
TASK_PATHS = ("embedded:tasks",)


@dataclass(frozen=True)
class VerifyOptions:
    """``python``: an interpreter that has the submission's packages, ``None`` to build one from its pins.
    ``unsafe``: run its code on this machine where no box can be made. ``original`` is the original model's
    folder, for ``rebuild``; ``network`` is for ``rebuild`` alone."""

    python: Path | None = None
    unpack: UnpackLimits = field(default_factory=UnpackLimits)
    box: BoxLimits = field(default_factory=BoxLimits)
    task_paths: tuple[str, ...] = TASK_PATHS
    tie_nats: float = TIE_NATS
    unsafe: bool = False
    rebuild: bool = False
    original: Path | None = None
    network: bool = False
    offline: bool = True
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Report:
    """What was found about one zip; ``measured`` holds size_bytes, code_bytes, mean_accuracy,
    mean_accuracy_stderr, score and the tasks' values, each ``None`` where it was not measured; ``settings``
    are those of the evaluation that two scores must share, ``documents`` the values of each accuracy task."""

    file: str
    sha256: str
    case: str
    model: str
    original_sha256: str
    isolated: bool
    verdicts: tuple[Verdict, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    documents: Mapping[str, Column] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        states = [verdict.holds for verdict in self.verdicts]
        return EXIT_FAILED if False in states else EXIT_INCONCLUSIVE if None in states else 0
