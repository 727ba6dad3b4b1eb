"""Verify a submission from its zip alone: what it claims, and what comes out here.

The code of the submission runs in a box (scorecard.sandbox) and answers requests; everything that decides a
verdict runs in this process. docs/verifying.md says what that protects from and what it does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorecard import claims, provenance
from scorecard.artifact import regular_files
from scorecard.claims import Measured, Verdict
from scorecard.errors import (
    ArtifactError,
    DataUnavailable,
    ScorecardError,
    SpecError,
    SubmissionError,
)
from scorecard.locks import Lock
from scorecard.machine import cores
from scorecard.manifest import Manifest
from scorecard.pairs import Column, columns, read_documents
from scorecard.pickles import pickled
from scorecard.plain import plain
from scorecard.requirements import read_requirements
from scorecard.scoring import BoxSettings, claimed_documents, score, trusted_spec
from scorecard.spec import EvalSpec
from scorecard.store import sha256_file
from scorecard.strict_manifest import read_strictly
from scorecard.submission import TOP, USER, hash_faults
from scorecard.unpack import unpack
from scorecard.unpacked import Parts, check_names
from scorecard.verified import Report, VerifyOptions
from scorecard.verify_setup import environment, isolated


def verify(archive: Path, options: VerifyOptions) -> Report:
    """Raises SubmissionError, ManifestError and ArtifactError for a zip that cannot be used at all, and
    SpecError where nothing isolates and ``unsafe`` is not given."""
    with tempfile.TemporaryDirectory(prefix="scorecard-verify-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch, "unpacked")
        folder.mkdir(mode=0o755)
        names = unpack(archive, folder, options.unpack)
        check_names(names, folder)
        manifest = read_strictly(folder / TOP)
        inside = [name.partition("/")[2] for name in names if name != USER]
        for name in inside:
            if reason := pickled(folder / TOP / name):
                raise SubmissionError(f"{plain(name)}: {reason}; it is not loaded")
        lock = read_requirements(folder / TOP / manifest.requirements)
        boxed = isolated(options)
        faults = list(hash_faults(folder / TOP, inside, manifest))
        split = Parts.of(folder / TOP, Path(scratch), manifest)
        python = None
        if not faults:
            python = options.python or environment(lock, options)
        return _Verification(archive, manifest, lock, split, options, boxed, tuple(faults)).run(python)


@dataclass
class _Verification:
    archive: Path
    manifest: Manifest
    lock: Lock
    split: Parts
    options: VerifyOptions
    isolated: bool
    faults: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, Column] = field(default_factory=dict)
    claimed: dict[tuple[str, str], dict[int, float]] | None = None

    def run(self, python: Path | None) -> Report:
        size_bytes = sum(path.stat().st_size for path in regular_files(self.split.artifact))
        self.measured |= {"size_bytes": size_bytes, "code_bytes": self.split.code_bytes}
        claimed = self.manifest.claims
        verdicts = [self._files(), claims.size(claimed.size_bytes, size_bytes), *self._said()]
        if python is None:
            verdicts.append(Verdict("accuracy", None, "not measured: the files are not the manifest's"))
        else:
            settings = BoxSettings(python, self.options.box, self.isolated, self._threads())
            scored = self._scored(settings)
            verdicts += scored
            holds = next(verdict.holds for verdict in scored if verdict.claim == "accuracy")
            mean = self.measured.get("mean_accuracy")
            verdicts.append(claims.score(claimed, holds, size_bytes, mean))
            self.measured["score"] = None if mean is None else mean / (size_bytes / claims.GIB)
            if self.options.rebuild:
                verdicts += self._rebuilt(settings)
        if not self.isolated:
            self.notes.append("its code was not isolated (--unsafe): this machine may have been changed")
        return Report(
            file=self.archive.name,
            sha256=sha256_file(self.archive),
            case=plain(self.manifest.case),
            model=plain(_model(self.manifest)),
            original_sha256=_digest(self.manifest),
            isolated=self.isolated,
            verdicts=tuple(verdicts),
            measured=self.measured,
            notes=tuple(self.notes),
            documents=self.documents,
            settings=self._settings(),
        )

    def _settings(self) -> dict[str, Any]:
        """What two scores must share to be compared."""
        asked = self.manifest.evaluation
        names = ("num_fewshot", "limit", "apply_chat_template", "fewshot_as_multiturn", "add_bos_token")
        return {"tasks": sorted(asked.tasks), **{name: getattr(asked, name) for name in names}}

    def _threads(self) -> int | None:
        """As many as the claim was measured with, where it says and this machine has them: sums add up in
        another order with more."""
        told = self.manifest.machine.get("threads")
        return told if isinstance(told, int) and 1 <= told <= cores() else None

    def _said(self) -> list[Verdict]:
        """On what can be seen without running anything."""
        found = (
            provenance.packages(self.manifest, self.lock),
            provenance.sums(self.manifest),
            provenance.original(self.manifest, self.options.original),
        )
        return [verdict for verdict in found if verdict is not None]

    def _files(self) -> Verdict:
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            return Verdict("files", False, self.faults[0].partition(";")[0] + more, self.faults[1:20])
        count = len(self.manifest.artifact) + len(self.manifest.code)
        return Verdict("files", True, f"{count} with the sizes and hashes of the manifest")

    def _scored(self, settings: BoxSettings) -> list[Verdict]:
        """A verdict for each task, and the one of ``accuracy`` last."""
        spec = trusted_spec(self.manifest.evaluation, self.options.task_paths)
        try:
            tasks = self._tasks(spec)
        except (SpecError, DataUnavailable) as error:
            return [Verdict("accuracy", None, f"not measured: {plain(error)} (task files of yours: --tasks)")]
        try:
            result, found = self._score(settings, self.split.artifact, spec)
            self.claimed = self._claimed_documents(settings)
        except SubmissionError as error:
            return [tasks, Verdict("accuracy", False, f"not measured: {error}")]
        self.measured |= {name: result[name] for name in ("mean_accuracy", "mean_accuracy_stderr")}
        self.measured["tasks"] = {name: task["value"] for name, task in result["tasks"].items()}
        counted = {name: task.metric for name, task in found.items() if task.accuracy}
        self.documents = columns(read_documents(self._table), counted)
        return [tasks, *self._verdicts(result, found)]

    def _score(
        self, settings: BoxSettings, artifact: Path, spec: EvalSpec
    ) -> tuple[dict[str, Any], dict[str, Measured]]:
        tie = self.options.tie_nats
        return score(settings, self.split.code, artifact, spec, documents=self._table, tie_nats=tie)

    @property
    def _table(self) -> Path:
        """The results of each document as they are measured here."""
        return self.split.hidden / "measured.parquet"

    def _verdicts(self, result: Mapping[str, Any], found: Mapping[str, Measured]) -> list[Verdict]:
        claimed, own = self.manifest.claims, self.claimed
        made: dict[str, Verdict] = {}
        for name, claim in claimed.tasks.items():
            if name not in found:
                made[name] = Verdict(f"task {name}", False, "claimed, and not among its tasks")
                continue
            values = None if own is None else own.get((name, claim.metric), {})
            made[name] = claims.task(name, claim, found[name], values)
        for name in found.keys() - claimed.tasks.keys():
            made[name] = Verdict(f"task {name}", False, "among its tasks, and not claimed")
        counted = {
            name: verdict
            for name, verdict in made.items()
            if name not in found or found[name].accuracy or name not in claimed.tasks
        }
        return [*made.values(), claims.accuracy(claimed, counted, result)]

    def _claimed_documents(self, settings: BoxSettings) -> dict[tuple[str, str], dict[int, float]] | None:
        if self.split.documents is None:
            self.notes.append("no per-document results in it: totals are compared")
            return None
        ours = dataclasses.replace(settings, python=Path(sys.executable))
        return claimed_documents(ours, self.split.documents)

    def _tasks(self, spec: EvalSpec) -> Verdict:
        """Raises SpecError where a task's documents are others than those of the claim."""
        from scorecard.tasks import resolve

        here = resolve(spec, offline=self.options.offline)
        if other := provenance.other_documents(self.manifest, here):
            raise SpecError(other)
        if spec.limit is not None:
            self.notes.append(f"only the first {spec.limit:,} documents of each task count")
        return provenance.tasks(self.manifest, here)

    def _rebuilt(self, settings: BoxSettings) -> list[Verdict]:
        """The verdict on ``build.sh --compress``; other bytes of the same size are scored too."""
        from scorecard.rebuild import rebuilt

        def rescored(artifact: Path) -> Verdict:
            spec = trusted_spec(self.manifest.evaluation, self.options.task_paths)
            return self._verdicts(*self._score(settings, artifact, spec))[-1]

        try:
            return [rebuilt(self.manifest, self.split, settings, self.options, rescored)]
        except (SubmissionError, ArtifactError) as error:
            return [Verdict("rebuild", False, plain(error))]
        except ScorecardError as error:
            return [Verdict("rebuild", None, plain(error))]


def _digest(manifest: Manifest) -> str:
    """Equal for submissions that name the same original."""
    files = {name: entry.sha256 for name, entry in manifest.original.items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _model(manifest: Manifest) -> str:
    found = manifest.model.get("id")
    return found if isinstance(found, str) else "unknown"
