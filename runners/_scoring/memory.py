"""How many tokens go through a model at once, from the memory that is free."""

from __future__ import annotations

from typing import Any

CPU_TOKENS = 512  # for each thread; larger passes are not faster there
CUDA_TOKENS = 16384
LEAST_TOKENS = 16  # a pass that needs more memory than there is for these cannot be mended
_SHARE = 0.5  # of the free memory: the rest is for the cache of shared beginnings and for others


def pass_tokens(model: Any, device: Any) -> int:
    """Tokens for one forward pass, padding included."""
    import torch

    most = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS * min(8, torch.get_num_threads())
    return max(LEAST_TOKENS, min(most, int(_SHARE * free_bytes(device) / token_bytes(model))))


def free_bytes(device: Any) -> int:
    """Memory that tensors on ``device`` can still take."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    import psutil

    return int(psutil.virtual_memory().available)


def token_bytes(model: Any) -> int:
    """What a token takes while its layer runs, generously, and in the cache of every layer."""
    config = model.config.get_text_config()
    hidden = width(config)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return 16 * (hidden + inner) * _value_bytes(model) + kept_bytes(model)


def kept_bytes(model: Any) -> int:
    """Keys and values of one position in all layers."""
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None) or 1
    hidden, heads = width(config), getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or hidden // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * layers * groups * size * _value_bytes(model))


def _value_bytes(model: Any) -> int:
    return max(2, int(getattr(model.dtype, "itemsize", 4)))


def width(config: Any) -> int:
    """Size of the hidden states."""
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 4096


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed for want of memory, on either kind of device."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # The CPU allocator has no class of its own: "DefaultCPUAllocator: can't allocate memory: …".
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def release(device: Any) -> None:
    """Give back what the allocator keeps, so that a smaller pass finds room."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
