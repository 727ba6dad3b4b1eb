"""torchao's configs, and its tensors in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._packing import pack, unpack
from runners._rebuild import WEIGHTS, read
from scorecard.errors import ArtifactError

if TYPE_CHECKING:
    import torch

DEFAULT_GROUP_SIZE = {"intx": 32, "int4": 128}
UNPACKED = "IntxUnpackedToInt8Tensor"  # the library's class that takes a byte for each code of 1 to 8 bits


def group_size(options: Any) -> int:
    """Input features that share a scale; -1: the row, 0: the whole layer."""
    if options.group_size is not None:
        return int(options.group_size)
    return DEFAULT_GROUP_SIZE.get(options.format, -1)


def weight_config(options: Any) -> Any:
    """The library's config for the Linear layers."""
    from torchao import quantization as q
    from torchao.prototype import mx_formats as mx

    dynamic = options.activations != "none"
    match options.format:
        case "int8" if dynamic:
            asymmetric = options.activations == "asymmetric"
            kind = q.MappingType.ASYMMETRIC if asymmetric else q.MappingType.SYMMETRIC
            return q.Int8DynamicActivationInt8WeightConfig(
                granularity=_granularity(options), act_mapping_type=kind, set_inductor_config=False
            )
        case "int8":
            return q.Int8WeightOnlyConfig(granularity=_granularity(options), set_inductor_config=False)
        case "intx":
            return _intx_config(options, dynamic=dynamic)
        case "int4":
            return q.Int4WeightOnlyConfig(
                group_size=group_size(options),
                int4_packing_format="tile_packed_to_4d",
                int4_choose_qparams_algorithm="hqq" if options.algorithm == "hqq" else "tinygemm",
                set_inductor_config=False,
            )
        case "float8" if dynamic:
            return q.Float8DynamicActivationFloat8WeightConfig(
                granularity=_granularity(options), set_inductor_config=False
            )
        case "float8":
            import torch

            dtype = getattr(torch, f"float8_{options.float8_dtype}")
            return q.Float8WeightOnlyConfig(
                weight_dtype=dtype, granularity=_granularity(options), set_inductor_config=False
            )
        case "nvfp4" if dynamic:
            return mx.NVFP4DynamicActivationNVFP4WeightConfig(
                use_dynamic_per_tensor_scale=options.tensor_scale
            )
        case "nvfp4":
            return mx.NVFP4WeightOnlyConfig(use_dynamic_per_tensor_scale=options.tensor_scale)
        case _:
            return _mx_config(options.format)


def _intx_config(options: Any, *, dynamic: bool) -> Any:
    import torch
    from torchao import quantization as q
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm as Algorithm

    kind = q.MappingType.SYMMETRIC if options.symmetric else q.MappingType.ASYMMETRIC
    if options.algorithm == "no_clipping":
        kind = q.MappingType.SYMMETRIC_NO_CLIPPING_ERR
    own = options.scale_dtype == "auto"
    settings = {
        "granularity": _granularity(options),
        "mapping_type": kind,
        "scale_dtype": None if own else getattr(torch, options.scale_dtype),
    }
    common = {
        "weight_dtype": getattr(torch, f"int{options.bits}"),
        "intx_choose_qparams_algorithm": (
            Algorithm.HQQ_SCALE_ONLY if options.algorithm == "hqq" else Algorithm.AFFINE
        ),
    }
    if not dynamic:
        return q.IntxWeightOnlyConfig(**common, **settings)
    return q.Int8DynamicActivationIntxWeightConfig(
        **common, **{f"weight_{name}": value for name, value in settings.items()}
    )


def _mx_config(name: str) -> Any:
    import torch
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig

    dtype = torch.float8_e4m3fn if name == "mxfp8" else torch.float4_e2m1fn_x2
    return MXDynamicActivationMXWeightConfig(activation_dtype=dtype, weight_dtype=dtype)


def embedding_config(options: Any) -> Any:
    """The library's config for the input embeddings."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup

    size = options.embedding_group_size
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{options.embedding_bits}"),
        granularity=PerAxis(0) if size == -1 else PerGroup(size),
    )


def _granularity(options: Any) -> Any:
    from torchao.quantization import PerAxis, PerGroup, PerRow, PerTensor

    size = group_size(options)
    if size > 0:
        return PerGroup(size)
    if size == 0:
        return PerTensor()
    return PerAxis(0) if options.format == "intx" else PerRow()


def note(config: Any, options: Any, *, packed: bool) -> dict[str, Any]:
    """``quantization_config`` for transformers; where it could not load the tensors, one that it refuses."""
    from transformers import TorchAoConfig

    full = TorchAoConfig(config, include_input_output_embeddings=options.embeddings).to_dict()
    if packed:
        full["packed"] = full.pop("quant_type")
    return dict(full)


def write(state: Mapping[str, torch.Tensor], folder: Path) -> bool:
    """``state`` as ``folder/model.safetensors``; whether anything is packed, which torchao cannot read."""
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    plain = {name: tensor.detach() for name, tensor in state.items()}
    tensors, about = flatten_tensor_state_dict(plain)
    narrow = {name: bits for name, text in about.items() if (bits := _bits(text)) and bits < 8}
    for name, bits in narrow.items():
        stem = _stem(name)
        codes = tensors.pop(f"{stem}qdata") + 2 ** (bits - 1)
        tensors[f"{stem}packed"] = pack(codes, bits)
        if not tensors[f"{stem}zero_point"].any():
            del tensors[f"{stem}zero_point"]
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={**about, "format": "pt"})
    _sort_metadata(folder / WEIGHTS)
    return bool(narrow)


def restored(folder: Path, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The state that ``write`` stored, as the library's tensors; 8-bit floats multiply in ``dtype``, if any.

    Raises ArtifactError for a part that belongs to no tensor.
    """
    import torch
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        about = file.metadata() or {}
    tensors = read(folder)
    for name in [name for name in tensors if name.endswith("_weight_packed")]:
        stem = name.removesuffix("packed")
        text = about[stem.removesuffix("_weight_") + "weight"]
        bits, scale = _bits(text), tensors[f"{stem}scale"]
        assert bits is not None
        width = scale.shape[1] * json.loads(text)["_data"]["block_size"][1]
        codes = unpack(tensors.pop(name), bits, width).to(torch.int8) - 2 ** (bits - 1)
        tensors[f"{stem}qdata"] = codes
        tensors.setdefault(f"{stem}zero_point", torch.zeros_like(scale, dtype=torch.int8))
    if dtype is not None:
        about = {name: _with_dtype(text, dtype) for name, text in about.items()}
    state, left = unflatten_tensor_state_dict(tensors, about)
    if left:
        raise ArtifactError(f"{folder}: {min(left)} is part of no weight; compress again")
    return dict(state)


def _with_dtype(text: str, dtype: torch.dtype) -> str:
    """The library's metadata of a ``Float8Tensor`` for another dtype, which its ``to`` does not change."""
    if "Float8Tensor" not in text:
        return text
    about = json.loads(text)
    about["_data"]["dtype"]["_data"] = str(dtype).removeprefix("torch.")
    return json.dumps(about)


def _bits(text: str) -> int | None:
    """Bits of a code by the library's metadata of a tensor, ``None`` where it says nothing."""
    if UNPACKED not in text:
        return None
    return int(json.loads(text)["_data"]["target_dtype"]["_data"].removeprefix("int"))


def _stem(name: str) -> str:
    """How the library begins the names of the parts of tensor ``name``: ``a.weight`` -> ``a._weight_``."""
    module, _, part = name.rpartition(".")
    return f"{module}._{part}_"


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order: the safetensors library writes it in another one every time.

    The file begins with the length of its header in bytes, as a little-endian 64-bit number, and the header
    in JSON, which spaces may follow (https://github.com/huggingface/safetensors, "Format").
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ArtifactError(f"{path.name}: its header cannot be put in order; report this as a bug")
        file.seek(8)
        file.write(text.ljust(length))
