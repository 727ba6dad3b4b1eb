"""bitsandbytes: 4-bit NormalFloat and Float, and LLM.int8(); no calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners._hf import copy_side_files, device, is_tied, linear_shapes, load_causal_lm, load_tokenizer, to_lm
from runners.base import BaseRunner
from scorecard.errors import SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CPU_OUT_MULTIPLE, CPU_IN_MULTIPLE = 32, 64  # what the 4-bit kernels of bitsandbytes take without a GPU


@dataclass(frozen=True)
class Options:
    format: str = field(
        default="nf4", metadata={"doc": "number format of a weight", "choices": ("nf4", "fp4", "int8")}
    )
    double_quant: bool = field(default=False, metadata={"doc": "quantize the scales of nf4 and fp4 as well"})
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})


class Runner(BaseRunner):
    """bitsandbytes through transformers: 4 bits in blocks of 64 weights, or 8 bits per row.

    The artifact is a transformers folder and loads with ``AutoModelForCausalLM``. Without a GPU the 4-bit
    formats need Linears whose output is a multiple of 32 and whose input is a multiple of 64.
    """

    Options = Options
    requires = ("bitsandbytes==0.50.2",)

    def compress(self) -> None:
        self._check_shapes()
        model = load_causal_lm(self.model_dir, self.case, quantization_config=self._config())
        # Before any forward pass: the CPU kernels repack the weights in place on their first use, and what is
        # saved after that loads as other weights.
        model.save_pretrained(self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)

    def _config(self) -> Any:
        from transformers import BitsAndBytesConfig

        skip: list[str] | None = [] if self.options.lm_head else None  # None: the library's own, lm_head
        if self.options.format == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.options.format,
            bnb_4bit_use_double_quant=self.options.double_quant,
            bnb_4bit_compute_dtype="bfloat16",
            llm_int8_skip_modules=skip,
        )

    def _check_shapes(self) -> None:
        where = f"configs.{self.case.config.name}"
        if self.options.lm_head and is_tied(self.model_dir, self.case):
            raise SpecError(f"{where}.lm_head: tied to the embeddings of this model; write lm_head: false")
        if self.options.format == "int8":
            if self.options.double_quant:
                raise SpecError(f"{where}.double_quant: int8 has no such thing; write double_quant: false")
            return
        if device() != "cpu":
            return
        shapes = linear_shapes(self.model_dir, self.case, lm_head=self.options.lm_head)
        for name, (out, width) in shapes.items():
            if out % CPU_OUT_MULTIPLE or width % CPU_IN_MULTIPLE:
                raise SpecError(
                    f"{where}.format: without a GPU {self.options.format} needs multiples of "
                    f"{CPU_OUT_MULTIPLE} x {CPU_IN_MULTIPLE} (out x in), but {name} "
                    f"is {out} x {width}; write format: int8"
                )

    def load(self) -> LM:
        model = load_causal_lm(self.output_model, self.case)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
