"""How many documents it takes to see a difference, paired and not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

ALPHA, POWER = 0.05, 0.8
_MOST = 10**8


def paired_documents(delta: float, discordance: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents for McNemar's test to find an accuracy difference `delta` with probability `power`, when the
    two cases disagree on a share `discordance` of documents (Connor 1987, equation 3).

    Raises ValueError unless 0 < |delta| <= discordance <= 1.
    """
    if not 0 < abs(delta) <= discordance <= 1:
        raise ValueError("a difference is above 0 and at most the share of documents that differ")
    return math.ceil(_documents(delta, discordance, alpha, power))


def unpaired_documents(first: float, second: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents of each case for the test of two independent proportions (Fleiss, Levin & Paik 2003, 4.2).

    Raises ValueError unless both accuracies lie in [0, 1] and differ.
    """
    if first == second or not (0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError("two accuracies lie between 0 and 1 and differ")
    z, y = _quantiles(alpha, power)
    mean = (first + second) / 2
    apart = first * (1 - first) + second * (1 - second)
    return math.ceil(((z * math.sqrt(2 * mean * (1 - mean)) + y * math.sqrt(apart)) / (first - second)) ** 2)


def detectable(
    documents: int, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """The least difference that `documents` show with probability `power`; ``None`` if not even the largest,
    all disagreements in one direction."""
    if discordance <= 0 or paired_documents(discordance, discordance, alpha, power) > documents:
        return None
    low, high = 0.0, discordance
    for _ in range(60):  # halves the range; the number of documents falls as the difference grows
        middle = (low + high) / 2
        enough = middle > 0 and _documents(middle, discordance, alpha, power) <= documents
        low, high = (low, middle) if enough else (middle, high)
    return high


def exact_power(documents: int, gained: float, lost: float, alpha: float = ALPHA) -> float:
    """Probability that the exact McNemar test rejects, when a document is gained or lost with these
    probabilities: a sum over the number of discordant documents, which is binomial."""
    import numpy as np
    from scipy.special import bdtr, bdtrc, gammaln, xlogy

    share = gained + lost
    if share == 0:
        return 0.0
    n = np.arange(documents + 1)
    log = gammaln(documents + 1) - gammaln(n + 1) - gammaln(documents - n + 1)
    weight = np.exp(log + xlogy(n, share) + xlogy(documents - n, 1 - share))
    n, weight = n[weight > 1e-12], weight[weight > 1e-12]
    most = _most_significant(n, alpha)
    n, weight, most = n[most >= 0], weight[most >= 0], most[most >= 0]
    rejected = bdtr(most, n, gained / share) + bdtrc(n - most - 1, n, gained / share)
    return float(weight @ rejected)


def _most_significant(n: Array, alpha: float) -> Array:
    """For each number of discordant documents, the most in the rarer direction that is still significant;
    -1 where nothing is. Found bit by bit, as p grows with it."""
    import numpy as np
    from scipy.special import bdtr

    found = np.full(n.shape, -1.0)
    step = 2.0 ** int(n.max(initial=1)).bit_length()
    while step >= 1:
        tried = np.minimum(found + step, n)
        fits = (2 * (found + step) < n) & (2 * bdtr(tried, n, 0.5) <= alpha)
        found = np.where(fits, found + step, found)
        step /= 2
    return found


def more_units(units: int, half_width: float, distance: float, power: float = POWER) -> int | None:
    """How many more units would decide, with probability `power`, a threshold that lies `distance` from an
    estimate of `units` units whose 95 % interval reaches `half_width`. ``None``: more than 10^8."""
    z, y = _quantiles(ALPHA, power)
    if distance <= 0 or half_width <= 0:
        return None
    reach = (1 + y / z) * half_width / distance
    needed = units * reach * reach
    return None if needed > _MOST else max(1, math.ceil(needed) - units)


def _documents(delta: float, discordance: float, alpha: float, power: float) -> float:
    z, y = _quantiles(alpha, power)
    return ((z * math.sqrt(discordance) + y * math.sqrt(discordance - delta**2)) / delta) ** 2


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2)), float(ndtri(power))
