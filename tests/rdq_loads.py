"""What an rdq folder decodes to, beside the model that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import rdq
from rdq.compress import Compressor
from rdq.container import open_container


def check(model: PreTrainedModel, made: Compressor, out: Path) -> None:
    """``rdq.load`` and transformers give the same logits, not far from the model's; every matrix is coded."""
    loaded = rdq.load(out, torch.float32)
    through_transformers = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        before, after = model(tokens).logits, loaded(tokens).logits
        assert torch.equal(after, through_transformers(tokens).logits)
    assert float((before - after).norm() / before.norm()) < 0.5
    with open_container(out) as container:
        assert set(container.matrices) == {matrix.name for matrix in made.matrices}
