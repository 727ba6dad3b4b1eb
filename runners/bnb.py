"""bitsandbytes: 4-bit NormalFloat and Float, and LLM.int8(); no calibration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _outer
from runners._hf import copy_side_files, evaluation_dtype, load_causal_lm, load_tokenizer, shapes, to_lm
from runners._shapes import Shapes, Size, check_multiples, check_untied
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CPU_MULTIPLES = (32, 64)  # out x in: what the 4-bit kernels of bitsandbytes take without a GPU
ONLY_FOUR_BITS = {
    "double_quant": False,
    "block_size": 64,
    "quant_storage": "uint8",
    "compute_dtype": "bfloat16",
}
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Options:
    format: str = field(
        default="nf4", metadata={"doc": "number format of a weight", "choices": ("nf4", "fp4", "int8")}
    )
    double_quant: bool = field(default=False, metadata={"doc": "nf4, fp4: quantize the scales as well"})
    block_size: int = field(
        default=64,
        metadata={
            "doc": "nf4, fp4: weights that share a scale",
            "choices": (32, 64, 128, 256, 512, 1024, 2048, 4096),
        },
    )
    quant_storage: str = field(
        default="uint8",
        metadata={
            "doc": "nf4, fp4: dtype of the stored tensors that hold the codes; the bytes are the same",
            "choices": ("uint8", "bfloat16", "float16", "float32"),
        },
    )
    compute_dtype: str = field(
        default="bfloat16",
        metadata={
            "doc": "nf4, fp4: dtype that the kernels multiply in, unless evaluation.dtype names one",
            "choices": DTYPES,
        },
    )
    threshold: float = field(
        default=6.0,
        metadata={
            "doc": "int8: activations greater than this are multiplied without rounding (GPU); 0: none"
        },
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    outer_bits: int | None = _outer.option()
    skip_modules: list[str] | None = field(
        default=None,
        metadata={
            "doc": "layers to leave as they are: beginnings or ends of their names, or regular expressions"
        },
    )

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ValueError(f"threshold: {self.threshold} is less than 0; write 0 for none")
        if self.format != "int8":
            return
        for name, default in ONLY_FOUR_BITS.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name}: int8 has no such thing; write {name}: {str(default).lower()}")


class Runner(BaseRunner):
    """bitsandbytes through transformers: 4 bits in blocks of weights (QLoRA, Dettmers et al. 2023,
    arXiv:2305.14314), or 8 bits per row (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339).

    The artifact is a transformers folder and loads with ``AutoModelForCausalLM``. Without a GPU the 4-bit
    formats need Linears whose output is a multiple of 32 and whose input is a multiple of 64, and int8 keeps
    no activation out of the rounding, whatever ``threshold`` says.
    """

    Options = Options
    environment = "quantizers"
    requires = ("bitsandbytes==0.50.2",)

    def check_shapes(self, shapes: Shapes) -> None:
        o = self.options
        check_untied(self.case, shapes, lm_head=o.lm_head)
        layers = self._kept(shapes.layers(lm_head=o.lm_head))
        if o.format != "int8" and machine.device() == "cpu":
            who = f"the {o.format} of bitsandbytes without a GPU"
            check_multiples(self.case, layers, CPU_MULTIPLES, who, "write format: int8")

    def _kept(self, layers: dict[str, Size]) -> dict[str, Size]:
        """The layers that are compressed. Raises SpecError for a name of skip_modules that none has."""
        left = dict(layers)
        for pattern in self.options.skip_modules or ():
            found = [name for name in layers if _matches(pattern, name)]
            if not found:
                where = f"configs.{self.case.config.name}.skip_modules"
                raise SpecError(
                    f"{where}: no layer is called '{pattern}'; write a name such as {next(iter(layers))}"
                )
            for name in found:
                left.pop(name, None)
        return left

    def compress(self) -> None:
        with _block_size(self.options.block_size):
            model = load_causal_lm(
                self.model_dir, self.case, dtype="auto", quantization_config=self._config()
            )
        # Before any forward pass: the CPU kernels repack the weights in place on their first use, and what is
        # saved after that loads as other weights.
        model.save_pretrained(self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)
        o = self.options
        _outer.pack(self.case, self.model_dir, self.output_model, o.outer_bits, o.block_size)

    def _config(self) -> Any:
        from transformers import BitsAndBytesConfig

        o = self.options
        head = [] if o.lm_head else list(shapes(self.model_dir, self.case).lm_head)
        skip = sorted([*head, *(o.skip_modules or ())])
        if o.format == "int8":
            return BitsAndBytesConfig(
                load_in_8bit=True, llm_int8_threshold=o.threshold, llm_int8_skip_modules=skip
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=o.format,
            bnb_4bit_use_double_quant=o.double_quant,
            bnb_4bit_quant_storage=o.quant_storage,
            bnb_4bit_compute_dtype=o.compute_dtype,
            llm_int8_skip_modules=skip,
        )

    def load(self) -> LM:
        import bitsandbytes

        model = load_causal_lm(_outer.restored(self.output_model), self.case)
        if dtype := evaluation_dtype(self.case):
            for module in model.modules():
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.compute_dtype, module.compute_type_is_set = dtype, True
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)


def _matches(pattern: str, name: str) -> bool:
    """Whether transformers leaves layer ``name`` alone for a ``pattern`` of llm_int8_skip_modules."""
    return name.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) is not None


@contextmanager
def _block_size(size: int) -> Iterator[None]:
    """Let transformers make 4-bit layers with another block size, for which it has no setting.

    The size is stored with each layer, so that loading needs nothing of the kind.
    """
    import bitsandbytes

    plain = bitsandbytes.nn.Linear4bit

    class Linear4bit(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.weight.blocksize = size

    bitsandbytes.nn.Linear4bit = Linear4bit
    try:
        yield
    finally:
        bitsandbytes.nn.Linear4bit = plain
