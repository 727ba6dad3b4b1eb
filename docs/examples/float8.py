"""Weights as 8-bit floats (E4M3, 4 exponent and 3 mantissa bits) with one scale for each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runners._hf import copy_side_files, load_tokenizer, model_from_state, shapes, to_lm, weight_files
from runners.base import BaseRunner

if TYPE_CHECKING:
    from lm_eval.api.model import LM

LARGEST = 448.0  # the largest E4M3 number


@dataclass(frozen=True)
class Options:
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})


class Runner(BaseRunner):
    """8-bit floats (E4M3): no calibration, no grid to choose, half the size of bf16."""

    Options = Options

    def compress(self) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        linears = shapes(self.model_dir, self.case).layers(lm_head=self.options.lm_head)
        stored = {}
        for path in weight_files(self.model_dir):
            for name, tensor in load_file(path).items():
                module = name.removesuffix(".weight")
                if module not in linears:
                    stored[name] = tensor
                    continue
                scales = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
                stored[f"{module}.qweight"] = (tensor.float() / scales).to(torch.float8_e4m3fn)
                stored[f"{module}.scales"] = scales
        save_file(stored, self.output_model / "float8.safetensors")
        copy_side_files(self.model_dir, self.output_model, self.case)

    def load(self) -> LM:
        from safetensors.torch import load_file

        weights = load_file(self.output_model / "float8.safetensors")
        for name in [name for name in weights if name.endswith(".qweight")]:
            module = name.removesuffix(".qweight")
            weights[f"{module}.weight"] = weights.pop(name).float() * weights.pop(f"{module}.scales")
        model = model_from_state(self.output_model, self.case, weights)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
