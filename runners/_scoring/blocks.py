"""Log-probabilities from a plain head, a block of the vocabulary at a time.

On a CPU the logits of many rows are larger than its cache; written whole and read again by log-softmax, they
cost about as much as the product that made them. Here a block is used up while it is in the cache: running
maximum and sum of exponentials, as in Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runners._scoring import products

if TYPE_CHECKING:
    import torch

ROWS = 500
WORDS = 2000  # logits of a block: 4 MB


def scores(
    states: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each i the float32 log-probability of word ``targets[i]`` after ``states[rows[i]]``, and whether no
    word has more.

    ``states`` [n, width] and ``weight`` [vocabulary, width] are float32.
    """
    import torch

    top = torch.full((len(states),), -torch.inf)
    total = torch.zeros(len(states))
    chosen = torch.empty(len(rows))
    for start in range(0, len(weight), WORDS):
        block = weight[start : start + WORDS]
        logits = products.product(states, block)
        here = ((targets >= start) & (targets < start + len(block))).nonzero()[:, 0]
        chosen[here] = logits[rows[here], targets[here] - start]
        higher = torch.maximum(top, logits.amax(-1))
        total *= (top - higher).exp_()
        total += logits.sub_(higher[:, None]).exp_().sum(-1)
        top = higher
    return chosen - (top + total.log())[rows], chosen >= top[rows]
