"""The model that compression/compress.py wrote, as lm-eval's model ``user``."""

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


@register_model("user")
class UserLM(HFLM):
    def __init__(self, pretrained, dtype="auto", **kwargs):
        config = AutoConfig.from_pretrained(pretrained)
        if dtype != "auto":
            config.dtype = getattr(torch, dtype)
        weights = load_file(f"{pretrained}/rows.safetensors")
        for name in [name for name in weights if name.endswith(".codes")]:
            plain = name.removesuffix(".codes")
            weights[plain] = (weights.pop(name) * weights.pop(f"{plain}.scale")).to(config.dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        model.load_state_dict(weights)
        tokenizer = AutoTokenizer.from_pretrained(pretrained)
        super().__init__(pretrained=model.eval(), tokenizer=tokenizer, **kwargs)
