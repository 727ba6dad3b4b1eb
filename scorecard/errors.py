"""Every exception of the project; each message reads ``where: what is wrong; what to write instead``.

    ScorecardError                 a user can mend it: one line, exit code 4, never a traceback
    ├── SpecError                  models.yaml, an option or a command line is wrong
    ├── SourceError                a model cannot be had
    │   └── VerificationError      it can be had, but its bytes are not the ones that were promised
    ├── RunnerUnavailable          this backend cannot run here; the case is skipped, with what mends it
    ├── DataUnavailable            an evaluation or calibration data set is not on this machine
    ├── ArtifactError              files in $OUTPUT_MODEL break a rule (link, sparse file, pickle)
    ├── ComparisonError            two cases were not scored on the same documents
    ├── ManifestError              a frozen folder or a submission lacks a file, or says what cannot be
    ├── SubmissionError            a submission is refused: its files, or what its code does
    ├── IsolationError             a worker tried to reach what it must not see
    └── StageFailed                a stage ended without a result: it crashed, was killed, or passed a limit

Anything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_USAGE = 4
EXIT_INCONCLUSIVE = 6  # pytest takes 0 to 5


class ScorecardError(Exception):
    """Base of all errors a user can mend."""


class SpecError(ScorecardError):
    """models.yaml, an option or a command line is wrong."""


class SourceError(ScorecardError):
    """A model's files cannot be fetched: no network, no token, no such file."""


class VerificationError(SourceError):
    """Fetched files are not the promised ones (sha256), or are of a kind that is refused."""


class RunnerUnavailable(ScorecardError):
    """A backend cannot run on this machine; the message ends with the command that mends it."""


class DataUnavailable(ScorecardError):
    """A data set is neither in the local cache nor, with the hub off, to be had."""


class ArtifactError(ScorecardError):
    """The artifact breaks a rule of the byte ledger."""


class ComparisonError(ScorecardError):
    """Two cases cannot be compared: they were not scored on the same documents."""


class ManifestError(ScorecardError):
    """A frozen folder or a submission is incomplete, or its manifest is not one."""


class SubmissionError(ScorecardError):
    """A submission breaks a rule: in its files, or in what its code answers or takes."""


class IsolationError(ScorecardError):
    """A worker reached for files that its stage must not see."""


class StageFailed(ScorecardError):
    """A stage ended without a result."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The hint that ends a message about an unknown name: the nearest valid one, else all of them.

    >>> nearest("gptk", ["gptq", "awq"])
    "did you mean 'gptq'?"
    """
    known = sorted(valid)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"it takes: {', '.join(known) or 'nothing'}"
