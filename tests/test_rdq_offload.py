"""Models run block after block from their files: the same statistics as in memory, with less of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import rdq
from rdq.chain import Chain
from rdq.compress import Compressor, Options
from rdq.errors import RdqError
from rdq.mapped import load_mapped
from rdq.matrices import files
from rdq.quantize import Settings
from tests.test_rdq_compress import EMBEDDED, TEXT, gpt2, mixtral, small, written

pytestmark = pytest.mark.backend

MAKERS = {
    "plain": lambda: small(False), "tied": lambda: small(True), "gpt2": gpt2, "mixtral": mixtral,
}  # fmt: skip
ROUGH = 1e-3  # of the largest value: both ways compute in float32, and sum in another order


def apart(one: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor) -> float:
    """The largest difference, in largest values."""
    first, second = (torch.as_tensor(values).double() for values in (one, other))
    return float((first - second).abs().max() / second.abs().max())


def same_statistics(folder: Path, options: dict[str, object], scratch: Path) -> None:
    there = Compressor(folder, Options(**options, offload=scratch))
    here = Compressor(folder, Options(**options, offload=False))
    assert [m.name for m in there.matrices] == [m.name for m in here.matrices]
    assert list(there.statistics) != []
    for name in here.statistics:
        of_files, of_memory = there.statistics[name], here.statistics[name]
        assert apart(of_files.hessian, of_memory.hessian) < ROUGH, name
        assert apart(of_files.sensitivity, of_memory.sensitivity) < ROUGH, name


@pytest.mark.parametrize("mode", ["sensitivity", "calibrated", "data-free"])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_statistics_are_the_same_both_ways(kind: str, mode: str, tmp_path: Path) -> None:
    written(MAKERS[kind](), tmp_path / "model")
    tokens = torch.randint(200, (9, 33), generator=torch.Generator().manual_seed(2)).tolist()
    tokens = [ids[:20] if n % 4 == 1 else ids for n, ids in enumerate(tokens[:-1])] + tokens[-1:]
    same_statistics(tmp_path / "model", {"mode": mode, "calibration": tokens}, tmp_path)
