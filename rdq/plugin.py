"""The quantizer of transformers 5: `import rdq`, and `from_pretrained` reads a compressed folder.

transformers reads the payloads as tensors `<name>_rdq` and gives each to an operation, which returns the
weight: that of `rdq.load`, bit for bit. The model that comes out is a plain one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, _IdentityOp, dot_natural_key
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from rdq.container import Container
from rdq.errors import RdqError
from rdq.headers import SUFFIX, VERSION
from rdq.modeling import Ahead


class RdqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of config.json; other keys than these two are kept and mean nothing here."""

    dequantize = True

    def __init__(self, quant_method: str = "rdq", version: int = VERSION, **other: Any) -> None:
        if version != VERSION:
            raise RdqError(
                f"config.json: version {version} of the format, this reads {VERSION}; take a newer rdq"
            )
        self.quant_method, self.version = quant_method, version
        self.__dict__.update(other)


class RdqQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads compressed folders; it quantizes nothing itself."""

    serialized_names = {"weight": ["weight", "weight" + SUFFIX]}  # noqa: RUF012 - as the base class has it

    def __init__(self, quantization_config: RdqConfig, **settings: Any) -> None:
        super().__init__(quantization_config, **settings)
        self.ahead: Ahead | None = None
        self.names: dict[bytes, str] = {}

    def _process_model_before_weight_loading(self, model: Any, **settings: Any) -> Any:
        """Checks every tensor of the files, before the first is used, and begins to decode."""
        if not self.pre_quantized:
            raise RdqError("rdq: a model is compressed by `python -m rdq compress`, not while it is loaded")
        container = Container([Path(file) for file in settings["checkpoint_files"]])
        container.verify()
        names = sorted(container.matrices, key=lambda name: dot_natural_key(name + SUFFIX))
        self.names = {container.tail(name): name for name in names}
        self.ahead = Ahead(container, names, model.dtype)
        return model

    def _process_model_after_weight_loading(self, model: Any, **settings: Any) -> Any:
        if self.ahead is not None:
            self.ahead.close()
        model._weight_conversions = None  # saving undoes those of the architecture, as for any plain model
        return model

    def get_load_operations(self) -> dict[str, Any]:
        """What transformers puts before the operations that the model's architecture needs."""
        return {"dequantize": RdqDecode}

    def get_weight_conversions(self) -> list[Any]:
        """For every other tensor: its name without the suffix, decoded."""
        return [WeightConverter([SUFFIX], "", [RdqDecode(self)])]

    def is_serializable(self, *arguments: object, **settings: object) -> bool:
        """False: what is loaded is a plain model, which saves itself as one."""
        return False

    @property
    def is_trainable(self) -> bool:
        """True: the weights are plain ones."""
        return True


class RdqDecode(ConversionOps):  # type: ignore[misc]
    """Payloads -> weights, under the names without the suffix; other tensors pass through."""

    def __init__(self, hf_quantizer: RdqQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> RdqDecode:
        """transformers copies a converter for each tensor; all share the quantizer's files and threads."""
        return RdqDecode(self.hf_quantizer)

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **other: Any
    ) -> dict[str, Any]:
        """input_dict: the tensors of each pattern, one or a list."""
        if list(input_dict) == [SUFFIX]:  # `get_weight_conversions`: one tensor, named in full
            return {other["full_layer_name"]: self._decoded(input_dict.pop(SUFFIX))}
        out: dict[str, Any] = {}
        for pattern in list(input_dict):
            tensors = input_dict.pop(pattern)
            coded = pattern.rstrip("$").endswith(SUFFIX)
            out.setdefault(pattern.rstrip("$").removesuffix(SUFFIX), []).extend(
                [self._decoded(t) for t in tensors] if coded else tensors
            )
        return out

    def _decoded(self, payload: Any) -> torch.Tensor:
        payload = payload[0] if isinstance(payload, list) else payload
        quantizer = self.hf_quantizer
        assert quantizer.ahead is not None
        return quantizer.ahead.take(quantizer.names[bytes(payload[-16:].numpy())]).to(payload.device)

    @property
    def reverse_op(self) -> ConversionOps:
        """Weights are saved as they are."""
        return _IdentityOp()


def register() -> None:
    """Makes the quantizer known to transformers; a second time does nothing."""
    if "rdq" not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config("rdq")(RdqConfig)
        register_quantizer("rdq")(RdqQuantizer)
