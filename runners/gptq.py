"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) through GPTQModel, the maintained successor of auto-gptq."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runners import _gptqmodel
from runners._hf import load_tokenizer, to_lm
from runners.base import BaseRunner

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits per weight", "choices": (2, 3, 4, 8)})
    group_size: int = field(
        default=128, metadata={"doc": "input features that share a scale; -1: the whole row"}
    )
    desc_act: bool = field(
        default=False, metadata={"doc": "take columns in the order of their activations' size (act-order)"}
    )
    symmetric: bool = field(
        default=True, metadata={"doc": "zero in the middle of the grid; false: a zero point for each group"}
    )
    damp_percent: float = field(
        default=0.05, metadata={"doc": "share of the mean of the Hessian's diagonal that is added to it"}
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )
    dequantize: bool = field(
        default=False,
        metadata={"doc": "load plain weights instead of packed kernels (faster on a CPU, same size on disk)"},
    )


class Runner(BaseRunner):
    """GPTQ: rounds column by column and lets later columns make up for the error, on calibration text.

    The artifact is GPTQModel's own format. Both sides of every Linear must be multiples of 32. `auto-gptq` is
    accepted as another name of this runner.
    """

    Options = Options
    requires = (_gptqmodel.VERSION,)
    calibrates = True

    def compress(self) -> None:
        if self.case.config.runner == "auto-gptq":
            logging.getLogger(__name__).warning(
                "auto-gptq is no longer maintained: GPTQModel, its successor, does the work (runner: gptq)"
            )
        o = self.options
        _gptqmodel.check_shapes(self.case, self.model_dir, o.group_size, lm_head=o.lm_head)
        grid = {"bits": o.bits, "group_size": o.group_size, "sym": o.symmetric, "desc_act": o.desc_act}
        settings = {
            "method": "gptq",
            **grid,
            "damp_percent": o.damp_percent,
            "act_group_aware": o.group_size > 0 and not o.desc_act,
            "lm_head": o.lm_head,
            # untold, the library stores lm_head with 8 bits in groups of 32, whatever the other options say
            "dynamic": {"lm_head": grid} if o.lm_head else None,
        }
        _gptqmodel.compress(self.case, self.model_dir, self.output_model, settings, samples=o.samples)

    def load(self) -> LM:
        model = _gptqmodel.load(self.case, self.output_model, "gptq", dequantize=self.options.dequantize)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
