"""A causal model as a body that gives hidden states and a head that turns some of them into logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier")  # Cohere, Falcon-H1
_LOGIT_DIVISORS = ("logits_scaling",)  # Granite


@dataclass(frozen=True)
class Parts:
    """``states(**inputs)``: [batch, length, width]; ``logits(states)``: [rows, width] -> [rows, vocabulary].

    ``whole``: the states are the logits already, because body and head could not be told apart.
    ``plain_head``: weight [vocabulary, width] of a head that is nothing but a product in float32 on a CPU.
    """

    states: Callable[..., torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor]
    whole: bool = False
    plain_head: torch.Tensor | None = None


def split(model: Any, ids: torch.Tensor) -> Parts:
    """The parts of ``model``; on ``ids`` [1, length] they give the logits that the model gives."""
    import torch

    head = model.get_output_embeddings()
    seen: list[torch.Tensor] = []
    if head is not None:
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        hook.remove()
    if len(seen) == 1 and seen[0].shape[:-1] == ids.shape:
        body = _states_of(model.base_model)
        with torch.no_grad():
            states = body(input_ids=ids, use_cache=False)
        if states.shape == seen[0].shape and _close(states, seen[0]):
            for tail in _tails(model.config):
                parts = Parts(body, _with_tail(head, tail, seen[0].dtype), plain_head=_plain_weight(head))
                with torch.no_grad():
                    if _close(parts.logits(states[0]), logits):
                        same = parts.plain_head is not None and _close(_product(parts, states[0]), logits)
                        return parts if same else replace(parts, plain_head=None)
    return Parts(lambda **inputs: model(**inputs).logits, lambda states: states, whole=True)


def _plain_weight(head: Any) -> torch.Tensor | None:
    """The weight of a linear layer as PyTorch made it: no subclass, no forward or hook of another library."""
    import torch

    weight = head.weight if type(head) is torch.nn.Linear else None
    if weight is None or head.bias is not None or type(weight) is not torch.nn.Parameter:
        return None
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()
    return weight.detach() if plain else None


def _product(parts: Parts, states: torch.Tensor) -> torch.Tensor:
    assert parts.plain_head is not None
    return states.float() @ parts.plain_head.T


def _states_of(body: Any) -> Callable[..., torch.Tensor]:
    def states(**inputs: Any) -> torch.Tensor:
        output: torch.Tensor = body(**inputs)[0]
        return output

    return states


def _with_tail(
    head: Any, tail: Callable[[Any], Any], dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: tail(head(states.to(dtype)))


def _tails(config: Any) -> Iterator[Callable[[Any], Any]]:
    """What models do with the output of their head: first as the configuration says, then nothing."""
    import torch

    config = config.get_text_config()
    factor = 1.0
    for name in _LOGIT_FACTORS:
        factor *= getattr(config, name, None) or 1.0
    for name in _LOGIT_DIVISORS:
        factor /= getattr(config, name, None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def tail(logits: torch.Tensor) -> torch.Tensor:
        scaled = logits * factor if factor != 1.0 else logits
        return torch.tanh(scaled / cap) * cap if cap else scaled

    yield tail
    yield lambda logits: logits


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal but for the rounding of another order of the same operations."""
    import torch

    if ours.shape != theirs.shape:
        return False
    step = torch.finfo(theirs.dtype).eps
    scale = float(theirs.float().abs().max())
    return bool(((ours.float() - theirs.float()).abs() <= 8 * step * scale).all())
