"""AWQ (Lin et al. 2023, arXiv:2306.00978) through GPTQModel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runners import _gptqmodel
from runners._hf import load_tokenizer, to_lm
from runners.base import BaseRunner

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits per weight", "choices": (4,)})
    group_size: int = field(
        default=128, metadata={"doc": "input features that share a scale; -1: the whole row"}
    )
    samples: int | None = field(
        default=None,
        metadata={"doc": "calibration sequences to use (time grows with them); null: calibration.samples"},
    )


class Runner(BaseRunner):
    """AWQ: scales up the weights that meet large activations, then rounds; the scales
    are searched on calibration text.

    The artifact is AWQ's GEMM format with a zero point for each group, as GPTQModel writes it. Linears
    need an output that is a multiple of 64 and an input that is a multiple of 32.
    """

    Options = Options
    requires = (_gptqmodel.VERSION,)
    calibrates = True

    def compress(self) -> None:
        o = self.options
        multiple = _gptqmodel.AWQ_OUT_MULTIPLE
        _gptqmodel.check_shapes(self.case, self.model_dir, o.group_size, lm_head=False, out_multiple=multiple)
        settings = {
            "method": "awq",
            "format": "gemm",
            "bits": o.bits,
            "group_size": o.group_size,
            "sym": False,
        }
        _gptqmodel.compress(self.case, self.model_dir, self.output_model, settings, samples=o.samples)

    def load(self) -> LM:
        model = _gptqmodel.load(self.case, self.output_model, "awq", dequantize=False)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
