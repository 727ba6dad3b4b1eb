"""Weights of several matrices in one tensor of three dimensions, as the experts of some models are.

Llama 4 multiplies all its experts at once (``torch.bmm``); GPT-OSS one after the other, as [in, out]. How a
stack is laid out is not written anywhere, so it is seen in a short run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
STACKED = (torch.bmm, torch.Tensor.bmm, *PRODUCTS)
STACKED_WITH_BIAS = (torch.baddbmm, torch.Tensor.baddbmm)
PROBED = 8  # tokens


def stacked_operands(
    func: Callable[..., Any], args: Sequence[Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """(inputs [stack, tokens, in], weights [stack, in, out], what is added) of a product of stacks."""
    if func in STACKED:
        added, inputs, weights = None, args[0], args[1]
    elif func in STACKED_WITH_BIAS and len(args) == 3:
        added, inputs, weights = args
    else:
        return None
    if inputs.ndim != 3 or weights.ndim != 3 or len(inputs) != len(weights):
        return None
    return inputs, weights, added


def apart(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    weights: torch.Tensor,
    added: torch.Tensor | None,
) -> torch.Tensor:
    """The product of two stacks, one weight after the other by ``product``.

    Inputs of zeros are those of tokens that were sent to other experts: they are left out, so that neither
    they nor the gradients at their outputs count.
    """
    outputs = []
    for x, weight in zip(inputs, weights, strict=True):
        reached = x.detach().ne(0).any(-1).nonzero()[:, 0]
        out = x.new_zeros(len(x), weight.shape[-1])
        if len(reached):
            out = out.index_put((reached,), product(x[reached], weight))
        outputs.append(out)
    output = torch.stack(outputs)
    return output if added is None else output + added


class _Layouts(TorchFunctionMode):
    """Notes of every product how its weight is laid out: address -> whether as [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.turned: dict[int, bool] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.linear and len(args) > 1:
            self.turned[args[1].data_ptr()] = args[1].stride(-1) != 1
        elif func in (*STACKED, *STACKED_WITH_BIAS, torch.addmm) and isinstance(args[-1], torch.Tensor):
            self.turned[args[-1].data_ptr()] = args[-1].stride(-1) == 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def layouts(model: PreTrainedModel) -> Mapping[int, bool]:
    """Address of every weight that a few tokens reach -> whether it lies in memory as [in, out]."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(PROBED, device=model.device)[None] % vocabulary
    seen = _Layouts()
    with seen:
        model(tokens, use_cache=False)
    return seen.turned


def addresses(parameter: torch.Tensor) -> list[int]:
    """Of each matrix of a stack."""
    return [part.data_ptr() for part in parameter.data]
