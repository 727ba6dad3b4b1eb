"""The compressed model as an lm-eval model: ``lm_eval --model user --model_args pretrained=$OUTPUT_MODEL``.

Works from this folder and, copied, as ``lm_eval/models/user.py``. Reads what compression/compress.py wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def weights(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every weight, the packed ones turned back."""
    stored = load_file(folder / "codes.safetensors")
    restored = {}
    for name, tensor in stored.items():
        base, _, part = name.rpartition(".")
        if part == "codes":
            codes = unpack(tensor) if tensor.dtype == torch.uint8 else tensor.float()
            scale = stored[f"{base}.scale"].float()
            groups = codes.unflatten(1, (scale.shape[1], -1))
            restored[base] = (groups * scale.unsqueeze(-1)).flatten(1).to(dtype)
        elif part != "scale":
            restored[name] = tensor
    return restored


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in / 2] -> whole numbers -8..7 as float [out, in]."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() - 8


def load_model(folder: Path, dtype: str = "auto") -> PreTrainedModel:
    """The transformers model of a compressed folder, on the GPU where there is one."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        architecture = type(AutoModelForCausalLM.from_config(config))
    state = weights(folder, kind)
    model = architecture.from_pretrained(None, config=config, state_dict=state, dtype=kind)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


@register_model("user")
class UserLM(HFLM):
    """HFLM around the model in ``pretrained``, a folder that ``build.sh --compress`` wrote."""

    def __init__(
        self, pretrained: str, device: str | None = None, dtype: str = "auto", **kwargs: Any
    ) -> None:
        folder = Path(pretrained)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        super().__init__(pretrained=load_model(folder, dtype), tokenizer=tokenizer, **kwargs)
