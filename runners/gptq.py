"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) through GPTQModel, the maintained successor of auto-gptq."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runners import _gptqmodel, _outer
from runners._hf import load_tokenizer, to_lm
from runners._shapes import Shapes, check_untied
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import RunnerUnavailable

if TYPE_CHECKING:
    from lm_eval.api.model import LM

PLANAR_BITS = (5, 6, 7)  # stored in planes, a format of their own
# What rtn has no use for: their values must stay as they are.
OF_GPTQ = (
    "desc_act",
    "act_group_aware",
    "static_groups",
    "damp_percent",
    "damp_auto_increment",
    "mse",
    "gptaq_alpha",
    "foem_alpha",
    "foem_beta",
    "true_sequential",
)


@dataclass(frozen=True)
class Options:
    method: str = field(
        default="gptq",
        metadata={
            "doc": "rtn: round to nearest, in the same format, no calibration",
            "choices": ("gptq", "rtn"),
        },
    )
    bits: int = field(default=4, metadata={"doc": "bits per weight", "choices": (2, 3, 4, 5, 6, 7, 8)})
    group_size: int = field(
        default=128, metadata={"doc": "input features that share a scale; -1: the whole row"}
    )
    symmetric: bool = field(
        default=True, metadata={"doc": "zero in the middle of the grid; false: a zero point for each group"}
    )
    desc_act: bool = field(
        default=False, metadata={"doc": "take columns in the order of their activations' size (act-order)"}
    )
    act_group_aware: bool | None = field(
        default=None,
        metadata={
            "doc": "order groups, and columns in each, so; null: if desc_act is off and there are groups"
        },
    )
    static_groups: bool = field(
        default=False, metadata={"doc": "fix all scales before the first column is rounded"}
    )
    damp_percent: float = field(
        default=0.05, metadata={"doc": "share of the mean of the Hessian's diagonal that is added to it"}
    )
    damp_auto_increment: float = field(
        default=0.01, metadata={"doc": "what damp_percent grows by while the Hessian cannot be inverted"}
    )
    mse: float = field(
        default=0.0,
        metadata={"doc": "search each scale for the least error to this power (2.4, say); 0: no search"},
    )
    gptaq_alpha: float | None = field(
        default=None,
        metadata={"doc": "GPTAQ: weight of the error that earlier layers made (0.25, say); null: off"},
    )
    foem_alpha: float = field(default=0.0, metadata={"doc": "FOEM: as gptaq_alpha, with foem_beta"})
    foem_beta: float | None = field(
        default=None, metadata={"doc": "FOEM: weight of the first-order term (0.1 to 0.25); null: off"}
    )
    true_sequential: bool = field(
        default=True,
        metadata={"doc": "within a block too, calibrate a layer on what those before it now give"},
    )
    rotation: str | None = field(
        default=None,
        metadata={
            "doc": "rotate the weights before rounding (QuaRot); null: no",
            "choices": (None, "hadamard"),
        },
    )
    fallback: str = field(
        default="rtn",
        metadata={
            "doc": "what rounds a layer that too few calibration tokens reached (experts)",
            "choices": ("rtn", "midpoint", "mean", "median", "stdclip"),
        },
    )
    fallback_threshold: float = field(
        default=0.5, metadata={"doc": "too few: less than this percentage of the tokens; 0: always GPTQ"}
    )
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    dynamic: dict[str, dict[str, Any]] | None = field(default=None, metadata={"doc": _gptqmodel.DYNAMIC_DOC})
    format: str = field(
        default="gptq",
        metadata={
            "doc": "layout of the files; gptq_v2 stores zero points as they are, not less one; 5 to 7 bits "
            "have one of their own (gptq_p)",
            "choices": ("gptq", "gptq_v2", "gptq_p"),
        },
    )
    outer_bits: int | None = _outer.option()
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )
    batch_size: int = field(default=8, metadata={"doc": "calibration sequences that run at once"})
    dequantize: bool = field(
        default=False,
        metadata={"doc": "load plain weights instead of packed kernels (faster on a CPU, same size on disk)"},
    )

    def __post_init__(self) -> None:
        _gptqmodel.check_numbers(self)
        _gptqmodel.check_dynamic(self.dynamic)
        if self.desc_act and self.act_group_aware:
            raise ValueError("act_group_aware: does not go with desc_act; write one of them")
        if self.foem_alpha and self.foem_beta is None:
            raise ValueError("foem_alpha: does nothing without foem_beta; write foem_beta too")
        if self.gptaq_alpha is not None and self.foem_beta is not None:
            raise ValueError("gptaq_alpha: does not go with foem_beta; write foem_alpha instead")
        if self.bits in PLANAR_BITS and self.format == "gptq_v2":
            raise ValueError(f"format: {self.bits} bits have a layout of their own; write format: gptq_p")
        if self.method == "rtn":
            for name in OF_GPTQ:
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name}: rtn has no such thing; leave it out, or write method: gptq")


class Runner(BaseRunner):
    """GPTQ: rounds column by column and lets later columns make up for the error, on calibration text.

    With `gptaq_alpha` the error of the layers before is made up for too (GPTAQ, Li et al. 2025,
    arXiv:2504.02692). The artifact is GPTQModel's own format. Both sides of every Linear must be multiples of
    32. `auto-gptq` is accepted as another name of this runner.
    """

    Options = Options
    environment = _gptqmodel.ENVIRONMENT
    requires = (_gptqmodel.VERSION,)
    version = 2

    @property
    def calibrates(self) -> bool:
        return bool(self.options.method == "gptq")

    def check(self) -> None:
        if self.options.rotation and machine.device() != "cuda":
            raise RunnerUnavailable("rotation needs a GPU in GPTQModel; write rotation: null")

    def check_shapes(self, shapes: Shapes) -> None:
        o = self.options
        check_untied(self.case, shapes, lm_head=o.lm_head)
        _gptqmodel.check_shapes(self.case, shapes.layers(lm_head=o.lm_head), o.group_size, o.dynamic)

    def compress(self) -> None:
        if self.case.config.runner == "auto-gptq":
            logging.getLogger(__name__).warning(
                "auto-gptq is no longer maintained: GPTQModel, its successor, does the work (runner: gptq)"
            )
        o = self.options
        settings = self._grid() | (
            self._of_gptq() if o.method == "gptq" else {"weight_only": {"method": "rtn"}}
        )
        _gptqmodel.compress(
            self.case, self.model_dir, self.output_model, settings, o, calibrates=self.calibrates
        )

    def _grid(self) -> dict[str, Any]:
        o = self.options
        grid = {"bits": o.bits, "group_size": o.group_size, "sym": o.symmetric, "desc_act": o.desc_act}
        dynamic = _gptqmodel.translated(o.dynamic)
        if o.lm_head:
            # Untold, the library stores lm_head with 8 bits in groups of 32, whatever the other options say.
            dynamic.setdefault("lm_head", grid)
        return {
            "method": "gptq",
            "format": "gptq_p" if o.bits in PLANAR_BITS else o.format,
            **grid,
            "lm_head": o.lm_head,
            "dynamic": dynamic or None,
            "rotation": o.rotation,
        }

    def _of_gptq(self) -> dict[str, Any]:
        o = self.options
        by_default = o.group_size > 0 and not o.desc_act
        foem = None if o.foem_beta is None else {"alpha": o.foem_alpha, "beta": o.foem_beta}
        return {
            "act_group_aware": by_default if o.act_group_aware is None else o.act_group_aware,
            "static_groups": o.static_groups,
            "damp_percent": o.damp_percent,
            "damp_auto_increment": o.damp_auto_increment,
            "mse": o.mse,
            "gptaq": None if o.gptaq_alpha is None else {"alpha": o.gptaq_alpha},
            "foem": foem,
            "true_sequential": o.true_sequential,
            "fallback": {"strategy": o.fallback, "threshold": f"{o.fallback_threshold}%"},
        }

    def load(self) -> LM:
        model = _gptqmodel.load(self.case, self.output_model, "gptq", dequantize=self.options.dequantize)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)
