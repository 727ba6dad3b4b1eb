"""What is kept of a distribution over a large vocabulary, so that others can be compared with it later.

The most probable tokens are kept as they are. Of all the others only their mass is kept, the range of their
probabilities, and some of them drawn at random with replacement, each as often as it is probable: enough to
estimate any mean over them without bias. A small vocabulary is kept whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COUNT = 256  # most probable tokens that are kept
DENSITY = 4096  # draws from the others, per unit of their mass; at most one to eight tokens of the vocabulary


@dataclass(frozen=True)
class Others:
    """The tokens beyond the ``k`` most probable ones, for ``n`` distributions; logarithms are natural.

    ids             int64    [n, k]   the ``k`` most probable tokens, which are no part of the others
    tail            float32  [n, 3]   logarithms: mass of the others, least and greatest of their
                                      probabilities above 0; -inf, 0, 0 where there are none
    counts          int64    [n]      how many of them are drawn: ``ceil(density * mass)``
    drawn           int64    [draws]  those, distribution after distribution
    drawn_logprobs  float32  [draws]
    """

    ids: torch.Tensor
    tail: torch.Tensor
    counts: torch.Tensor
    drawn: torch.Tensor
    drawn_logprobs: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """``n`` distributions.

    top       int64    [n]     the most probable token, before rounding to float16
    logprobs  float16  [n, k]  of the most probable tokens; of every token, in order, where ``others`` is None
    """

    top: torch.Tensor
    logprobs: torch.Tensor
    others: Others | None = None


def id_bytes(vocabulary: int) -> int:
    """Bytes that the greatest token id needs."""
    return max(1, math.ceil((vocabulary - 1).bit_length() / 8))


def kept_whole(vocabulary: int, count: int = COUNT) -> bool:
    """Whether the whole vocabulary takes no more bytes than ``count`` tokens of it and a tail."""
    return vocabulary <= count or 2 * vocabulary <= count * (2 + id_bytes(vocabulary)) + 12


def normalized(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32 [n, vocabulary], to about 1e-6.

    Not by ``torch.log_softmax``, whose plain running sum is off by 3e-5 for a vocabulary of 128,000 on a CPU:
    as much as the divergence of a good 8-bit model.
    """
    logits = logits.float()
    return logits - logits.logsumexp(-1, keepdim=True)


def keep(logits: torch.Tensor, generator: torch.Generator, count: int = COUNT) -> Kept:
    """What is kept of ``logits`` [n, vocabulary], any float type; ``generator`` is on the CPU."""
    import torch

    vocabulary = logits.shape[-1]
    top, logprobs = logits.argmax(-1), normalized(logits)
    if kept_whole(vocabulary, count):
        return Kept(top, _half(logprobs))
    values, ids = logprobs.topk(count + 1, -1)
    probabilities = logprobs.double().exp().scatter_(-1, ids[:, :count], 0.0)
    mass = probabilities.sum(-1).nan_to_num(0.0)
    least = logprobs.masked_fill(probabilities == 0, math.inf).amin(-1)
    extremes = torch.stack([least, values[:, count]], -1).masked_fill((mass == 0)[:, None], 0.0)
    tail = torch.cat([mass.log().float()[:, None], extremes], -1)
    counts = (min(DENSITY, vocabulary // 8) * mass).ceil().long()
    drawn = _draw(probabilities, counts, generator)
    drawn_logprobs = logprobs[torch.arange(len(counts), device=ids.device).repeat_interleave(counts), drawn]
    return Kept(top, _half(values[:, :count]), Others(ids[:, :count], tail, counts, drawn, drawn_logprobs))


def _half(logprobs: torch.Tensor) -> torch.Tensor:
    import torch

    return logprobs.clamp_min(torch.finfo(torch.float16).min).half()


def _draw(weights: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``counts[i]`` indices of row ``i``, with replacement, in proportion to ``weights`` [n, v] >= 0.

    By inversion: the numbers lie in (0, 1], so that nothing of weight 0 is ever drawn. They are asked for
    row after row, so that the draws do not depend on how many rows come at a time.
    """
    import torch

    wanted = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
    numbers = 1 - torch.rand(int(counts.sum()), generator=generator, dtype=torch.float64)
    places = torch.ones(wanted.shape, dtype=torch.float64, device=weights.device)
    places[wanted] = numbers.to(weights.device)
    cumulated = weights.cumsum(-1)
    return torch.searchsorted(cumulated, places * cumulated[:, -1:])[wanted]
