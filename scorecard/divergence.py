"""KL(original || candidate), where only a part of the original's distributions is kept.

Per predicted token, with ``p`` the original, ``q`` the candidate (known in full), ``K`` the kept tokens and
``T`` the others, of mass ``p(T)``:

    KL = sum over K of p ln(p/q)  +  sum over T of p ln(p/q)

The second sum is estimated without bias by ``p(T)`` times the mean of ``ln(p/q)`` over the tokens drawn from
T, or of ``ln(p/q) + q/p - 1``, whose added part has the known mean ``q(T)/p(T) - 1`` (a control variate: near
p = q it takes nearly all of the variance away, far from it it adds some).

The sum is certain to lie in ``[p(T) ln(p(T)/q(T)), p(T) (ln max p - ln min q)]``: below is the divergence of
the two masses (data-processing inequality), above every token as far apart as it can be. No few numbers
about T can make that narrow, because a candidate may put its errors anywhere in it. The draws can, for
every candidate that was not made with them in mind: see ``Divergence.interval``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorecard.kept import Kept, Others

if TYPE_CHECKING:
    import torch

RISK = 1e-6  # that the truth lies outside of the interval


@dataclass(frozen=True)
class Divergence:
    """Sums over predicted tokens, in nats: an estimate of the KL, and what bounds its error.

    ``low`` and ``high`` are certain. One estimate is ``exact`` plus a sum of ``draws`` independent random
    terms, ``drawn``; ``squares`` is the sum of their squares, and each lies in ``[least, greatest]``. The one
    with the control variate is ``exact + controlled``, and ``controlled_squares`` goes with it.
    """

    exact: float = 0.0
    low: float = 0.0
    high: float = 0.0
    draws: int = 0
    drawn: float = 0.0
    squares: float = 0.0
    controlled: float = 0.0
    controlled_squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(
            self.exact + other.exact,
            self.low + other.low,
            self.high + other.high,
            self.draws + other.draws,
            self.drawn + other.drawn,
            self.squares + other.squares,
            self.controlled + other.controlled,
            self.controlled_squares + other.controlled_squares,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
        )

    @property
    def control_helps(self) -> bool:
        """Whether the control variate makes the estimate much steadier; to be asked of a whole text.

        A few draws cannot tell: those that miss its rare great values look steady, and are too low.
        """
        return 4 * self.controlled_squares < self.squares

    def value(self, controlled: bool = False) -> float:
        """The estimate, plain or with the control variate. NaN and infinity stay what they are."""
        return max(self.exact + (self.controlled if controlled else self.drawn), 0.0)

    def interval(self, risk: float = RISK) -> tuple[float, float]:
        """Where the sum over the full vocabulary lies, but for a chance of ``risk`` that the draws mislead.

        The empirical Bernstein inequality on either side (Maurer and Pontil 2009, theorem 11, for terms
        that are independent but not alike), and never wider than what is certain.
        """
        error, estimate = self._error(risk), self.exact + self.drawn
        low = max(self.low, 0.0)
        high = max(self.high, low)  # rounding can turn them around where they are next to equal
        return max(low, min(estimate - error, high)), min(high, max(estimate + error, low))

    def _error(self, risk: float) -> float:
        if not self.draws:
            return 0.0
        if self.draws == 1:
            return math.inf
        n, log = self.draws, math.log(4 / risk)  # 2 / risk for each of two sides
        variance = max(self.squares - self.drawn**2 / n, 0.0) / (n - 1)
        return math.sqrt(2 * n * variance * log) + 7 / 3 * n / (n - 1) * (self.greatest - self.least) * log


def divergence(kept: Kept, candidate: torch.Tensor) -> Divergence:
    """The divergence of ``candidate``, log-probabilities float32 [n, vocabulary], from the kept originals.

    What is kept is normalized again, so that rounding to float16 makes no divergence negative.
    """
    import torch

    stored = kept.logprobs.float()
    if kept.others is None:
        exact = _terms(stored - stored.logsumexp(-1, keepdim=True), candidate)
        return Divergence(exact, exact, exact)
    whole = torch.logaddexp(stored.logsumexp(-1), kept.others.tail[:, 0])
    exact = _terms(stored - whole[:, None], candidate.gather(-1, kept.others.ids))
    rest = _rest(kept.others, whole, candidate)
    return rest + Divergence(exact, exact, exact)


def _terms(original: torch.Tensor, candidate: torch.Tensor) -> float:
    """Sum of p ln(p/q) of two equally shaped tensors of logarithms; what has p = 0 counts as 0."""
    probabilities = original.exp()
    terms = probabilities * (original - candidate)
    return float(terms.masked_fill_(probabilities == 0, 0.0).double().sum())


def _rest(others: Others, whole: torch.Tensor, candidate: torch.Tensor) -> Divergence:
    """The second sum; ``whole`` [n] is what rounding made of ln 1."""
    import torch

    mass, least, greatest = (others.tail - whole[:, None]).double().unbind(-1)
    weight = mass.exp()
    rest = candidate.scatter(-1, others.ids, -math.inf)
    other_mass = rest.logsumexp(-1).double()
    low = _masked(weight * (mass - other_mass), weight)
    high = _masked(weight * (greatest - candidate.amin(-1).double()), weight)
    share = weight / others.counts.clamp_min(1)
    rows = torch.arange(len(share), device=share.device).repeat_interleave(others.counts)
    ratios = (others.drawn_logprobs - whole[rows] - candidate[rows, others.drawn]).double()
    terms, added = share[rows] * ratios, share[rows] * ((-ratios).exp() - 1)
    bounds = _masked(share * (least - rest.amax(-1).double()), weight), _masked(high / others.counts, weight)
    return Divergence(
        low=float(low.sum()),
        high=float(high.sum()),
        draws=len(terms),
        drawn=float(terms.sum()),
        squares=float((terms**2).sum()),
        controlled=float((terms + added).sum() + _masked(weight - other_mass.exp(), weight).sum()),
        controlled_squares=float(((terms + added) ** 2).sum()),
        least=float(bounds[0].min()),
        greatest=float(bounds[1].max()),
    )


def _masked(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``values`` where ``weight`` is not 0, else 0: nothing is beyond the kept tokens there."""
    return values.masked_fill(weight == 0, 0.0)
