"""The original as it is: what every other row is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runners._hf import copy_files, copy_side_files, load_causal_lm, load_tokenizer, to_lm, weight_files
from runners.base import BaseRunner

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class Runner(BaseRunner):
    """The original model, its weight files copied byte by byte."""

    def compress(self) -> None:
        files = weight_files(self.model_dir)
        index = self.model_dir / "model.safetensors.index.json"
        copy_files(files + ([index] if len(files) > 1 and index.is_file() else []), self.output_model)
        copy_side_files(self.model_dir, self.output_model, self.case)

    def load(self) -> LM:
        model = load_causal_lm(self.output_model, self.case)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
