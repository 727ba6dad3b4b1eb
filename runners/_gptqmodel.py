"""What the backends of GPTQModel share: quiet start, checks before work, compress, load."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._calibration import token_lists
from runners._hf import copy_side_files, device, is_tied, linear_shapes, load_tokenizer
from scorecard.errors import SpecError
from scorecard.spec import Case

if TYPE_CHECKING:
    from torch import nn

VERSION = "gptqmodel==7.6.0"
FEATURE_MULTIPLE = 32  # both sides of a Linear: codes are packed into 32-bit words
AWQ_OUT_MULTIPLE = 64  # its search for clipping works on 64 rows at a time
ENVIRONMENT = {
    "GPTQMODEL_CPU_WORKERS": "2",  # with the one that a 2-core machine gets, its model loader does not start
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # same bytes without compiling C++ for 40 s on first use
    "TERM": "dumb",  # a log is no terminal: no progress bars
}


def library() -> Any:
    """The ``gptqmodel`` package, imported with its settings for this machine and only warnings logged."""
    for name, value in ENVIRONMENT.items():
        os.environ[name] = value
    import gptqmodel
    from gptqmodel.utils.logger import setup_logger

    setup_logger().setLevel("ERROR")
    return gptqmodel


def check_shapes(
    case: Case, model_dir: Path, group_size: int, *, lm_head: bool, out_multiple: int = FEATURE_MULTIPLE
) -> None:
    """Raises SpecError, before any work, naming the first layer that cannot be packed.

    The library itself ends the whole process when one of its threads fails on such a layer.
    """
    where = f"configs.{case.config.name}"
    if lm_head and is_tied(model_dir, case):
        raise SpecError(f"{where}.lm_head: tied to the embeddings of this model; write lm_head: false")
    for name, (out, width) in linear_shapes(model_dir, case, lm_head=lm_head).items():
        if group_size != -1 and (group_size < 1 or width % group_size):
            raise SpecError(
                f"{where}.group_size: {group_size} does not divide the {width} input features of {name}; "
                f"write a divisor of {width} or -1"
            )
        if out % out_multiple or width % FEATURE_MULTIPLE:
            raise SpecError(
                f"{where}.runner: {name} is {out} x {width} (out x in), which GPTQModel cannot pack "
                f"(multiples of {out_multiple} x {FEATURE_MULTIPLE}); write another runner, such as rtn"
            )


def compress(
    case: Case, model_dir: Path, output_model: Path, settings: Mapping[str, Any], *, samples: int | None
) -> None:
    """Quantize with ``QuantizeConfig(**settings)`` on the case's calibration text and save."""
    sequences = token_lists(case.calibration, load_tokenizer(model_dir, case), samples)
    package = library()
    config = package.QuantizeConfig(offload_to_disk=False, **settings)
    trust = case.model.trust_remote_code
    output_model = output_model.resolve()
    model = package.GPTQModel.load(str(model_dir.resolve()), config, device=device(), trust_remote_code=trust)
    calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # it leaves a folder of logs
        model.quantize(calibration, batch_size=8, backend=_backend(package, settings["method"]))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every file that it writes
        model.save(str(output_model))
    for name in ("quant_log.csv", "quantize_config.json"):  # a log, and a copy of what config.json says
        (output_model / name).unlink(missing_ok=True)
    copy_side_files(model_dir, output_model, case, config=False)


def load(case: Case, output_model: Path, method: str, *, dequantize: bool) -> Any:
    """The quantized transformers model, through GPTQModel's own loader.

    transformers' loader would leave a packed lm_head as a plain Linear with random weights, without a word.
    On a CPU the kernel is the plain torch one for every bit width, so that cases differ by method alone; with
    CUDA the library chooses. ``dequantize`` puts plain Linears in place of the packed ones.
    """
    package = library()
    backend = _backend(package, method)
    if device() == "cuda" and not dequantize:
        backend = package.BACKEND.AUTO
    trust = case.model.trust_remote_code
    model = package.GPTQModel.load(
        str(output_model), backend=backend, device=device(), trust_remote_code=trust
    ).model
    if dequantize:
        _unpack(model)
    return model.eval()


def _backend(package: Any, method: str) -> Any:
    return package.BACKEND.AWQ_TORCH if method == "awq" else package.BACKEND.GPTQ_TORCH


def _unpack(model: nn.Module) -> None:
    import torch
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseQuantLinear):
            weight = module.dequantize_weight().T.to(dtype).contiguous()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                linear.bias = torch.nn.Parameter(module.bias.to(dtype), requires_grad=False)
            model.set_submodule(name, linear)
