"""NVIDIA Model-Optimizer: post-training quantization with weights that are stored packed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _modelopt
from runners._calibration import token_lists
from runners._hf import copy_side_files, device, empty_model, load_causal_lm, load_tokenizer, to_lm
from runners._shapes import Shapes, check_group_size, check_untied
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import ArtifactError, RunnerUnavailable, SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

UNUSED = "weight_quantizer._amax"  # what the scales were made from
STATE, WEIGHTS = "modelopt.json", "model.safetensors"
# Our name -> the library's preset.
PRESETS = {
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "int8": "INT8_WEIGHT_ONLY_CFG",
    "int8_w8a8": "INT8_DEFAULT_CFG",
    "int8_smoothquant": "INT8_SMOOTHQUANT_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_per_token": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "mxfp4": "MXFP4_DEFAULT_CFG",
    "mxfp8": "MXFP8_DEFAULT_CFG",
}
GROUPED = ("int4", "int4_awq")
CALIBRATED = ("int4_awq", "int8_w8a8", "int8_smoothquant", "fp8", "nvfp4")
ON_GPU = ("nvfp4", "mxfp4", "mxfp8")  # their rounding is written in CUDA only


@dataclass(frozen=True)
class Options:
    format: str = field(
        default="int4_awq",
        metadata={
            "doc": "number format; int4, int4_awq and int8 round the weights alone, int8_w8a8, "
            "int8_smoothquant and the floats the activations too; nvfp4, mxfp4 and mxfp8 need a GPU",
            "choices": tuple(PRESETS),
        },
    )
    group_size: int = field(
        default=128, metadata={"doc": "int4, int4_awq: input features that share a scale"}
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    skip_modules: list[str] | None = field(
        default=None, metadata={"doc": "layers to leave as they are: parts of their names"}
    )
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )
    batch_size: int = field(default=8, metadata={"doc": "calibration sequences that run at once"})

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name}: {count} is less than 1; write a whole number from 1")
        if self.group_size < 2 or self.group_size % 2:
            raise ValueError(f"group_size: {self.group_size} is no even number from 2; write 128, say")
        if self.group_size != 128 and self.format not in GROUPED:
            raise ValueError(f"group_size: {self.format} has its own; leave it out, or write format: int4")


class Runner(BaseRunner):
    """NVIDIA Model-Optimizer (nvidia-modelopt): AWQ, SmoothQuant and plain rounding, weights packed by its
    `compress`.

    The artifact is the library's own state, not its export (transformers loads exported int8 and fp8 as other
    models): `model.safetensors` has the tensors, `modelopt.json` what the quantizers are. Weights are
    unpacked at each use; the library's faster kernels are for GPUs.
    """

    Options = Options
    environment = "quantizers"
    requires = ("nvidia-modelopt==0.47.0",)

    @property
    def calibrates(self) -> bool:
        return self.options.format in CALIBRATED

    def check(self) -> None:
        if self.options.format in ON_GPU and machine.device() != "cuda":
            raise RunnerUnavailable(
                f"format '{self.options.format}' of modelopt needs a GPU; write format: fp8"
            )

    def check_shapes(self, shapes: Shapes) -> None:
        o = self.options
        check_untied(self.case, shapes, lm_head=o.lm_head)
        layers = shapes.layers(lm_head=o.lm_head)
        for part in o.skip_modules or ():
            if not any(part in name for name in layers):
                where = f"configs.{self.case.config.name}.skip_modules"
                raise SpecError(f"{where}: no layer's name has '{part}'; write q_proj, say")
        if o.format in GROUPED:
            kept = {n: s for n, s in layers.items() if not any(part in n for part in o.skip_modules or ())}
            check_group_size(self.case, kept, o.group_size)

    def compress(self) -> None:
        import torch
        from modelopt.torch import opt, quantization
        from safetensors.torch import save_file

        torch.manual_seed(0)
        model = load_causal_lm(self.model_dir, self.case, dtype="auto")
        sequences = self._sequences() if self.calibrates else []

        def run(model: Any) -> None:
            for start in range(0, len(sequences), self.options.batch_size):
                batch = sequences[start : start + self.options.batch_size]
                model(torch.tensor(batch, device=device()), use_cache=False)

        quantization.quantize(model, self._config(), run if sequences else None)
        quantization.compress(model)
        state = _modelopt.dumps(opt.modelopt_state(model))
        (self.output_model / STATE).write_text(state, encoding="utf-8")
        left_out = _tied(model)
        tensors = {
            name: tensor.contiguous()
            for name, tensor in model.state_dict().items()
            if name not in left_out and not name.endswith(UNUSED)
        }
        save_file(tensors, self.output_model / WEIGHTS, {"format": "pt"})
        copy_side_files(self.model_dir, self.output_model, self.case)

    def _sequences(self) -> list[list[int]]:
        tokenizer = load_tokenizer(self.model_dir, self.case)
        return token_lists(self.case.calibration, tokenizer, self.options.samples)

    def _config(self) -> dict[str, Any]:
        from modelopt.torch import quantization

        o = self.options
        config: dict[str, Any] = copy.deepcopy(getattr(quantization, PRESETS[o.format]))
        rules = config["quant_cfg"]
        if o.lm_head:
            rules[:] = [rule for rule in rules if rule["quantizer_name"] != "*lm_head*"]
        if o.format in GROUPED:
            weights = next(rule for rule in rules if rule["quantizer_name"] == "*weight_quantizer")
            weights["cfg"]["block_sizes"][-1] = o.group_size
        rules += [{"quantizer_name": f"*{part}*", "enable": False} for part in o.skip_modules or ()]
        return config

    def load(self) -> LM:
        model = self._restored()
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)

    def _restored(self) -> PreTrainedModel:
        import torch
        from modelopt.torch import opt
        from safetensors.torch import load_file

        model = self._unfilled()
        state = _modelopt.loads((self.output_model / STATE).read_text(encoding="utf-8"))
        opt.restore_from_modelopt_state(model, state)
        tensors = load_file(self.output_model / WEIGHTS, device=device())
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        absent = [name for name in missing if name not in _tied(model) and not name.endswith(UNUSED)]
        wrong = sorted([*absent, *unexpected])
        if wrong:
            raise ArtifactError(f"{WEIGHTS} and {STATE} do not match ({wrong[0]}); compress again")
        with torch.no_grad():
            model.tie_weights()
        return model.eval()

    def _unfilled(self) -> PreTrainedModel:
        """The model of config.json, all weights 1: the library packs what is there before it is filled."""
        import torch

        config = empty_model(self.output_model, self.case).config
        dtype = self.case.evaluation.dtype
        kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
        old = torch.get_default_dtype()
        torch.set_default_dtype(kind)
        try:
            from transformers import AutoModelForCausalLM
            from transformers.initialization import no_init_weights

            with no_init_weights():
                trust = self.case.model.trust_remote_code
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        finally:
            torch.set_default_dtype(old)
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
        return model.to(device())


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of the weights that are the input embeddings."""
    return set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
