"""``fresh_logits.py CASE.json OUTPUT_MODEL LOGITS.pt``: load an artifact, write its logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from runners import base
from scorecard.spec import Case, from_json


def tokens() -> torch.Tensor:
    """Token ids [2, 48], always the same."""
    return torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(3))


def logits(model: torch.nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [batch, sequence, vocabulary] in float32, of `tokens` or of ``ids``."""
    with torch.inference_mode():
        return model(tokens() if ids is None else ids).logits.float()


if __name__ == "__main__":
    case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
    lm = base.get(case.config.runner)(case, None, Path(sys.argv[2])).load()
    torch.save(logits(lm.model), sys.argv[3])
