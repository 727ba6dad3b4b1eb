"""From hidden states to log-probabilities, a few rows of logits at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runners._scoring import blocks
from runners._scoring.queries import Answers, Picks

if TYPE_CHECKING:
    import torch

    from runners._scoring.parts import Parts

LEAST_ROWS = 32  # fewer make the product with the head slow


def logits_at_once(device: torch.device) -> int:
    """16 MB of float32 on a CPU, whose cache is of that size, 1 GB on a GPU."""
    return 256_000_000 if device.type == "cuda" else 4_000_000


class LogProbs:
    """Collects states until their logits are worth a product with the head; ``flush`` ends it."""

    def __init__(self, parts: Parts, answers: Answers, vocabulary: int, device: torch.device) -> None:
        self._head = parts.plain_head if vocabulary > blocks.WORDS else None
        self._rows = (
            blocks.ROWS if self._head is not None else max(LEAST_ROWS, logits_at_once(device) // vocabulary)
        )
        self._parts, self._answers = parts, answers
        self._states: list[torch.Tensor] = []
        self._picks, self._count = Picks([], [], []), 0
        self.rows = 0  # that went through the head

    def add(self, states: torch.Tensor, picks: Picks) -> None:
        """The rows that are asked for are kept, each once."""
        import torch

        if not picks.rows:
            return
        seen: dict[int, int] = {}
        self._picks.rows += [seen.setdefault(row, self._count + len(seen)) for row in picks.rows]
        self._picks.targets += picks.targets
        self._picks.owners += picks.owners
        self._states.append(states[torch.tensor(list(seen), device=states.device)])
        self._count += len(seen)
        if self._count >= self._rows:
            self.flush()

    def flush(self) -> None:
        """Answer what has been collected."""
        import torch

        if not self._count:
            return
        states = torch.cat(self._states)
        rows = torch.tensor(self._picks.rows, device=states.device)
        targets = torch.tensor(self._picks.targets, device=states.device)
        owners = torch.tensor(self._picks.owners)
        with torch.no_grad():
            for start in range(0, self._count, self._rows):
                here = ((rows >= start) & (rows < start + self._rows)).nonzero()[:, 0]
                chosen, greedy = self._predicted(
                    states[start : start + self._rows], rows[here] - start, targets[here]
                )
                self._answers.add(owners[here.cpu()].tolist(), chosen.tolist(), greedy.tolist())
        self.rows += self._count
        self._states, self._picks, self._count = [], Picks([], [], []), 0

    def _predicted(
        self, states: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._head is None or states.dtype != self._head.dtype:
            return predicted(self._parts.logits(states), rows, targets)
        chosen, greedy = blocks.scores(states, self._head, rows, targets)
        if greedy.any():  # the first of several equal ones counts
            again = self._parts.logits(states[rows[greedy]]).argmax(-1)
            greedy[greedy.clone()] = again == targets[greedy]
        return chosen, greedy


def predicted(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float32 log-probability of each target, and whether it is what ``argmax`` gives in its row."""
    import torch

    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    chosen = logprobs[rows, targets]
    greedy = chosen >= logprobs.amax(-1)[rows]
    if greedy.any():  # the first of several equal ones counts; argmax costs ten times what amax does
        greedy[greedy.clone()] = logprobs[rows[greedy]].argmax(-1) == targets[greedy]
    return chosen, greedy
