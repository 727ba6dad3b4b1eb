"""A model made again from its config and tensors whose layers a quantization library replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._hf import device, load_config
from scorecard.errors import ArtifactError
from scorecard.spec import Case

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"


def skeleton(folder: Path, case: Case) -> PreTrainedModel:
    """The model of ``folder/config.json`` whose parameters wait on the meta device.

    Buffers (rotary frequencies) are computed: no file holds them. Its config no longer tells of the
    quantization, which transformers and lm-eval would try to set up themselves.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_config(folder, case)
    vars(config).pop("quantization_config", None)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=case.model.trust_remote_code
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    use_linears(model)
    return model.requires_grad_(False).eval()


def use_linears(model: PreTrainedModel) -> None:
    """Replace GPT-2's Conv1D layers, whose weights lie [in, out], by the same as Linear layers.

    Quantization libraries know nothing of a Conv1D; left alone it would stay uncompressed.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            width, out = module.weight.shape
            linear = torch.nn.Linear(width, out, device="meta", dtype=module.weight.dtype)
            linear.weight = torch.nn.Parameter(module.weight.data.T.contiguous(), requires_grad=False)
            linear.bias = module.bias
            model.set_submodule(name, linear)


def read(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The tensors of ``folder/model.safetensors`` on ``device()``, floats of 16 bits or more as ``dtype``.

    The memory is torch's own and so aligned, which a tensor within a file is not: without, torch's CPU
    kernel for int8 weights (``_weight_int8pack_mm``) crashes the process.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(folder / WEIGHTS, device=device())
    for name, tensor in tensors.items():
        floats = tensor.is_floating_point() and tensor.itemsize > 1  # floats of 8 bits are codes
        tensors[name] = tensor.to(dtype if dtype and floats else tensor.dtype, copy=True)
    return tensors


def fill(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Give every parameter that still waits its tensor; the shape and dtype are those of the tensor.

    Raises ArtifactError naming a tensor that is missing or has no place.
    """
    found = model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie_weights()
    waiting = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    wrong = sorted([*waiting, *found.unexpected_keys])
    if wrong:
        raise ArtifactError(
            f"{folder}: {wrong[0]} of the weights and config.json do not match; compress again"
        )


def plain_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of ``model`` by name, a tensor of two names (a tied head) under the first one only."""
    parameters = {name for name, _ in model.named_parameters()}  # each once
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def say_quantized(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``quantization_config`` into ``folder/config.json``.

    transformers then refuses what it cannot read, instead of running with random weights.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = dict(settings)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def said_quantized(folder: Path) -> dict[str, Any]:
    """What ``say_quantized`` wrote. Raises ArtifactError where there is nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise ArtifactError(f"{folder}: config.json has no quantization_config; compress again")
    return settings
