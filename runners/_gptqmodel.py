"""What the backends of GPTQModel share: quiet start, checks before work, compress, load."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import _outer
from runners._calibration import token_lists
from runners._hf import copy_side_files, device, evaluation_dtype, load_tokenizer, widened
from runners._shapes import Size, check_group_size, check_multiples
from scorecard.errors import SpecError, nearest
from scorecard.spec import Case

if TYPE_CHECKING:
    import torch
    from torch import nn

ENVIRONMENT = "gptqmodel"
VERSION = "gptqmodel==7.6.0"
FEATURE_MULTIPLE = 32  # both sides of a Linear: codes are packed into 32-bit words
VARIABLES = {
    "GPTQMODEL_CPU_WORKERS": "2",  # with the one that a 2-core machine gets, its model loader does not start
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # same bytes without compiling C++ for 40 s on first use
    "TERM": "dumb",  # a log is no terminal: no progress bars
}
SEED = 0

Dynamic = Mapping[str, Mapping[str, Any]] | None
# What a layer may have of its own: our name -> the library's.
OVERRIDES = {
    name: name for name in ("bits", "group_size", "desc_act", "static_groups", "damp_percent", "mse")
}
OVERRIDES |= {"symmetric": "sym", "act_group_aware": "act_group_aware"}
DYNAMIC_DOC = (
    "options of single layers: regular expression, matched from the start of a layer's name, -> some of "
    f"{', '.join(OVERRIDES)}; '-:' before it leaves the layers as they are (write {{}} for the options)"
)


def library() -> Any:
    """The ``gptqmodel`` package, imported with its settings for this machine and only warnings logged."""
    for name, value in VARIABLES.items():
        os.environ[name] = value
    import gptqmodel
    from gptqmodel.utils.logger import setup_logger

    setup_logger().setLevel("ERROR")
    return gptqmodel


# -- checks of options -----------------------------------------------------------------------------


def check_numbers(options: Any) -> None:
    """Raises ValueError for a number out of its range, of those options that there are."""
    for name in ("damp_percent", "fallback_threshold"):
        share = getattr(options, name, None)
        limit = 1 if name == "damp_percent" else 100
        if share is not None and not 0 <= share < limit:
            raise ValueError(f"{name}: {share} is out of range; write a number from 0 to less than {limit}")
    for name in ("samples", "batch_size"):
        count = getattr(options, name, None)
        if count is not None and count < 1:
            raise ValueError(f"{name}: {count} is less than 1; write a number of sequences")


def check_dynamic(dynamic: Dynamic) -> None:
    """Raises ValueError for a pattern that is no regular expression or an option that no layer has."""
    for pattern, options in (dynamic or {}).items():
        try:
            re.compile(_expression(pattern))
        except re.error as error:
            raise ValueError(f"dynamic: '{pattern}' is no regular expression ({error}); mend it") from None
        if not isinstance(options, Mapping):
            raise ValueError(f"dynamic: '{pattern}' has no options; write {{}} or {{bits: 8}}")
        if pattern.startswith("-:") == bool(options):
            raise ValueError(f"dynamic: '{pattern}' has {dict(options)}; write options, or '-:' and {{}}")
        for name in options:
            if name not in OVERRIDES:
                raise ValueError(f"dynamic: '{pattern}' has an unknown '{name}'; {nearest(name, OVERRIDES)}")


def translated(dynamic: Dynamic) -> dict[str, dict[str, Any]]:
    """``dynamic`` with the library's names."""
    return {
        pattern: {OVERRIDES[name]: value for name, value in options.items()}
        for pattern, options in (dynamic or {}).items()
    }


def check_shapes(
    case: Case,
    layers: Mapping[str, Size],
    group_size: int,
    dynamic: Dynamic = None,
    *,
    out_multiple: int = FEATURE_MULTIPLE,
) -> None:
    """Raises SpecError naming the first layer that cannot be packed, or a pattern that no layer matches.

    The library itself ends the whole process when one of its threads fails on such a layer.
    """
    for pattern in dynamic or {}:
        if not any(re.match(_expression(pattern), name) for name in layers):
            where = f"configs.{case.config.name}.dynamic"
            some = next(iter(layers))
            raise SpecError(
                f"{where}: no layer matches '{pattern}'; write for example .*{some.rpartition('.')[2]}"
            )
    for name, size in layers.items():
        own = _override(dynamic, name)
        if own is not None:
            check_group_size(case, {name: size}, own.get("group_size", group_size))
            multiples = (out_multiple, FEATURE_MULTIPLE)
            check_multiples(case, {name: size}, multiples, "GPTQModel", "write another runner, such as rtn")


def _override(dynamic: Dynamic, name: str) -> Mapping[str, Any] | None:
    """Options of the layer's own, ``None`` for one that is left alone; such patterns come first."""
    patterns = sorted(dynamic or {}, key=lambda pattern: not pattern.startswith("-:"))
    found = next((p for p in patterns if re.match(_expression(p), name)), None)
    if found is None:
        return {}
    return None if found.startswith("-:") else (dynamic or {})[found]


def _expression(pattern: str) -> str:
    return pattern[2:] if pattern[:2] in ("-:", "+:") else pattern


# -- the work --------------------------------------------------------------------------------------


def compress(
    case: Case,
    model_dir: Path,
    output_model: Path,
    settings: Mapping[str, Any],
    options: Any,
    *,
    calibrates: bool = True,
) -> None:
    """Quantize with ``QuantizeConfig(**settings)`` and save.

    ``options`` has ``samples`` and ``batch_size``: of the case's calibration text, where it ``calibrates``;
    and ``outer_bits`` and ``group_size``.
    """
    calibration = None
    if calibrates:
        sequences = token_lists(case.calibration, load_tokenizer(model_dir, case), options.samples)
        calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
    package = library()
    import torch

    torch.manual_seed(SEED)
    config = package.QuantizeConfig(offload_to_disk=False, **settings)
    trust = case.model.trust_remote_code
    output_model = output_model.resolve()
    model = package.GPTQModel.load(str(model_dir.resolve()), config, device=device(), trust_remote_code=trust)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # it leaves a folder of logs
        backend = _backend(package, settings["method"])
        model.quantize(calibration, batch_size=options.batch_size, backend=backend)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every file that it writes
        model.save(str(output_model))
    for name in ("quant_log.csv", "quantize_config.json"):  # a log, and a copy of what config.json says
        (output_model / name).unlink(missing_ok=True)
    copy_side_files(model_dir, output_model, case, config=False)
    _outer.pack(case, model_dir, output_model, options.outer_bits, options.group_size)


def load(case: Case, output_model: Path, method: str, *, dequantize: bool) -> Any:
    """The quantized transformers model, through GPTQModel's own loader.

    transformers' loader would leave a packed lm_head as a plain Linear with random weights, without a word.
    On a CPU the kernel is the plain torch one for every bit width, so that cases differ by method alone; with
    CUDA the library chooses. ``dequantize`` puts plain Linears in place of the packed ones, and so does
    float32 for AWQ, whose kernels refuse it.
    """
    import torch

    package = library()
    backend = _backend(package, method)
    dtype = evaluation_dtype(case)
    wide = dtype == torch.float32
    if device() == "cuda" and not (dequantize or wide):
        backend = package.BACKEND.AUTO
    settings: dict[str, Any] = {"dtype": dtype} if dtype and not wide else {}
    folder, trust = _outer.restored(output_model), case.model.trust_remote_code
    model = package.GPTQModel.load(
        str(folder), backend=backend, device=device(), trust_remote_code=trust, **settings
    ).model
    if wide:
        model = widened(model, folder)
    if dequantize or (wide and method == "awq"):
        _unpack(model)
    # lm-eval would read it as transformers' own GPTQ config, which refuses 5, 6 and 7 bits.
    model.config.quantization_config = None
    return model.eval()


def _backend(package: Any, method: str) -> Any:
    return package.BACKEND.AWQ_TORCH if method == "awq" else package.BACKEND.GPTQ_TORCH


def _unpack(model: nn.Module) -> None:
    import torch
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseQuantLinear):
            weight = _plain_weight(module).to(dtype).contiguous()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                linear.bias = torch.nn.Parameter(module.bias.to(dtype), requires_grad=False)
            model.set_submodule(name, linear)


def _plain_weight(module: Any) -> torch.Tensor:
    """The weight [out, in] that a packed layer stands for."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    if hasattr(module, "dequantize_weight"):
        weight: torch.Tensor = module.dequantize_weight().T
    else:
        parts = {
            name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "bits", "group_size")
        }
        weight = dequantize_gemm(**parts).T
    return weight
