"""AWQ (Lin et al. 2023, arXiv:2306.00978) through GPTQModel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _gptqmodel, _outer
from runners._hf import empty_model, load_tokenizer, stored_turned, to_lm
from runners._shapes import Shapes
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

OUT_MULTIPLE = 64  # its search for clipping works on 64 rows at a time
ON_CPU = ("gemm",)  # formats with a kernel that runs without a GPU


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits per weight", "choices": (2, 3, 4)})
    group_size: int = field(
        default=128,
        metadata={
            "doc": "input features that share a scale; -1: the whole row",
            "choices": (16, 32, 64, 128, -1),
        },
    )
    symmetric: bool = field(
        default=False, metadata={"doc": "zero in the middle of the grid; false: a zero point for each group"}
    )
    format: str = field(
        default="gemm",
        metadata={
            "doc": "layout of the files; all but gemm load on a GPU only",
            "choices": ("gemm", "gemv", "gemv_fast", "llm-awq"),
        },
    )
    skip_modules: list[str] | None = field(
        default=None,
        metadata={
            "doc": "layers to leave as they are: regular expressions, matched from the start of the name"
        },
    )
    outer_bits: int | None = _outer.option()
    samples: int | None = field(
        default=None,
        metadata={"doc": "calibration sequences to use (time grows with them); null: calibration.samples"},
    )
    batch_size: int = field(default=8, metadata={"doc": "calibration sequences that run at once"})
    dequantize: bool = field(
        default=False,
        metadata={"doc": "load plain weights instead of packed kernels (faster on a CPU, same size on disk)"},
    )

    def __post_init__(self) -> None:
        _gptqmodel.check_numbers(self)
        _gptqmodel.check_dynamic(self.dynamic)

    @property
    def dynamic(self) -> dict[str, dict[str, Any]]:
        """``skip_modules`` as the library writes it."""
        return {f"-:{pattern}": {} for pattern in self.skip_modules or ()}


class Runner(BaseRunner):
    """AWQ: scales up the weights that meet large activations, then rounds; the scales
    are searched on calibration text.

    The artifact is in one of AWQ's formats, as GPTQModel writes it. Linears need an output that is a multiple
    of 64 and an input that is a multiple of 32. The library has no AWQ for lm_head, and its 8 bits are
    left out here: they load as other weights.
    """

    Options = Options
    environment = _gptqmodel.ENVIRONMENT
    requires = (_gptqmodel.VERSION,)

    @property
    def calibrates(self) -> bool:
        return True

    def check(self) -> None:
        if self.options.format not in ON_CPU and machine.device() != "cuda":
            raise RunnerUnavailable(f"format '{self.options.format}' of AWQ needs a GPU; write format: gemm")

    def check_shapes(self, shapes: Shapes) -> None:
        o = self.options
        layers = shapes.layers(lm_head=False)
        _gptqmodel.check_shapes(self.case, layers, o.group_size, o.dynamic, out_multiple=OUT_MULTIPLE)

    def compress(self) -> None:
        if stored_turned(empty_model(self.model_dir, self.case)):
            where = f"configs.{self.case.config.name}.runner"
            raise SpecError(
                f"{where}: AWQ cannot scale layers that are Conv1D, as GPT-2's; write runner: gptq"
            )
        o = self.options
        settings = {
            "method": "awq",
            "format": o.format,
            "bits": o.bits,
            "group_size": o.group_size,
            "sym": o.symmetric,
            "dynamic": o.dynamic or None,
        }
        _gptqmodel.compress(self.case, self.model_dir, self.output_model, settings, o)

    def load(self) -> LM:
        model = _gptqmodel.load(self.case, self.output_model, "awq", dequantize=self.options.dequantize)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
