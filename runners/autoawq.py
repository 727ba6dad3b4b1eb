"""AutoAWQ: activation-aware weight quantization, by the library that most AWQ files were made with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._calibration import token_lists
from runners._hf import copy_side_files, device, load_config, load_tokenizer, to_lm
from runners._old_transformers import readable, translate
from runners._shapes import Shapes, check_group_size, check_multiples
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import ArtifactError, RunnerUnavailable, SpecError
from scorecard.spec import Case

if TYPE_CHECKING:
    from lm_eval.api.model import LM

BROKEN = ("gpt_bigcode", "opt")  # the library lists them, and asks their modules for parts they do not have
EXTENSIONS = {"gemv": "awq_ext", "gemv_fast": "awq_v2_ext", "marlin": "marlin_cuda"}  # of autoawq-kernels


@dataclass(frozen=True)
class Options:
    bits: int = field(
        default=4, metadata={"doc": "bits of a weight; the library packs no other", "choices": (4,)}
    )
    group_size: int = field(default=128, metadata={"doc": "weights that share a scale"})
    symmetric: bool = field(
        default=False, metadata={"doc": "no zero points: what the format marlin wants, and no other takes"}
    )
    format: str = field(
        default="gemm",
        metadata={
            "doc": "layout of the packed weights; all but gemm need a GPU and the autoawq-kernels package",
            "choices": ("gemm", *EXTENSIONS),
        },
    )
    duo_scaling: bool = field(
        default=True,
        metadata={"doc": "look for scales by weights and activations, else by activations alone"},
    )
    apply_clip: bool = field(default=True, metadata={"doc": "look for the best clipping of each group too"})
    skip_modules: list[str] | None = field(
        default=None, metadata={"doc": "leave Linears alone whose name contains one of these"}
    )
    parallel_samples: int | None = field(
        default=None, metadata={"doc": "sequences that run at once; null for all (faster, more memory)"}
    )
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences; null for calibration.samples"}
    )

    def __post_init__(self) -> None:
        if self.group_size < 1:  # the library takes -1 and fails on it
            raise ValueError(f"group_size: {self.group_size} is no size; write a positive number")
        if self.symmetric != (self.format == "marlin"):
            needed = str(self.format == "marlin").lower()
            raise ValueError(f"symmetric: not possible with format {self.format}; write symmetric: {needed}")
        for name in ("samples", "parallel_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is too few; write at least 1, or null")


class Runner(BaseRunner):
    """AutoAWQ 0.2.9: 4 bits in groups, after scaling the channels that the activations find important.

    Lin et al., AWQ (https://arxiv.org/abs/2306.00978). The library is no longer developed and wants
    transformers 4; its files load with transformers 5 and vLLM too. Layers are computed in float16. The
    output head stays as it is. Without a GPU only the format gemm runs, through torch.
    """

    Options = Options
    environment = "autoawq"
    requires = ("autoawq==0.2.9",)

    @property
    def calibrates(self) -> bool:
        return True

    def check(self) -> None:
        if self.options.format != "gemm" and machine.device() != "cuda":
            raise RunnerUnavailable(
                f"format {self.options.format} of autoawq needs a GPU; run it on one, or write format: gemm"
            )

    def check_shapes(self, shapes: Shapes) -> None:
        skipped = self.options.skip_modules or []
        layers = {
            name: size for name, size in shapes.body.items() if not any(part in name for part in skipped)
        }
        check_group_size(self.case, layers, self.options.group_size)
        check_multiples(self.case, layers, (8, 1), "autoawq", "name the layer in skip_modules")

    def compress(self) -> None:
        from awq import AutoAWQForCausalLM

        config = load_config(self.model_dir, self.case)
        self._check_architecture(str(config.model_type))
        tokenizer = load_tokenizer(self.model_dir, self.case)
        sequences = token_lists(self.case.calibration, tokenizer, self.options.samples)
        model = AutoAWQForCausalLM.from_pretrained(
            str(readable(self.model_dir)),
            torch_dtype=_dtype(self.case, "auto"),
            trust_remote_code=self.case.model.trust_remote_code,
        )
        left = [*(getattr(model, "modules_to_not_convert", None) or []), *(self.options.skip_modules or [])]
        if left:
            model.modules_to_not_convert = left
        model.quantize(tokenizer, **self._settings(sequences))
        model.model.config.use_cache = getattr(config, "use_cache", True)  # the library switches it off
        model.save_quantized(str(self.output_model))
        _rewrite_metadata(self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)
        translate(self.output_model)

    def _check_architecture(self, kind: str) -> None:
        from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP

        if kind not in AWQ_CAUSAL_LM_MODEL_MAP or kind in BROKEN:
            where = f"configs.{self.case.config.name}.runner"
            raise SpecError(f"{where}: autoawq does not take the architecture '{kind}'; write runner: awq")

    def _settings(self, sequences: list[list[int]]) -> dict[str, Any]:
        """The arguments of the library's ``quantize``."""
        options = self.options
        return {
            "quant_config": {
                "w_bit": options.bits,
                "q_group_size": options.group_size,
                "zero_point": not options.symmetric,
                "version": options.format,
            },
            "calib_data": sequences,
            "max_calib_samples": len(sequences),
            "max_calib_seq_len": len(sequences[0]),
            "duo_scaling": options.duo_scaling,
            "apply_clip": options.apply_clip,
            "n_parallel_calib_samples": options.parallel_samples,
        }

    def load(self) -> LM:
        from awq import AutoAWQForCausalLM

        self._check_extension()
        place = device()
        with _torch_kernels() if place == "cpu" else nullcontext():
            loaded = AutoAWQForCausalLM.from_quantized(
                str(self.output_model),
                torch_dtype=_dtype(self.case, "float16"),
                trust_remote_code=self.case.model.trust_remote_code,
                fuse_layers=False,
                device_map={"": place},
            )
        model = loaded.model
        empty = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
        if empty:  # the library's loader does not miss what a file lacks
            raise ArtifactError(f"{self.output_model}: holds no {empty}; compress again")
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)

    def _check_extension(self) -> None:
        needed = EXTENSIONS.get(self.options.format)
        if needed and importlib.util.find_spec(needed) is None:
            raise RunnerUnavailable(
                f"format {self.options.format} of autoawq needs the extension {needed}; "
                "install autoawq-kernels for this torch, or write format: gemm"
            )


def _dtype(case: Case, default: str) -> Any:
    """``evaluation.dtype`` as a torch dtype; ``default`` (what the library's own loader takes) for auto."""
    import torch

    name = default if case.evaluation.dtype == "auto" else case.evaluation.dtype
    return name if name == "auto" else getattr(torch, name)


@contextmanager
def _torch_kernels() -> Iterator[None]:
    """Let the library load for a CPU without Intel's extension, and multiply with torch.

    It takes Triton for usable wherever it is installed; here that would end in an error.
    """
    from awq.models import base as models
    from awq.modules.linear import gemm

    found, models.get_best_device = models.get_best_device, lambda: "cuda:0"
    gemm.TRITON_AVAILABLE = False
    try:
        yield
    finally:
        models.get_best_device = found


def _rewrite_metadata(folder: Path) -> None:
    """One key of metadata: several stand in another order in every process."""
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.glob("*.safetensors")):
        save_file(load_file(path), path, metadata={"format": "pt"})
