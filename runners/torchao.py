"""torchao: whole numbers of 1 to 8 bits, 8-bit floats, NVFP4 and the MX formats; no calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _exclude, _torchao
from runners._hf import (
    copy_side_files,
    device,
    evaluation_dtype,
    load_causal_lm,
    load_tokenizer,
    shapes,
    to_lm,
)
from runners._rebuild import (
    fill,
    plain_tensors,
    say_quantized,
    skeleton,
    use_linears,
)
from runners._shapes import Shapes, Size, check_group_size, check_multiples, check_untied
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

FORMATS = ("int8", "intx", "int4", "float8", "nvfp4", "mxfp8", "mxfp4")
BITS = (1, 2, 3, 4, 5, 6, 7, 8)
# (format, activations) -> the compute capability of the GPU that has kernels for it; the others run anywhere
CAPABILITY = {
    ("int4", "none"): "8.0",
    ("float8", "dynamic"): "8.9",
    ("nvfp4", "dynamic"): "10.0",
    ("mxfp8", "dynamic"): "10.0",
    ("mxfp4", "dynamic"): "10.0",
}
MULTIPLES = {"nvfp4": (16, 16), "mxfp8": (1, 32), "mxfp4": (1, 32)}
# option -> its default, and the formats that know it
ONLY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bits": (None, ("intx",)),
    "group_size": (None, ("int8", "intx", "int4", "float8")),
    "symmetric": (True, ("intx",)),
    "algorithm": ("affine", ("intx", "int4")),
    "scale_dtype": ("auto", ("intx",)),
    "float8_dtype": ("e4m3fn", ("float8",)),
    "tensor_scale": (True, ("nvfp4",)),
}


@dataclass(frozen=True)
class Options:
    format: str = field(default="int8", metadata={"doc": "number format of a weight", "choices": FORMATS})
    activations: str = field(
        default="none",
        metadata={
            "doc": "dynamic: the inputs of a layer too, with a scale for each token; asymmetric: int8, and a "
            "zero point (intx always has one)",
            "choices": ("none", "dynamic", "asymmetric"),
        },
    )
    bits: int | None = field(
        default=None, metadata={"doc": "intx: bits per weight", "choices": (None, *BITS)}
    )
    group_size: int | None = field(
        default=None,
        metadata={
            "doc": "input features that share a scale; -1: the row; 0: the whole layer (int8, float8); "
            "null: 32 for intx, 128 for int4, the row for int8 and float8"
        },
    )
    symmetric: bool = field(default=True, metadata={"doc": "intx: no zero point; false: one for each group"})
    algorithm: str = field(
        default="affine",
        metadata={
            "doc": "how scales are found: from the greatest weights; intx: without clipping on either side; "
            "with HQQ's solver (intx: scales only)",
            "choices": ("affine", "no_clipping", "hqq"),
        },
    )
    scale_dtype: str = field(
        default="auto",
        metadata={
            "doc": "intx: type of the scales; auto: the model's own",
            "choices": ("auto", "bfloat16", "float16", "float32"),
        },
    )
    float8_dtype: str = field(
        default="e4m3fn", metadata={"doc": "float8: its type", "choices": ("e4m3fn", "e5m2")}
    )
    tensor_scale: bool = field(default=True, metadata={"doc": "nvfp4: a second scale, for the whole layer"})
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    embeddings: bool = field(
        default=False, metadata={"doc": "the input embeddings too, as whole numbers of embedding_bits"}
    )
    embedding_bits: int = field(default=8, metadata={"doc": "bits of an embedding's weight", "choices": BITS})
    embedding_group_size: int = field(
        default=-1, metadata={"doc": "features of an embedding that share a scale; -1: the row"}
    )
    exclude: list[str] | None = field(default=None, metadata={"doc": _exclude.DOC})

    def __post_init__(self) -> None:
        for name, (default, formats) in ONLY.items():
            if self.format not in formats and getattr(self, name) != default:
                raise ValueError(f"{name}: {self.format} has no such thing; write format: {formats[0]}")
        self._check_activations()
        if self.format == "intx":
            self._check_intx()
        size = self.group_size
        if self.format == "int4" and size not in (None, 32, 64, 128, 256):
            raise ValueError(f"group_size: int4 cannot do {size}; write 32, 64, 128 or 256")
        if size is not None and size < (-1 if self.format == "intx" else 0) and size != -1:
            raise ValueError(f"group_size: {size} is no number of features; write 32 or -1")
        if self.format == "int4" and self.algorithm == "no_clipping":
            raise ValueError("algorithm: int4 has no 'no_clipping'; write affine or hqq")
        if not self.embeddings and (self.embedding_bits, self.embedding_group_size) != (8, -1):
            raise ValueError("embedding_bits: without effect; write embeddings: true")

    def _check_activations(self) -> None:
        if self.activations == "none":
            if self.format.startswith("mx"):
                raise ValueError(
                    f"activations: {self.format} rounds them as well; write activations: dynamic"
                )
            return
        if self.format == "int4":
            raise ValueError("activations: int4 rounds none; write format: intx, bits: 4")
        if self.activations == "asymmetric" and self.format != "int8":
            raise ValueError(f"activations: {self.format} has no 'asymmetric'; write activations: dynamic")
        if self.format in ("int8", "float8") and (self.group_size or -1) > 0:
            raise ValueError("group_size: with rounded activations a row or the layer; write -1 or 0")
        if self.float8_dtype != "e4m3fn":
            raise ValueError("float8_dtype: with rounded activations e4m3fn only; write float8_dtype: e4m3fn")

    def _check_intx(self) -> None:
        if self.bits is None:
            raise ValueError("bits: intx needs a width; write bits: 4")
        if self.group_size == 0:
            raise ValueError("group_size: intx has no scale for the whole layer; write -1 for the row")
        if self.algorithm != "affine" and not self.symmetric:
            raise ValueError(f"algorithm: {self.algorithm} knows no zero points; write symmetric: true")
        if self.algorithm == "no_clipping" and self.bits == 1:
            raise ValueError("algorithm: one bit without clipping has no positive level; write affine")


class Runner(BaseRunner):
    """torchao (``quantize_``): weights, or weights and activations, of the Linear layers and the embeddings.

    | format | what it is |
    |---|---|
    | int8 | whole numbers of 8 bits |
    | intx | whole numbers of ``bits`` bits in groups; ``bits: 4`` with ``activations: dynamic`` is 8da4w |
    | int4 | tinygemm's tile-packed 4 bits; NVIDIA GPU of compute capability 8.0 |
    | float8 | 8-bit floats; activations: GPU, 8.9 |
    | nvfp4 | E2M1 floats in blocks of 16 with E4M3 scales; activations: GPU, 10.0 |
    | mxfp8, mxfp4 | OCP Microscaling Formats 1.0, blocks of 32; GPU, 10.0 |

    The artifact is a transformers folder in torchao's safetensors layout and loads with
    ``AutoModelForCausalLM``, but for whole numbers of fewer than 8 bits (intx, embeddings): in memory torchao
    takes a byte for each of those. Here they are stored in their bits, as ``NAME._weight_packed`` instead of
    ``NAME._weight_qdata`` (code minus least code, see ``runners/_packing.py``), and zero points that are all
    zero are left out; ``load`` makes the library's tensors again.
    """

    Options = Options
    environment = "quantizers"
    requires = ("torchao==0.18.0",)

    def check(self) -> None:
        o = self.options
        capability = CAPABILITY.get((o.format, o.activations))
        if capability and machine.device() != "cuda":
            raise RunnerUnavailable(
                f"needs an NVIDIA GPU of compute capability {capability}: torchao has no {o.format} with "
                f"activations: {o.activations} for a CPU; write format: intx or run on such a GPU"
            )

    def check_shapes(self, shapes: Shapes) -> None:
        o, where = self.options, f"configs.{self.case.config.name}"
        check_untied(self.case, shapes, lm_head=o.lm_head)
        if o.embeddings and shapes.tied:
            raise SpecError(f"{where}.embeddings: tied to the lm_head of this model; write embeddings: false")
        layers = self._chosen(shapes)
        check_group_size(self.case, layers, _torchao.group_size(o))
        multiples = (
            (16, 16) if (o.format, o.activations) == ("float8", "dynamic") else MULTIPLES.get(o.format)
        )
        if multiples:
            check_multiples(self.case, layers, multiples, f"torchao's {o.format}", "write format: intx")
        size, width = o.embedding_group_size, next((size[1] for size in shapes.lm_head.values()), None)
        if o.embeddings and size != -1 and (size < 1 or (width and width % size)):
            raise SpecError(
                f"{where}.embedding_group_size: {size} does not divide the {width} features of an embedding; "
                f"write a divisor of {width} or -1"
            )

    def _chosen(self, shapes: Shapes) -> dict[str, Size]:
        o = self.options
        return _exclude.chosen(self.case, shapes, lm_head=o.lm_head, exclude=o.exclude)

    def compress(self) -> None:
        from torchao.quantization import quantize_

        model = load_causal_lm(self.model_dir, self.case, dtype="auto")
        use_linears(model)
        names = set(self._chosen(shapes(self.model_dir, self.case)))
        config = _torchao.weight_config(self.options)
        quantize_(model, config, lambda module, name: name in names)
        if self.options.embeddings:
            table = model.get_input_embeddings()
            quantize_(model, _torchao.embedding_config(self.options), lambda module, name: module is table)
        packed = _torchao.write(plain_tensors(model), self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case)
        say_quantized(self.output_model, _torchao.note(config, self.options, packed=packed))

    def load(self) -> LM:
        return to_lm(load_model(self), load_tokenizer(self.output_model, self.case), self.case)


def load_model(runner: Runner) -> PreTrainedModel:
    """The model of the artifact, its weights the library's tensors."""
    model = skeleton(runner.output_model, runner.case)
    dtype = evaluation_dtype(runner.case)
    fill(model, _torchao.restored(runner.output_model, dtype), runner.output_model)
    return model.to(device()) if dtype is None else model.to(device=device(), dtype=dtype)
