"""optimum-quanto: whole numbers of 2, 4 or 8 bits, or 8-bit floats; no calibration."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _exclude
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
    WEIGHTS,
    fill,
    plain_tensors,
    read,
    say_quantized,
    skeleton,
    use_linears,
)
from runners._shapes import Shapes, Size, check_untied
from runners.base import BaseRunner

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

MAP = "quanto_qmap.json"  # the library's own name


@dataclass(frozen=True)
class Options:
    format: str = field(
        default="qint4",
        metadata={
            "doc": "number format of a weight; qfloat8 is E4M3 without infinities (e4m3fn)",
            "choices": ("qint2", "qint4", "qint8", "qfloat8", "qfloat8_e4m3fnuz", "qfloat8_e5m2"),
        },
    )
    optimizer: str = field(
        default="max",
        metadata={
            "doc": "how scales are found: from the greatest weights, or (qint2, qint4) with HQQ's solver",
            "choices": ("max", "hqq"),
        },
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    exclude: list[str] | None = field(default=None, metadata={"doc": _exclude.DOC})

    def __post_init__(self) -> None:
        if self.optimizer == "hqq" and self.format not in ("qint2", "qint4"):
            raise ValueError(f"optimizer: {self.format} has no zero point to solve for; write optimizer: max")


class Runner(BaseRunner):
    """optimum-quanto: qint8 and qfloat8 with a scale for each row, qint4 and qint2 with a scale and a shift
    for each group of 128 weights of a row. The library fixes the group: 128, 96, 64 or 32 weights, the first
    that divides the row; the whole row where none does or where it has 128 weights or less.

    Embeddings stay as they are: the library quantizes Linear layers only. Activations do too: while
    calibrating, the library turns the rounding of some outputs off, but does not store that it did, so that
    the reloaded model is another one.

    The artifact is the folder that the library's ``QuantizedModelForCausalLM`` writes and loads:
    ``model.safetensors`` with, for each layer NAME, ``NAME.weight._data`` (packed codes), ``._scale`` and
    ``._shift``, and ``quanto_qmap.json`` with the format of each layer.
    """

    Options = Options
    environment = "quantizers"
    requires = ("optimum-quanto==0.2.7",)

    def check_shapes(self, shapes: Shapes) -> None:
        check_untied(self.case, shapes, lm_head=self.options.lm_head)
        self._chosen(shapes)

    def _chosen(self, shapes: Shapes) -> dict[str, Size]:
        o = self.options
        return _exclude.chosen(self.case, shapes, lm_head=o.lm_head, exclude=o.exclude)

    def compress(self) -> None:
        from optimum.quanto import freeze, quantization_map, quantize
        from optimum.quanto.tensor import HqqOptimizer
        from safetensors.torch import save_file

        model = load_causal_lm(self.model_dir, self.case, dtype="auto")
        use_linears(model)
        names = self._chosen(shapes(self.model_dir, self.case))
        optimizer = HqqOptimizer() if self.options.optimizer == "hqq" else None  # None: the format's own
        quantize(model, weights=self._weights(), include=list(names), optimizer=optimizer)
        freeze(model)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_tensors(model).items()}
        save_file(stored, self.output_model / WEIGHTS, metadata={"format": "pt"})
        copy_side_files(self.model_dir, self.output_model, self.case)
        layers = json.dumps(quantization_map(model), indent=1, sort_keys=True)
        (self.output_model / MAP).write_text(layers + "\n", encoding="utf-8")
        say_quantized(self.output_model, {"quant_method": "quanto", "weights": self.options.format})

    def _weights(self) -> Any:
        from optimum.quanto import qfloat8, qtypes

        return qfloat8 if self.options.format == "qfloat8" else qtypes[self.options.format]

    def load(self) -> LM:
        return to_lm(load_model(self), load_tokenizer(self.output_model, self.case), self.case)


def load_model(runner: Runner) -> PreTrainedModel:
    """The model of the artifact, its layers the library's own, as ``requantize`` makes them."""
    from optimum.quanto import quantize

    model = skeleton(runner.output_model, runner.case)
    layers = json.loads((runner.output_model / MAP).read_text(encoding="utf-8"))
    for weights in sorted({layer["weights"] for layer in layers.values()}):
        names = [name for name, layer in layers.items() if layer["weights"] == weights]
        quantize(model, weights=weights, include=names)
    fill(model, read(runner.output_model, evaluation_dtype(runner.case)), runner.output_model)
    leave_inference_mode(model)
    return model.to(device())


def leave_inference_mode(model: PreTrainedModel) -> None:
    """Let ``model`` run under ``torch.no_grad`` instead: the library's qint2 and qint4 cannot do without.

    They raise ``Cannot set version_counter for inference tensor`` where no faster kernel takes their place.
    """
    import torch

    forward = model.forward

    @functools.wraps(forward)
    def run(*arguments: Any, **settings: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return forward(*arguments, **settings)

    model.forward = run
