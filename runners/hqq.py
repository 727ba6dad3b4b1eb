"""HQQ, half-quadratic quantization: a zero point for each group, found without calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _exclude, _outer
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
    said_quantized,
    say_quantized,
    skeleton,
    use_linears,
)
from runners._shapes import Shapes, Size, check_untied
from runners.base import BaseRunner
from scorecard.errors import SpecError

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

CODES_IN_A_WORD = {8: 1, 6: 1, 5: 1, 4: 2, 3: 1, 2: 4, 1.58: 4, 1: 8}  # 3 bits are padded to ten in 32 bits
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Options:
    bits: float = field(
        default=4,
        metadata={
            "doc": "bits per weight (1.58: three levels); stored in 8 for 5 and 6, 2 for 1.58, 3.2 for 3",
            "choices": (1, 1.58, 2, 3, 4, 5, 6, 8),
        },
    )
    group_size: int = field(
        default=64, metadata={"doc": "weights that share a scale and a zero point; -1: a row or column"}
    )
    axis: int = field(
        default=1, metadata={"doc": "1: groups along the rows; 0: along the columns", "choices": (0, 1)}
    )
    optimize: str = field(
        default="proximal",
        metadata={
            "doc": "solver of the zero points: stopping early, always to the end, or none (round to nearest)",
            "choices": ("proximal", "proximal_slow", "none"),
        },
    )
    lp_norm: float = field(
        default=0.7, metadata={"doc": "p of the norm that the solver minimizes, 0 < p <= 1"}
    )
    beta: float = field(default=10.0, metadata={"doc": "strength of the solver's shrinking"})
    iters: int | None = field(
        default=None, metadata={"doc": "steps of the solver; null: 20, or 100 for proximal_slow"}
    )
    round_zero: bool | None = field(
        default=None, metadata={"doc": "start from a whole zero point; null: at 4 bits only, as the library"}
    )
    compute_dtype: str = field(
        default="auto",
        metadata={"doc": "type of the scales and of all else; auto: the model's own", "choices": DTYPES},
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    outer_bits: int | None = _outer.option()
    exclude: list[str] | None = field(default=None, metadata={"doc": _exclude.DOC})

    def __post_init__(self) -> None:
        if self.group_size != -1 and (self.group_size < 8 or self.group_size % 8):
            raise ValueError(f"group_size: HQQ cannot do {self.group_size}; write a multiple of 8 or -1")
        if not 0 < self.lp_norm <= 1:
            raise ValueError(f"lp_norm: {self.lp_norm} is no p of 0 < p <= 1; write 0.7")
        if self.beta <= 0:
            raise ValueError(f"beta: {self.beta} does not shrink; write a number above 0")
        if self.iters is not None and self.iters < 2:
            raise ValueError(f"iters: {self.iters} steps are too few; write 2 or more, or null")
        changed = (self.lp_norm, self.beta, self.iters) != (0.7, 10.0, None)
        if self.optimize == "none" and changed:
            raise ValueError("optimize: none uses no lp_norm, beta or iters; write optimize: proximal")


class Runner(BaseRunner):
    """HQQ (Badri and Shaji, 2023): the zero points minimize an l_p norm (p < 1) of the error; no calibration.

    Embeddings stay as they are: the library quantizes Linear layers only.

    Files: ``model.safetensors`` holds for each quantized layer NAME the library's own ``NAME.W_q`` (packed
    codes), ``NAME.scale`` and ``NAME.zero``, and all other tensors. The settings, equal for all layers, are
    ``quantization_config`` in ``config.json``. The library itself saves the same by pickling.
    """

    Options = Options
    environment = "quantizers"
    requires = ("hqq==0.2.8.post1",)

    def check_shapes(self, shapes: Shapes) -> None:
        check_untied(self.case, shapes, lm_head=self.options.lm_head)
        where = f"configs.{self.case.config.name}.group_size"
        for name, (out, width) in self._chosen(shapes).items():
            size = self._group_size((out, width))
            if out * width % size:
                raise SpecError(f"{where}: {size} does not divide {name} ({out} x {width}); write a divisor")
            rows = out * width // size if self.options.axis == 1 else size
            codes = CODES_IN_A_WORD[self.options.bits]
            if rows % codes:
                raise SpecError(
                    f"{where}: {name} ({out} x {width}) makes {rows} rows of codes, and {codes} of them "
                    f"share a byte; write a group_size that makes a multiple of {codes}"
                )

    def _chosen(self, shapes: Shapes) -> dict[str, Size]:
        o = self.options
        return _exclude.chosen(self.case, shapes, lm_head=o.lm_head, exclude=o.exclude)

    def _group_size(self, size: Size) -> int:
        if self.options.group_size != -1:
            return int(self.options.group_size)
        return size[1] if self.options.axis == 1 else size[0]

    def compress(self) -> None:
        import torch
        from safetensors.torch import save_file

        model = load_causal_lm(self.model_dir, self.case, dtype="auto")
        use_linears(model)
        names = self._chosen(shapes(self.model_dir, self.case))
        own = self.options.compute_dtype == "auto"
        dtype = model.dtype if own else getattr(torch, self.options.compute_dtype)
        self.set_solver()
        quantize(model, names, self.settings(), dtype)
        stored = {n: t for n, t in plain_tensors(model).items() if n.rpartition(".")[0] not in names}
        for name in names:
            stored |= _parts(name, model.get_submodule(name))
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
        save_file(stored, self.output_model / WEIGHTS, metadata={"format": "pt"})
        copy_side_files(self.model_dir, self.output_model, self.case)
        note = {"quant_method": "hqq", "compute_dtype": str(dtype).removeprefix("torch.")}
        # No skip_modules, which transformers asks for: with them it loads the model, with random weights.
        say_quantized(self.output_model, {**note, "quant_config": {"weight_quant_params": self.settings()}})
        o = self.options
        _outer.pack(self.case, self.model_dir, self.output_model, o.outer_bits, o.group_size)

    def settings(self) -> dict[str, Any]:
        """What the library calls ``weight_quant_params``."""
        o = self.options
        return {
            "nbits": o.bits,
            "channel_wise": True,
            "group_size": None if o.group_size == -1 else o.group_size,
            "optimize": o.optimize != "none",
            "round_zero": o.bits == 4 if o.round_zero is None else o.round_zero,
            "axis": o.axis,
            "view_as_float": False,
        }

    def load(self) -> LM:
        model = load_model(self)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)

    def set_solver(self) -> None:
        """Give the library's solver our settings: it has one for the whole process."""
        from functools import partial

        from hqq.core import optimize
        from hqq.core.quantize import Quantizer

        o = self.options
        slow = o.optimize == "proximal_slow"
        steps = o.iters or (100 if slow else 20)
        parameters = {"lp_norm": o.lp_norm, "beta": o.beta, "kappa": 1.01, "iters": steps}
        if slow:
            parameters |= {"tol": 0.0, "early_stop": False, "scale_gridsearch": False}
        solver = optimize.optimize_weights_proximal_slow if slow else optimize.optimize_weights_proximal
        Quantizer.optimize_weights = partial(solver, opt_params=parameters)


def quantize(
    model: PreTrainedModel, names: Iterable[str], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Replace the Linear layers ``names`` of ``model`` by the library's; the rest becomes ``dtype``.

    The library's own ``quantize_model`` does the same, but casts the rotary frequencies as well: in bfloat16
    they are off by up to 0.2 %, and the positions of a long text with them.
    """
    from hqq.core.quantize import HQQLinear

    config = {
        "weight_quant_params": settings,
        "scale_quant_params": None,
        "zero_quant_params": None,
        "offload_meta": False,
    }
    for name in names:
        linear = model.get_submodule(name)
        layer = HQQLinear.from_weights(
            linear.weight.data, linear.bias, config, compute_dtype=dtype, device=device()
        )
        model.set_submodule(name, layer)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _parts(name: str, layer: Any) -> dict[str, torch.Tensor]:
    parts = {"W_q": layer.W_q, "scale": layer.meta["scale"], "zero": layer.meta["zero"], "bias": layer.bias}
    return {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}


def load_model(runner: Runner) -> PreTrainedModel:
    """The model of the artifact, its layers the library's own."""
    import torch

    note = said_quantized(runner.output_model)
    settings = note["quant_config"]["weight_quant_params"]
    dtype = evaluation_dtype(runner.case) or getattr(torch, note["compute_dtype"])
    model = skeleton(runner.output_model, runner.case)
    tensors = read(_outer.restored(runner.output_model), dtype)
    for name in [name.removesuffix(".W_q") for name in tensors if name.endswith(".W_q")]:
        parts = {key: tensors.pop(f"{name}.{key}") for key in ("W_q", "scale", "zero")}
        bias = tensors.pop(f"{name}.bias", None)
        weight = model.get_submodule(name).weight
        model.set_submodule(name, _layer({**parts, "bias": bias}, tuple(weight.shape), settings, dtype))
    fill(model, tensors, runner.output_model)
    model.config.dtype = dtype
    return model.to(device())


def _layer(parts: dict[str, Any], shape: Size, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """The library's layer as its ``load_state_dict`` makes it from what its ``state_dict`` would hold."""
    import torch
    from hqq.core.quantize import HQQLinear, Quantizer

    size, axis = settings["group_size"], settings["axis"]
    packing = Quantizer.bit_to_packing[settings["nbits"]]
    state = {
        **parts,
        "nbits": settings["nbits"],
        "group_size": (shape[1] if axis == 1 else shape[0]) if size is None else size,
        "shape": torch.Size(shape),
        "axis": axis,
        "packing": packing,
        "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
        "view_as_float": False,
        "quant_scale": False,
        "quant_zero": False,
    }
    layer = HQQLinear(None, None, compute_dtype=dtype, device=device())
    layer.load_state_dict(state)
    return layer
