"""AutoGPTQ: GPTQ by the library that most GPTQ files were made with; its successor is the runner gptq."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._calibration import token_lists
from runners._hf import copy_side_files, device, load_config, load_tokenizer, to_lm
from runners._old_transformers import readable, translate
from runners._shapes import Shapes, check_group_size, check_multiples
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.spec import Case

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits of a weight", "choices": (2, 3, 4, 8)})
    group_size: int = field(default=128, metadata={"doc": "weights that share a scale; -1 for a whole row"})
    symmetric: bool = field(default=True, metadata={"doc": "no zero points"})
    desc_act: bool = field(
        default=False,
        metadata={"doc": "activation order: round the columns with the largest activations first"},
    )
    static_groups: bool = field(
        default=False,
        metadata={"doc": "with desc_act: find the scales of all groups before the first column"},
    )
    damp_percent: float = field(
        default=0.01, metadata={"doc": "share of the Hessian's mean diagonal that is added to it, 0 < p < 1"}
    )
    true_sequential: bool = field(
        default=True, metadata={"doc": "round the layers of a block one after the other"}
    )
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences; null for calibration.samples"}
    )

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group_size: {self.group_size} is no size; write a positive number or -1")
        if not 0 < self.damp_percent < 1:
            raise ValueError(f"damp_percent: {self.damp_percent} is no share; write a number between 0 and 1")
        if self.static_groups and not self.desc_act:
            raise ValueError("static_groups: without desc_act they change nothing; write desc_act: true")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples: {self.samples} is too few; write at least 1, or null")


class Runner(BaseRunner):
    """AutoGPTQ 0.7.1: 2, 3, 4 or 8 bits, rounding each column so as to make up for the errors before it.

    Frantar et al., GPTQ (https://arxiv.org/abs/2210.17323). Needs a GPU to compress. The library is no longer
    developed and wants transformers 4; the runner ``gptq`` writes the same format with its successor
    GPTQModel, on a CPU too. The output head stays as it is.
    """

    Options = Options
    environment = "autogptq"
    requires = ("auto-gptq==0.7.1",)

    @property
    def calibrates(self) -> bool:
        return True

    def check(self) -> None:
        if machine.device() != "cuda":
            raise RunnerUnavailable("auto-gptq needs a GPU to compress; run it on one, or write runner: gptq")

    def check_shapes(self, shapes: Shapes) -> None:
        check_group_size(self.case, shapes.body, self.options.group_size)
        check_multiples(self.case, shapes.body, (32, 32), "auto-gptq", "write another runner")

    def compress(self) -> None:
        from auto_gptq import AutoGPTQForCausalLM

        config = load_config(self.model_dir, self.case)
        self._check_architecture(str(config.model_type))
        tokenizer = load_tokenizer(self.model_dir, self.case)
        sequences = token_lists(self.case.calibration, tokenizer, self.options.samples)
        model = AutoGPTQForCausalLM.from_pretrained(
            str(readable(self.model_dir)),
            self._settings(),
            torch_dtype=_dtype(self.case, "float16"),
            trust_remote_code=self.case.model.trust_remote_code,
        )
        model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences])
        model.model.config.use_cache = getattr(config, "use_cache", True)
        self._save(model)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)
        translate(self.output_model)

    def _check_architecture(self, kind: str) -> None:
        from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

        if kind not in GPTQ_CAUSAL_LM_MODEL_MAP:
            where = f"configs.{self.case.config.name}.runner"
            raise SpecError(f"{where}: auto-gptq does not know the architecture '{kind}'; write runner: gptq")

    def _settings(self) -> Any:
        from auto_gptq import BaseQuantizeConfig

        return BaseQuantizeConfig(
            bits=self.options.bits,
            group_size=self.options.group_size,
            sym=self.options.symmetric,
            desc_act=self.options.desc_act,
            static_groups=self.options.static_groups,
            damp_percent=self.options.damp_percent,
            true_sequential=self.options.true_sequential,
        )

    def _save(self, model: Any) -> None:
        """As the library's ``save_quantized``, with the name that others look for, and metadata of one key:
        several stand in another order in every process."""
        from safetensors.torch import save_file

        plain = model.model.to("cpu")
        tied = set(plain._tied_weights_keys or ()) if plain.config.tie_word_embeddings else set()
        tensors = {
            name: tensor.contiguous() for name, tensor in plain.state_dict().items() if name not in tied
        }
        save_file(tensors, self.output_model / "model.safetensors", metadata={"format": "pt"})
        model.quantize_config.model_name_or_path = None
        model.quantize_config.model_file_base_name = "model"
        plain.config.quantization_config = model.quantize_config.to_dict()
        plain.config.save_pretrained(str(self.output_model))
        model.quantize_config.save_pretrained(str(self.output_model))

    def load(self) -> LM:
        model = load_quantized(self.output_model, self.case)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)


def load_quantized(folder: Path, case: Case) -> Any:
    """The model by the library's own loader, with its fast kernels where they were built."""
    from auto_gptq import AutoGPTQForCausalLM

    place = device()
    return AutoGPTQForCausalLM.from_quantized(
        str(folder),
        device="cuda:0" if place == "cuda" else place,
        torch_dtype=_dtype(case, "float16"),
        trust_remote_code=case.model.trust_remote_code,
        use_safetensors=True,
        disable_exllama=True,
        disable_exllamav2=place == "cpu" or importlib.util.find_spec("exllamav2_kernels") is None,
    ).model


def _dtype(case: Case, default: str) -> Any:
    """``evaluation.dtype`` as a torch dtype; ``default`` (what the library's own loader takes) for auto."""
    import torch

    return getattr(torch, default if case.evaluation.dtype == "auto" else case.evaluation.dtype)
