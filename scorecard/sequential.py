"""Paired comparison that may be looked at after every document, and stopped as soon as it is decided.

An ordinary test that is repeated until it rejects rejects for certain in the end. The two here are
e-processes: under their null hypothesis the evidence reaches 1 / alpha, ever, with probability at most
alpha (Ville 1939). Both are functions of counts alone, so that the order of documents within a look does
not matter. *Units* are documents, or whole clusters of documents that share a context, drawn in an order
that has nothing to do with the answers (`order`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from scorecard.resample import Interval, cluster_sums
from scorecard.spec import EarlyStop

if TYPE_CHECKING:
    from scorecard.resample import Array, Ids

Verdict = Literal["first", "second", "equal"]


def decided(gained: int, lost: int, units: int, spec: EarlyStop) -> Verdict | None:
    """Which case is better, or that they are equal but for ``spec.margin``; ``None``: go on.

    `gained` units are right in the first case only, `lost` in the second only. Each of the three answers is
    wrong with probability at most ``spec.alpha``, however often this is asked.
    """
    enough = -math.log(spec.alpha)
    if log_evidence(gained, lost) >= enough:
        return "first" if gained > lost else "second"
    if spec.margin is None:
        return None
    beyond = (log_evidence_beyond(*counts, units, spec.margin) for counts in ((gained, lost), (lost, gained)))
    return "equal" if all(evidence >= enough for evidence in beyond) else None


def log_evidence(gained: int, lost: int) -> float:
    """Evidence that a discordant unit is not as likely gained as lost: the likelihood of the counts, averaged
    over the share of gains by Jeffreys' Beta(1/2, 1/2), over that of one half (Robbins 1970)."""
    from scipy.special import betaln

    return float(betaln(gained + 0.5, lost + 0.5) - betaln(0.5, 0.5)) + (gained + lost) * math.log(2)


def log_evidence_beyond(gained: int, lost: int, units: int, margin: float) -> float:
    """Evidence that the share gained is less than `margin` above the share lost: the likelihood averaged over
    all shares by Dirichlet(1/2, 1/2, 1/2), over the greatest with a difference of `margin` or more
    (universal inference, Wasserman, Ramdas & Balakrishnan 2020, section 8)."""
    if gained - lost >= margin * units:
        return -math.inf
    return _log_mixture(gained, lost, units) - _log_greatest(gained, lost, units, margin)


def interval(gained: int, lost: int, units: int, alpha: float = 0.05) -> Interval:
    """Share gained - share lost, with ends that hold at all looks together with probability 1 - alpha."""
    if units == 0:
        return Interval(0.0, -1.0, 1.0)
    mixture, enough = _log_mixture(gained, lost, units), -math.log(alpha)

    def end(gained: int, lost: int) -> float:
        low, high = (gained - lost) / units, 1.0
        for _ in range(40):  # halves the range; evidence grows with the distance from the estimate
            middle = (low + high) / 2
            kept = mixture - _log_greatest(gained, lost, units, middle) < enough
            low, high = (middle, high) if kept else (low, middle)
        return high

    return Interval((gained - lost) / units, -end(lost, gained), end(gained, lost))


def tally(values: Array, clusters: Ids | None = None) -> tuple[int, int, int]:
    """Units gained, lost and all of them, from right-or-wrong answers (documents, 2). A cluster counts as
    gained when more of its documents are gained than lost; with a margin there should be no clusters."""
    sums = cluster_sums(values, clusters)
    differences = sums[:, 0] - sums[:, 1]
    return int((differences > 0).sum()), int((differences < 0).sum()), len(differences)


def order(task: str, clusters: Sequence[int], seed: int) -> list[int]:
    """Places of documents in the order they are to be scored: the same for every case and every version of
    everything, as it is that of hashes; clusters kept together.

    `clusters` has the cluster of each document, as `scorecard.clusters` gives it.
    """

    def drawn(cluster: int) -> bytes:
        return hashlib.sha256(f"{seed} {task} {cluster}".encode()).digest()

    rank = {cluster: drawn(cluster) for cluster in set(clusters)}
    return sorted(range(len(clusters)), key=lambda place: (rank[clusters[place]], place))


def looks(ordered: Sequence[int], clusters: Sequence[int], every: int) -> list[Sequence[int]]:
    """`ordered` in parts of at least `every` documents, none of which ends within a cluster."""
    parts, start = [], 0
    for end in range(1, len(ordered) + 1):
        ends = end == len(ordered) or clusters[ordered[end]] != clusters[ordered[end - 1]]
        if ends and (end - start >= every or end == len(ordered)):
            parts.append(ordered[start:end])
            start = end
    return parts


def _log_mixture(gained: int, lost: int, units: int) -> float:
    same = units - gained - lost
    above = math.lgamma(1.5) - 3 * math.lgamma(0.5) - math.lgamma(units + 1.5)
    return above + sum(math.lgamma(count + 0.5) for count in (gained, lost, same))


def _log_greatest(gained: int, lost: int, units: int, margin: float) -> float:
    """Greatest log-likelihood of the counts when gains are more frequent than losses by `margin`.

    The share of losses at the greatest solves ``2 n q^2 - b q - lost margin (1 - margin) = 0``.
    """
    if margin < 0:
        return _log_greatest(lost, gained, units, -margin)
    same, rest = units - gained - lost, 1 - margin
    b = rest * (gained + lost) - 2 * margin * (lost + same)
    share = (b + math.sqrt(b * b + 8 * units * lost * margin * rest)) / (4 * units) if units else 0.0
    share = min(max(share, 0.0), rest / 2)
    shares = (share + margin, share, max(0.0, rest - 2 * share))
    return sum(_weighted_log(count, p) for count, p in zip((gained, lost, same), shares, strict=True))


def _weighted_log(count: int, share: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf
