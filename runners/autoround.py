"""AutoRound (Cheng et al. 2023, arXiv:2309.05516): rounding learnt by signed gradient descent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import _outer
from runners._calibration import token_lists
from runners._hf import (
    copy_side_files,
    device,
    load_causal_lm,
    load_tokenizer,
    model_from_state,
    store_as_original,
    to_lm,
    weight_files,
    widened,
)
from runners._shapes import Shapes, check_group_size, check_multiples, check_untied
from runners.base import BaseRunner
from scorecard.errors import ScorecardError, SpecError, nearest

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEATURE_MULTIPLE = 32  # both sides of a Linear: codes are packed into 32-bit words
INTEGER = "int"
# Schemes that say themselves how many bits and which groups.
FIXED = ("MXFP4", "MXFP8", "NVFP4", "FP8_STATIC", "FPW8A16", "INT8_W8A8")
GROUPS = {"MXFP4": 32, "MXFP8": 32, "NVFP4": 16}
BITS = {"auto_gptq": (2, 3, 4, 8), "auto_awq": (4,)}
PACKED = ("auto_round", "auto_gptq")  # formats whose layers load packed, as ``qweight``
LEARNING = (
    "lr",
    "minmax_lr",
    "momentum",
    "nblocks",
    "gradient_accumulate_steps",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "enable_adam",
)
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in the word the columns 0 to 7 are
OVERRIDES = {"bits": "bits", "group_size": "group_size", "symmetric": "sym"}


@dataclass(frozen=True)
class Options:
    scheme: str = field(
        default=INTEGER,
        metadata={
            "doc": "int: whole numbers, by bits, group_size and symmetric; the others are what their "
            "names say, most with rounded activations",
            "choices": (INTEGER, *FIXED),
        },
    )
    bits: int = field(default=4, metadata={"doc": "int: bits per weight", "choices": (2, 3, 4, 5, 6, 7, 8)})
    group_size: int = field(
        default=128, metadata={"doc": "int: input features that share a scale; -1: the whole row"}
    )
    symmetric: bool = field(
        default=True,
        metadata={"doc": "int: zero in the middle of the grid; false: a zero point for each group"},
    )
    format: str = field(
        default="auto_round",
        metadata={
            "doc": "layout of the files: its own, or that of GPTQ, AWQ or compressed-tensors",
            "choices": ("auto_round", "auto_gptq", "auto_awq", "llm_compressor"),
        },
    )
    iters: int = field(default=200, metadata={"doc": "steps for each block; 0: round to nearest"})
    lr: float | None = field(default=None, metadata={"doc": "step size of the rounding; null: 1 / iters"})
    minmax_lr: float | None = field(default=None, metadata={"doc": "step size of the ranges; null: as lr"})
    momentum: float = field(default=0.0, metadata={"doc": "momentum of the steps"})
    nblocks: int = field(default=1, metadata={"doc": "blocks that are learnt together"})
    gradient_accumulate_steps: int = field(default=1, metadata={"doc": "batches for each step"})
    enable_minmax_tuning: bool = field(default=True, metadata={"doc": "learn the range of each group too"})
    enable_norm_bias_tuning: bool = field(default=False, metadata={"doc": "learn norms and biases too"})
    enable_quanted_input: bool = field(
        default=True, metadata={"doc": "calibrate a block on what the compressed blocks before it give"}
    )
    enable_adam: bool = field(default=False, metadata={"doc": "Adam in place of signed gradients"})
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    dequantize: bool = field(
        default=False,
        metadata={
            "doc": "int in the formats auto_round and auto_gptq: load plain weights instead of packed "
            "kernels (faster on a CPU, same size on disk)"
        },
    )
    outer_bits: int | None = _outer.option()
    layer_config: dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={
            "doc": f"of single layers: full name -> some of {', '.join(OVERRIDES)} (bits 16: left alone)"
        },
    )
    skip_modules: list[str] | None = field(
        default=None, metadata={"doc": "layers to leave as they are: parts of their names"}
    )
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )
    batch_size: int = field(default=8, metadata={"doc": "calibration sequences for each step"})
    low_gpu_mem_usage: bool = field(
        default=False, metadata={"doc": "keep activations in host memory (slower)"}
    )
    seed: int = field(default=42, metadata={"doc": "seed of the order of the calibration sequences"})

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "nblocks", "gradient_accumulate_steps"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name}: {count} is less than 1; write a whole number from 1")
        if self.iters < 0:
            raise ValueError(f"iters: {self.iters} is less than 0; write 0 for rounding to nearest")
        if self.dequantize and (self.scheme != INTEGER or self.format not in PACKED):
            raise ValueError("dequantize: only for scheme int in auto_round or auto_gptq; leave it out")
        _check_format(self)
        for layer, options in (self.layer_config or {}).items():
            unknown = next((name for name in options if name not in OVERRIDES), None)
            if unknown:
                raise ValueError(
                    f"layer_config: '{layer}' has an unknown '{unknown}'; {nearest(unknown, OVERRIDES)}"
                )


def _check_format(o: Options) -> None:
    if o.scheme != INTEGER:
        if o.format in BITS:
            raise ValueError(
                f"format: {o.format} has no {o.scheme}; write format: auto_round or llm_compressor"
            )
        for name in ("bits", "group_size", "symmetric"):
            if getattr(o, name) != type(o).__dataclass_fields__[name].default:
                raise ValueError(f"{name}: {o.scheme} has its own; leave it out, or write scheme: int")
    elif o.bits not in BITS.get(o.format, (o.bits,)):
        wanted = ", ".join(map(str, BITS[o.format]))
        raise ValueError(f"bits: {o.format} does not have {o.bits}; write one of {wanted}")
    elif o.bits == 8 and not o.symmetric and o.format != "llm_compressor":
        raise ValueError("symmetric: 8 bits are symmetric in this format; write symmetric: true")


class Runner(BaseRunner):
    """AutoRound: learns for each weight whether to round up or down, and the range of each group, so that a
    block's output on calibration text changes least.

    Reloads through transformers and auto-round's own kernels, on a CPU too. Both sides of every Linear must
    be multiples of 32.
    """

    Options = Options
    environment = "quantizers"
    requires = ("auto-round==0.16.1",)

    @property
    def calibrates(self) -> bool:
        return True  # without iterations too: the library looks for a data set even where it reads none

    def check_shapes(self, shapes: Shapes) -> None:
        o = self.options
        check_untied(self.case, shapes, lm_head=o.lm_head)
        layers = shapes.layers(lm_head=o.lm_head)
        where = f"configs.{self.case.config.name}"
        for name in o.layer_config or {}:
            if name not in layers:
                raise SpecError(f"{where}.layer_config: no layer is called '{name}'; {nearest(name, layers)}")
        for part in o.skip_modules or ():
            if not any(part in name for name in layers):
                raise SpecError(f"{where}.skip_modules: no layer's name has '{part}'; write q_proj, say")
        kept = {name: size for name, size in layers.items() if not self._left_alone(name)}
        for name, size in kept.items():
            own = (o.layer_config or {}).get(name, {})
            group_size = own.get(
                "group_size", GROUPS.get(o.scheme, o.group_size if o.scheme == INTEGER else -1)
            )
            check_group_size(self.case, {name: size}, group_size)
        multiples = (FEATURE_MULTIPLE, FEATURE_MULTIPLE)
        check_multiples(self.case, kept, multiples, "AutoRound", "write another runner, such as rtn")

    def _left_alone(self, name: str) -> bool:
        own = (self.options.layer_config or {}).get(name, {})
        return own.get("bits", 0) >= 16 or any(part in name for part in self.options.skip_modules or ())

    def compress(self) -> None:
        os.environ["TQDM_DISABLE"] = "1"
        from auto_round import AutoRound

        tokenizer = load_tokenizer(self.model_dir, self.case)
        settings = {**self._settings(), **self._calibration(tokenizer)}
        work = AutoRound(load_causal_lm(self.model_dir, self.case, dtype="auto"), tokenizer, **settings)
        with tempfile.TemporaryDirectory(dir=self.output_model) as scratch:
            work.quantize_and_save(scratch, format=self._format())
            _flatten(Path(scratch), self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)
        store_as_original(self.model_dir, self.output_model)
        o = self.options
        _outer.pack(self.case, self.model_dir, self.output_model, o.outer_bits, o.group_size)

    def _format(self) -> str:
        o = self.options
        if (
            o.format == "auto_round"
            and o.scheme == INTEGER
            and not (o.symmetric and o.bits in BITS["auto_gptq"])
        ):
            return "auto_round:gptqmodel"  # of 4 bits it would be AWQ's layout, which has no kernel here
        return str(o.format)

    def _calibration(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        import torch

        sequences = token_lists(self.case.calibration, tokenizer, self.options.samples)
        dataset = [torch.tensor([ids]) for ids in sequences]
        return {"dataset": dataset, "nsamples": len(sequences), "seqlen": len(sequences[0])}

    def _settings(self) -> dict[str, Any]:
        o = self.options
        grid = {"bits": o.bits, "group_size": o.group_size, "sym": o.symmetric}
        return {
            **(grid if o.scheme == INTEGER else {"scheme": o.scheme}),
            "iters": o.iters,
            **({name: getattr(o, name) for name in LEARNING} if o.iters else {}),
            "layer_config": {name: _translated(own) for name, own in (o.layer_config or {}).items()} or None,
            "ignore_layers": ",".join(o.skip_modules or ()),
            "quant_lm_head": o.lm_head,
            "batch_size": o.batch_size,
            "low_gpu_mem_usage": o.low_gpu_mem_usage,
            "seed": o.seed,
            "device_map": device(),
            "enable_torch_compile": False,
        }

    def load(self) -> LM:
        from transformers import AutoRoundConfig

        if self.options.format == "auto_awq":
            model = model_from_state(self.output_model, self.case, self._unpacked())
        else:
            # Of GPTQ's format transformers asks for another library; auto-round reads it too.
            o, folder = self.options, _outer.restored(self.output_model)
            wide = self.case.evaluation.dtype == "float32" and o.scheme == INTEGER and o.format in PACKED
            config = AutoRoundConfig(backend="torch" if wide else "auto")
            settings = {"quantization_config": config} if wide or o.format in BITS else {}
            model = load_causal_lm(folder, self.case, **settings)
            if wide:  # whatever it is asked for, it makes the model float16 on most of its kernels
                model = widened(model, folder)
            if o.dequantize:
                unpack_linears(model)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)

    def _unpacked(self) -> dict[str, torch.Tensor]:
        """Plain weights: without gptqmodel, AWQ's layout has no kernel."""
        from safetensors.torch import load_file

        stored: dict[str, torch.Tensor] = {}
        for path in weight_files(_outer.restored(self.output_model)):
            stored |= load_file(path)
        for name in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
            parts = (stored.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
            stored[f"{name}.weight"] = awq_weight(*parts)
        return stored


def unpack_linears(model: PreTrainedModel) -> None:
    """Put a plain Linear in place of each packed layer: its weight is what that makes of unit vectors."""
    import torch

    for name, module in list(model.named_modules()):
        if hasattr(module, "qweight"):
            bias, module.bias = module.bias, None
            unit = torch.eye(module.infeatures, dtype=model.dtype, device=module.qweight.device)
            with torch.no_grad():
                weight = module(unit).T.contiguous()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                linear.bias = torch.nn.Parameter(bias.to(weight.dtype), requires_grad=False)
            model.set_submodule(name, linear)


def awq_weight(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] of AWQ's GEMM layout: 4 bits, eight columns to an int32, ordered by AWQ_PLACES.

    qweight: int32 [in, out / 8]; qzeros: int32 [groups, out / 8]; scales: [groups, out].
    """
    import torch

    shifts = torch.tensor([4 * place for place in AWQ_PLACES])
    codes, zeros = ((words.unsqueeze(-1) >> shifts & 15).flatten(1) for words in (qweight, qzeros))
    size = len(codes) // len(scales)
    steps = (codes - zeros.repeat_interleave(size, 0)) * scales.float().repeat_interleave(size, 0)
    return steps.T.contiguous()


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    return {OVERRIDES[name]: value for name, value in options.items()}


def _flatten(folder: Path, output_model: Path) -> None:
    """Move the one model that the library wrote somewhere in ``folder`` to where it belongs."""
    configs = sorted(folder.rglob("config.json"))
    if len(configs) != 1:
        raise ScorecardError(f"autoround: left {len(configs)} models, not one; look at the log of the stage")
    for path in sorted(configs[0].parent.iterdir()):
        if path.name != "quantization_config.json":  # a copy of what config.json says
            shutil.move(path, output_model / path.name)
