"""Two families of compressors compared by bytes at equal KL divergence: arithmetic on measured points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scorecard.row import GIB

#: (bits per weight, how far a peer may be from it, greatest ratio of our bytes to the peer's aimed at)
GOALS = ((4.0, 0.5, 0.75), (3.0, 0.5, 0.75), (2.5, 0.25, 0.70))
SCORE_GOAL = 1.4
PERCENT = 100


@dataclass(frozen=True)
class Point:
    """One compressed model. ``None`` is what was not measured, or what there is none of.

    ``size_bytes`` are all files without the tokenizer, the same for every compressor; ``bits_per_weight`` are
    these bytes over the weights of the original; ``kl`` is in nats per token. ``keeps`` says that it has 99 %
    of the original's accuracy and passes the guard on its KL (docs/results.md).
    """

    config: str
    ours: bool
    size_bytes: int
    bits_per_weight: float
    kl: float | None
    kl_stderr: float | None = None
    flips: int | None = None
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    recovery: float | None = None
    perplexity: float | None = None
    keeps: bool = False

    @property
    def score(self) -> float | None:
        """Accuracy per GiB, of a model that keeps its accuracy."""
        return self.accuracy / (self.size_bytes / GIB) if self.keeps and self.accuracy is not None else None


@dataclass(frozen=True)
class Bytes:
    """``bound``: the true number is at most this, because no point of the curve has a KL so great."""

    count: float
    bound: bool = False


@dataclass(frozen=True)
class Ratio:
    """A peer, and our bytes at its KL; ``ours`` is ``None`` where our curve does not come so near."""

    bits: float
    goal: float
    peer: Point
    ours: Bytes | None

    @property
    def value(self) -> float | None:
        return self.ours.count / self.peer.size_bytes if self.ours else None

    @property
    def met(self) -> bool | None:
        """A bound can show that the goal is met, not that it is missed."""
        if self.value is None:
            return None
        return True if self.value <= self.goal else None if self.ours and self.ours.bound else False


@dataclass(frozen=True)
class Scores:
    """The best score of either family."""

    peer: Point | None
    ours: Point | None

    @property
    def ratio(self) -> float | None:
        ends = [point.score if point else None for point in (self.ours, self.peer)]
        return ends[0] / ends[1] if ends[0] is not None and ends[1] else None


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no smaller one equals or beats in KL, from the smallest on: KL falls along them."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size_bytes, p.kl if p.kl is not None else math.inf)):
        if point.kl is not None and point.kl > 0 and (not found or point.kl < (found[-1].kl or 0)):
            found.append(point)
    return found


def bytes_at(points: Iterable[Point], kl: float) -> Bytes | None:
    """Bytes at which the curve through the front of ``points`` has this KL.

    Between two points the bytes are linear in log KL: above two bits per weight a bit divides the error's
    power by four, so that the curve is nearly straight there. Nothing is extrapolated: a ``kl`` greater than
    that of the smallest point gives the bytes of this point as a bound, a lesser one than all gives ``None``.
    """
    curve = front(points)
    if not curve or kl <= 0:
        return None
    logs = [math.log(point.kl or math.nan) for point in curve]
    log = math.log(kl)
    if log > logs[0]:
        return Bytes(curve[0].size_bytes, bound=True)
    for i in range(len(curve)):
        if log == logs[i]:
            return Bytes(curve[i].size_bytes)
        if i and log > logs[i]:
            share = (logs[i - 1] - log) / (logs[i - 1] - logs[i])
            return Bytes(curve[i - 1].size_bytes + share * (curve[i].size_bytes - curve[i - 1].size_bytes))
    return None


def ratios(points: Sequence[Point]) -> list[Ratio]:
    """For each goal the peer that is hardest to beat there, of those on the front of the peers.

    Where no peer of the front has about so many bits, the nearest of them stands for it. A peer whose KL our
    curve does not reach is the hardest of all.
    """
    peers = front(point for point in points if not point.ours)
    ours = [point for point in points if point.ours]
    found = []
    for bits, window, goal in GOALS if peers else ():
        near = [peer for peer in peers if abs(peer.bits_per_weight - bits) <= window]
        near = near or [min(peers, key=lambda peer: abs(peer.bits_per_weight - bits))]
        all_of_them = [Ratio(bits, goal, peer, bytes_at(ours, peer.kl or 0)) for peer in near]
        found.append(max(all_of_them, key=_hardness))
    return found


def _hardness(ratio: Ratio) -> tuple[int, float]:
    """A KL out of our reach, then ratios by size, then those that are only bounds, by the KL of the peer."""
    if ratio.value is None:
        return 2, 0.0
    bound = bool(ratio.ours and ratio.ours.bound)
    return (0, -(ratio.peer.kl or 0)) if bound else (1, ratio.value)


def best_scores(points: Sequence[Point]) -> Scores:
    """The best score among the peers and among ours."""

    def best(ours: bool) -> Point | None:
        scored = [point for point in points if point.ours is ours and point.score is not None]
        return max(scored, key=lambda point: point.score or 0, default=None)

    return Scores(best(False), best(True))


# -- tables ----------------------------------------------------------------------------------------


def table(points: Iterable[Point]) -> str:
    """Markdown, the largest first."""
    lines = [
        "| config | bytes | bits/weight | KL ± se | flips | accuracy | recovery | perplexity | score |",
        "|---|" + "---:|" * 8,
    ]
    for p in sorted(points, key=lambda point: (-point.size_bytes, point.config)):
        name = f"**{p.config}**" if p.ours else p.config
        error = f" ± {p.kl_stderr:.4f}" if p.kl_stderr else ""
        lines.append(
            f"| {name} | {p.size_bytes:,} | {p.bits_per_weight:.2f} | {_number(p.kl, 4)}{error} "
            f"| {_number(p.flips)} | {_percent(p.accuracy, p.accuracy_stderr)} | {_percent(p.recovery)} "
            f"| {_number(p.perplexity, 3)} | {_number(p.score, 1)} |"
        )
    return "\n".join(lines)


def ratio_table(points: Sequence[Point]) -> str:
    """Markdown: our bytes at the KL of the best peers, and the best scores."""
    lines = [
        "| about | best peer | its bits/weight | its bytes | its KL | our bytes at its KL | ratio | goal | |",
        "|---|---|" + "---:|" * 6 + "---|",
    ]
    for r in ratios(points):
        at_most = "≤ " if r.ours and r.ours.bound else ""
        ours = f"{at_most}{r.ours.count:,.0f}" if r.ours else "not reached"
        ratio = f"{at_most}{r.value:.3f}" if r.value is not None else "–"
        lines.append(
            f"| {r.bits:g} bits | {r.peer.config} | {r.peer.bits_per_weight:.2f} | {r.peer.size_bytes:,} "
            f"| {_number(r.peer.kl, 4)} | {ours} | {ratio} | ≤ {r.goal:.2f} | {_verdict(r.met)} |"
        )
    scores = best_scores(points)
    ours, peer = (f"{p.config} ({_number(p.score, 1)})" if p else "none" for p in (scores.ours, scores.peer))
    ratio = _number(scores.ratio, 2)
    met = None if scores.ratio is None else scores.ratio >= SCORE_GOAL
    text = f"Best score: ours {ours}, peers {peer}; ratio {ratio}, goal ≥ {SCORE_GOAL}: {_verdict(met)}."
    return "\n".join([*lines, "", text])


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """The same for programs: ``ratios`` and ``scores``."""
    scores = best_scores(points)
    return {
        "ratios": [
            {
                "bits_per_weight": r.bits,
                "peer": r.peer.config,
                "peer_bytes": r.peer.size_bytes,
                "peer_kl": r.peer.kl,
                "our_bytes": r.ours.count if r.ours else None,
                "bound": bool(r.ours and r.ours.bound),
                "ratio": r.value,
                "goal": r.goal,
                "met": r.met,
            }
            for r in ratios(points)
        ],
        "scores": {
            "ours": scores.ours and {"config": scores.ours.config, "score": scores.ours.score},
            "peer": scores.peer and {"config": scores.peer.config, "score": scores.peer.score},
            "ratio": scores.ratio,
            "goal": SCORE_GOAL,
        },
    }


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{PERCENT * value:.1f}" + (f" ± {PERCENT * error:.1f}" if error else "")


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not decided"}[met]
