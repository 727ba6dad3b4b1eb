"""Log-probabilities a block of the vocabulary at a time, against log-softmax over all of it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("words", [1, 1999, 2000, 2001, 6500])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_is_log_softmax(words: int, scale: float) -> None:
    import torch

    from runners._scoring import blocks

    generator = torch.Generator().manual_seed(words)
    states = torch.randn(7, 16, generator=generator) * scale
    weight = torch.randn(words, 16, generator=generator)
    rows = torch.randint(7, (40,), generator=generator)
    targets = torch.randint(words, (40,), generator=generator)
    targets[:7] = (states @ weight.T).argmax(-1)
    rows[:7] = torch.arange(7)
    chosen, greedy = blocks.scores(states, weight, rows, targets)
    exact = (states.double() @ weight.double().T).log_softmax(-1)
    torch.testing.assert_close(chosen.double(), exact[rows, targets], rtol=1e-5, atol=1e-4 * max(scale, 1))
    assert greedy.tolist() == (exact.argmax(-1)[rows] == targets).tolist()


def test_equal_words_of_two_blocks_are_both_greedy() -> None:
    """Which of them counts is for the caller to say, who has all of them."""
    import torch

    from runners._scoring import blocks

    weight = torch.zeros(5000, 2)
    weight[[10, 4500]] = torch.tensor([1.0, 2.0])
    rows, targets = torch.zeros(3, dtype=torch.long), torch.tensor([10, 4500, 11])
    chosen, greedy = blocks.scores(torch.tensor([[1.0, 1.0]]), weight, rows, targets)
    assert greedy.tolist() == [True, True, False]
    assert chosen[0] == chosen[1] > chosen[2]
