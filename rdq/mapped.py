"""A model whose weights stay in their files: pages come into memory when they are used, and go when told to.

What the model stores otherwise than its files do (experts stacked in one parameter, say) is written to a
scratch folder, a parameter at a time, and mapped from there.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rdq.container import DTYPES

SPOOLED = 1 << 20  # bytes: parameters that transformers makes anew and that are smaller stay in memory
_UNRESERVED = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE: never written, so never needed


@dataclass
class Maps:
    """Files that are mapped, and the address ranges of their tensors."""

    _open: list[tuple[int, int, mmap.mmap]] = field(default_factory=list)

    def tensors(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of a safetensors file. The tensors are not to be written to."""
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: dict[str, Any] = json.loads(file.read(length))
            flags = mmap.MAP_PRIVATE | _UNRESERVED
            pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        first = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
        self._open.append((first, first + len(pages), pages))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = DTYPES[entry["dtype"]]
            count = (end - begin) // dtype.itemsize
            flat = (
                torch.frombuffer(pages, dtype=dtype, count=count, offset=8 + length + begin)
                if count
                else torch.empty(0, dtype=dtype)
            )
            yield name, flat.reshape(entry["shape"])

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return any(begin <= tensor.data_ptr() < end for begin, end, _ in self._open)

    def release(self) -> None:
        """Give the pages back; they are read again when they are used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for _, _, pages in self._open:
                pages.madvise(mmap.MADV_DONTNEED)


def load_mapped(folder: Path, files: Iterable[Path], scratch: Path) -> tuple[PreTrainedModel, Maps]:
    """The model in ``folder``, with the weights of ``files`` in the type that they have there.

    ``scratch``: an empty folder. What transformers raises for a folder that is no model is passed on.
    """
    maps = Maps()
    tensors = {name: tensor for path in files for name, tensor in maps.tensors(path)}
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model_class = type(AutoModelForCausalLM.from_config(config))
    largest = max((t for t in tensors.values() if t.is_floating_point()), key=lambda t: t.numel())
    with _spooling(maps, scratch):
        model: PreTrainedModel = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=largest.dtype
        )
    model.set_experts_implementation("eager")  # one by one, so that the inputs of each are seen
    maps.release()
    return model.eval(), maps


@contextmanager
def _spooling(maps: Maps, scratch: Path) -> Iterator[None]:
    """Within it every large parameter that is in memory goes to a file as soon as a module gets it."""
    number = 0

    def hook(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal number
        if parameter is None or parameter.is_meta or parameter.nbytes < SPOOLED or parameter.data in maps:
            return None
        path = scratch / f"parameter-{number}.safetensors"
        number += 1
        save_file({"parameter": parameter.data.contiguous()}, path)
        ((_name, tensor),) = maps.tensors(path)
        spooled = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        spooled.__dict__.update(parameter.__dict__)  # by which transformers knows that it is loaded
        maps.release()
        return spooled

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@dataclass
class Held:
    """Within it these parameters are float32 in memory; after it as they were, in their files."""

    parameters: Sequence[nn.Parameter]
    maps: Maps
    _moved: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list)

    def __enter__(self) -> Held:
        for parameter in self.parameters:
            self._moved.append((parameter, parameter.data))
            parameter.data = parameter.data.float()
        self.maps.release()
        return self

    def __exit__(self, *exception: object) -> None:
        for parameter, before in self._moved:
            parameter.data = before
        self._moved.clear()
        self.maps.release()

    def there(self, address: int) -> int | None:
        """Where a weight, or a part of one, that is at ``address`` outside is within; None: not here."""
        for parameter, before in self._moved:
            if before.data_ptr() <= address < before.data_ptr() + before.nbytes:
                place = (address - before.data_ptr()) // before.element_size()
                return parameter.data_ptr() + 4 * place
        return None
