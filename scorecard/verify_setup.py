"""What ``verify`` needs before anything of a submission runs: a box, and an interpreter with its packages."""

from __future__ import annotations

from pathlib import Path

from scorecard import sandbox
from scorecard.errors import SpecError, SubmissionError
from scorecard.locks import Lock
from scorecard.plain import plain
from scorecard.verified import VerifyOptions


def isolated(options: VerifyOptions) -> bool:
    """Whether code can be isolated here. Raises SpecError where not, unless ``unsafe`` is given."""
    reason = sandbox.why_not()
    if reason is None:
        return True
    if not options.unsafe:
        raise SpecError(
            f"verify: cannot isolate code on this machine ({plain(reason)}); use another one, or read the "
            "submission's code first and give --unsafe"
        )
    return False


def environment(lock: Lock, options: VerifyOptions) -> Path:
    """An interpreter with the pins of a submission. Raises SubmissionError where they cannot be had."""
    from scorecard import environments, installing

    try:
        return environments.from_lock(lock, stranger=True, say=options.say).python
    except installing.InstallError as error:
        raise SubmissionError(
            f"requirements: cannot be installed: {plain(error)}; or give --python"
        ) from None
