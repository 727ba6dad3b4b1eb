"""Weights as whole numbers of 8 bits, with one scale for each row."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

model, output = Path(sys.argv[1]), Path(sys.argv[2])
stored = {}
for path in sorted(model.glob("*.safetensors")):
    for name, weight in load_file(path).items():
        if weight.dim() != 2:
            stored[name] = weight
            continue
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        stored[f"{name}.codes"] = torch.round(weight.float() / scale).to(torch.int8)
        stored[f"{name}.scale"] = scale
save_file(stored, output / "rows.safetensors")
for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
    if (model / name).is_file():
        shutil.copyfile(model / name, output / name)
