"""What a submission claims beside what was measured: one verdict for each claim."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from scorecard.manifest import Claims, TaskClaim
from scorecard.significance import mcnemar

GIB = 2**30
ALPHA = 0.05
ERROR_TOLERANCE = 0.1  # relative, of a standard error
TIES_ALPHA = 0.001  # for ties that fall in one direction: this is asked of every task
MOST_CHANGED = 0.02  # of the documents, where nothing tells which answers were close
_Z95, _Z999 = 1.959964, 3.290527
_EQUAL = 1e-9
_LISTED = 20

Values = Mapping[int, float]  # of the task's metric, by document


@dataclass(frozen=True)
class Verdict:
    """``holds`` is ``None`` where the claim could not be decided; ``text`` is what to read after the mark."""

    claim: str
    holds: bool | None
    text: str
    details: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.claim} {'?' if self.holds is None else '✓' if self.holds else '✗'} {self.text}"


@dataclass(frozen=True)
class Measured:
    """One task as it was measured here. ``ties``: documents whose best two choices lie so close that
    rounding may decide between them; ``None`` where the answers do not say. ``num_fewshot`` is ``None`` where
    the task does not say."""

    metric: str
    value: float | None
    stderr: float | None
    accuracy: bool
    documents: Values
    n: int
    ties: Collection[int] | None
    num_fewshot: int | None = None


def size(claimed: int, measured: int) -> Verdict:
    if claimed == measured:
        return Verdict("size", True, f"{measured:,} bytes")
    return Verdict("size", False, f"claimed {claimed:,} bytes, measured {measured:,}")


def task(name: str, claim: TaskClaim, found: Measured, claimed: Values | None) -> Verdict:
    """``claimed``: the claim's own value of each document, where the submission brings them."""
    verdict = _value(name, claim, found, claimed)
    if verdict.holds and not _same_error(claim.stderr, found.stderr):
        told = f"claimed ± {number(claim.stderr)}, measured {with_error(found.value, found.stderr)}"
        return Verdict(verdict.claim, False, told)
    return verdict


def _same_error(claimed: float | None, measured: float | None) -> bool:
    """Standard errors follow from the values; where few documents fell otherwise they differ by little. Those
    that a bootstrap gave are not measured here."""
    if claimed is None or measured is None:
        return True
    return abs(claimed - measured) <= max(_EQUAL, ERROR_TOLERANCE * measured)


def _value(name: str, claim: TaskClaim, found: Measured, claimed: Values | None) -> Verdict:
    label = f"task {name}"
    if claim.metric != found.metric:
        return Verdict(label, False, f"claimed for metric {claim.metric!r}, the task's is {found.metric!r}")
    if claim.n != found.n:
        return Verdict(label, False, f"claimed over {claim.n:,} documents, it has {found.n:,}")
    if claim.accuracy != found.accuracy:  # what is left out of the mean cannot lower it
        told = ("no part", "a part") if found.accuracy else ("a part", "no part")
        return Verdict(label, False, f"claimed as {told[0]} of the mean accuracy, it is {told[1]}")
    if None not in (claim.num_fewshot, found.num_fewshot) and claim.num_fewshot != found.num_fewshot:
        return Verdict(label, False, f"claimed with {claim.num_fewshot} shots, it has {found.num_fewshot}")
    if claim.value is None or found.value is None:
        same = claim.value is found.value
        return Verdict(label, same, "no finite value" if same else both(claim.value, found))
    if not found.accuracy:
        return _other(label, claim.value, found)
    if claimed is None:
        return _by_total(label, claim.value, found)
    if claimed.keys() != found.documents.keys():
        return Verdict(label, False, "its documents are not the task's; freeze again")
    own = sum(claimed.values()) / len(claimed)
    if abs(own - claim.value) > _EQUAL:
        return Verdict(label, False, f"claimed {claim.value:.4f}, its own documents give {own:.4f}")
    return _by_document(label, claim.value, found, claimed)


def both(claimed: float | None, found: Measured) -> str:
    return f"claimed {number(claimed)}, measured {with_error(found.value, found.stderr)}"


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def with_error(value: float | None, stderr: float | None) -> str:
    return number(value) if stderr is None else f"{number(value)} ± {stderr:.4f}"


def _by_document(label: str, value: float, found: Measured, claimed: Values) -> Verdict:
    changed = sorted(doc for doc, one in claimed.items() if abs(one - found.documents[doc]) > _EQUAL)
    known = found.ties is not None
    ties = [doc for doc in changed if doc in (found.ties or ())]
    rest = sorted(set(changed) - set(ties))
    details = tuple(
        f"document {doc}: claimed {claimed[doc]:g}, measured {found.documents[doc]:g}"
        for doc in rest[:_LISTED]
    ) + ((f"and {len(rest) - _LISTED} more",) if len(rest) > _LISTED else ())
    measured = with_error(found.value, found.stderr)
    up = sum(claimed[doc] > found.documents[doc] for doc in ties)
    if not rest and mcnemar(up, len(ties) - up) < TIES_ALPHA:
        text = f"{both(value, found)}: {up} of {len(ties)} ties that fell otherwise are in its favour"
        return Verdict(label, False, text)
    if not rest:
        fell = f", {len(ties)} of them ties that fell otherwise" if ties else ""
        return Verdict(label, True, f"{measured}, each of {found.n:,} documents as claimed{fell}")
    text = f"{both(value, found)}; {len(rest)} of {found.n:,} documents differ"
    if known:
        return Verdict(label, False, text, details)
    gained = sum(claimed[doc] > found.documents[doc] for doc in rest)
    p = mcnemar(gained, len(rest) - gained)
    holds = False if p < ALPHA else True if len(rest) <= MOST_CHANGED * found.n else None
    return Verdict(label, holds, f"{text}, {gained} in its favour (p = {p:.2g})", details)


def _by_total(label: str, value: float, found: Measured) -> Verdict:
    assert found.value is not None
    difference, measured = abs(value - found.value), with_error(found.value, found.stderr)
    if difference <= _EQUAL:
        return Verdict(label, True, f"{measured} over {found.n:,} documents")
    if found.ties is not None:
        able = may_change(len(found.ties))
        if difference * found.n <= able + 1e-6:
            return Verdict(label, True, f"{both(value, found)}: {len(found.ties)} ties explain it")
        return Verdict(label, False, f"{both(value, found)}; ties explain {able} documents at most")
    beyond = found.stderr is not None and difference > _Z95 * found.stderr
    text = "" if beyond else "; only per-document results could decide it"
    return Verdict(label, False if beyond else None, both(value, found) + text)


def may_change(ties: int) -> int:
    """By how many documents two totals may differ through ``ties`` answers that fall either way by chance:
    the difference of two Binomial(ties, ½) has variance ties / 2; with probability 0.999 it is less."""
    return min(ties, math.ceil(_Z999 * math.sqrt(ties / 2)))


def _other(label: str, value: float, found: Measured) -> Verdict:
    """A metric that is no accuracy, such as perplexity: equal to three digits, else by its error."""
    assert found.value is not None
    difference = abs(value - found.value)
    if difference <= 1e-3 * abs(found.value):
        return Verdict(label, True, f"{found.metric} {with_error(found.value, found.stderr)}")
    beyond = found.stderr is not None and difference > _Z95 * found.stderr
    return Verdict(label, False if beyond else None, both(value, found))


def accuracy(claims: Claims, verdicts: Mapping[str, Verdict], measured: Mapping[str, Any]) -> Verdict:
    """The mean over the accuracy tasks; it holds where it is the mean of claims that all hold."""
    value, error = measured["mean_accuracy"], measured["mean_accuracy_stderr"]
    text = f"claimed {number(claims.mean_accuracy)}, measured {with_error(value, error)}"
    own = [t for t in claims.tasks.values() if t.accuracy and t.value is not None]
    mean = sum(t.value or 0.0 for t in own) / len(own) if own else None
    if not _same(claims.mean_accuracy, mean):
        return Verdict("accuracy", False, f"{text}; its own tasks give {number(mean)}")
    errors = [t.stderr for t in own if t.stderr is not None]
    spread = math.hypot(*errors) / len(own) if own and len(errors) == len(own) else None
    if not _same(claims.mean_accuracy_stderr, spread, 1e-6):
        told = f"claimed ± {number(claims.mean_accuracy_stderr)}, its own tasks give ± {number(spread)}"
        return Verdict("accuracy", False, told)
    states = [verdict.holds for verdict in verdicts.values()]
    if all(states):
        return Verdict("accuracy", True, with_error(value, error))
    return Verdict("accuracy", False if False in states else None, text)


def score(claims: Claims, accuracy_holds: bool | None, size_bytes: int, mean: float | None) -> Verdict:
    """Accuracy per GiB: arithmetic, once accuracy and size are known."""
    measured = None if mean is None else mean / (size_bytes / GIB)
    own = None if claims.mean_accuracy is None else claims.mean_accuracy / (claims.size_bytes / GIB or 1)
    text = f"claimed {number(claims.score)}, measured {number(measured)}"
    if not _same(claims.score, own, 1e-6):
        return Verdict("score", False, f"{text}; its own accuracy and size give {number(own)}")
    if claims.size_bytes != size_bytes or accuracy_holds is False:
        return Verdict("score", False, text)
    ends = claims.score_low, claims.score_high
    if own is not None and not (ends == (None, None) or _around(ends, own)):
        return Verdict(
            "score", False, f"claimed {number(claims.score)} in [{number(ends[0])}, {number(ends[1])}]"
        )
    return Verdict(
        "score", accuracy_holds, f"{number(measured)} accuracy per GiB" if accuracy_holds else text
    )


def _around(ends: tuple[float | None, float | None], value: float) -> bool:
    low, high = ends
    return (
        low is not None and high is not None and low <= value * (1 + _EQUAL) and value <= high * (1 + _EQUAL)
    )


def _same(a: float | None, b: float | None, relative: float = _EQUAL) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=relative, abs_tol=_EQUAL)
