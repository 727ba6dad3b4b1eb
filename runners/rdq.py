"""Our own compressor: rate–distortion quantized weights, entropy-coded (the package ``rdq``, docs/rdq.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runners._calibration import token_lists
from runners._hf import copy_side_files, device, evaluation_dtype, load_config, load_tokenizer, to_lm
from runners.base import BaseRunner
from scorecard.errors import ArtifactError, ScorecardError

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Options:
    bits: float | None = field(
        default=None,
        metadata={
            "doc": "bits per weight to meet, all files but the tokenizer's counted; the mean over the model"
        },
    )
    kl: float | None = field(
        default=None, metadata={"doc": "instead: nats per token that the predictions may differ by"}
    )
    size: int | None = field(default=None, metadata={"doc": "instead: bytes of the whole folder"})
    mode: str = field(
        default="sensitivity",
        metadata={
            "doc": "what decides where bits go: inputs and gradients, inputs alone, or the weights alone",
            "choices": ("sensitivity", "calibrated", "data-free"),
        },
    )
    states: int = field(
        default=8,
        metadata={"doc": "states of the trellis; 1: plain scalar quantization", "choices": (1, 4, 8)},
    )
    kappa: float = field(
        default=0.15, metadata={"doc": "squared steps that a bit is worth when a code is chosen; 0: nearest"}
    )
    drift: float = field(
        default=0.0,
        metadata={
            "doc": "how far a matrix is moved to make up for the errors of the blocks before it, 0 to 1"
        },
    )
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.kl, self.size) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError("bits: give one of bits, kl or size, above 0; write bits: 3")
        if self.kappa < 0:
            raise ValueError(f"kappa: {self.kappa} is less than 0; write 0 for the nearest code")
        if not 0 <= self.drift <= 1:
            raise ValueError(f"drift: {self.drift} is not between 0 and 1; write 0.5")


class Runner(BaseRunner):
    """Trellis-coded quantization under a rate–distortion objective, with error feedback, entropy-coded.

    Embeddings and lm_head are coded like any other matrix. One step constant for the whole model, found by
    search, meets the budget. ``load`` turns the codes into plain weights. The artifact is a transformers
    folder: after ``import rdq`` it loads with ``AutoModelForCausalLM`` too. The format: docs/rdq-format.md.
    """

    Options = Options
    requires = ("numba",)  # compiles the loops whose sums choose the codes
    version = 2  # the damping is measured

    @property
    def calibrates(self) -> bool:
        return bool(self.options.mode != "data-free")

    def compress(self) -> None:
        from rdq.budget import Budget, compress
        from rdq.compress import Options as RdqOptions
        from rdq.errors import RdqError
        from rdq.quantize import Settings

        o = self.options
        sequences = None
        if self.calibrates:
            tokenizer = load_tokenizer(self.model_dir, self.case)
            sequences = token_lists(self.case.calibration, tokenizer, o.samples)
        options = RdqOptions(
            mode=o.mode,
            calibration=sequences,
            drift=o.drift,
            settings=Settings(states=o.states, kappa=o.kappa),
        )
        budget = Budget(bits=o.bits, kl=o.kl, size=o.size)
        try:
            compress(self.model_dir, self.output_model, budget, options, measure=False)
        except RdqError as error:
            raise ScorecardError(f"{self.case.id}: {error}") from None
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)

    def load(self) -> LM:
        import rdq
        from rdq.errors import RdqError

        tokenizer = load_tokenizer(self.output_model, self.case)
        try:
            dtype = evaluation_dtype(self.case) or load_config(self.output_model, self.case).dtype
            model = rdq.load(self.output_model, dtype).to(device())
        except RdqError as error:
            raise ArtifactError(f"{self.case.id}: {error}") from None
        return to_lm(model, tokenizer, self.case)
