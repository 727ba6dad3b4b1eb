"""The recipe that plain options stand for: ``method: gptq, scheme: W4A16`` and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runners._recipe import SCHEMES, Step

METHODS = (
    "rtn",
    "gptq",
    "awq",
    "smoothquant+rtn",
    "smoothquant+gptq",
    "sparsegpt",
    "wanda",
    "sparsegpt+gptq",
    "wanda+gptq",
)
DEFAULT_SCHEME = "W4A16"
_INTEGERS = re.compile(r"W([2-8])A(4|8|16)(_ASYM)?")
# Option -> the parts of a method that it sets, and its name there where that is another.
_OF: Mapping[str, tuple[str, ...]] = {
    "dampening_frac": ("gptq", "sparsegpt"),
    "block_size": ("gptq", "sparsegpt"),
    "actorder": ("gptq",),
    "smoothing_strength": ("smoothquant",),
    "sparsity": ("sparsegpt", "wanda"),
    "mask_structure": ("sparsegpt", "wanda"),
    "duo_scaling": ("awq",),
    "n_grid": ("awq",),
}
_MODIFIERS = {
    "rtn": "QuantizationModifier",
    "gptq": "GPTQModifier",
    "awq": "AWQModifier",
    "smoothquant": "SmoothQuantModifier",
    "sparsegpt": "SparseGPTModifier",
    "wanda": "WandaPruningModifier",
}
NAMES = (
    *("scheme", "method", "bits", "group_size", "symmetric", "targets", "ignore", "observer"),
    *("lm_head", "lm_head_bits", "embeddings", "embeddings_bits"),
    *_OF,
)


def check(options: Any) -> None:
    """Raises ValueError, ``option: what is wrong; what to write``, for options that do not go together."""
    parts = _parts(options)
    for name, methods in _OF.items():
        if getattr(options, name) is not None and not set(methods) & set(parts):
            raise ValueError(f"{name}: not for method '{options.method}'; write method: {methods[0]}")
    if parts[-1] in ("sparsegpt", "wanda"):
        _check_pruning(options)
    else:
        _check_numbers(options)
        _check_apart(options)


def _check_numbers(options: Any) -> None:
    if options.bits is not None and options.scheme is not None:
        raise ValueError("bits: the scheme says them; keep one of both")
    if options.bits is not None and not 2 <= options.bits <= 8:
        raise ValueError(f"bits: {options.bits} is not possible; write 2 to 8")
    for name in ("group_size", "symmetric"):
        if getattr(options, name) is not None and not _integers(options):
            raise ValueError(f"{name}: {options.scheme} has its own; leave it out or write scheme: W4A16")
    if options.symmetric is True and _scheme(options).endswith("_ASYM"):
        raise ValueError(f"symmetric: {options.scheme} is not; write scheme: W4A16")
    if options.group_size is not None and options.group_size != -1 and options.group_size < 1:
        raise ValueError(f"group_size: {options.group_size} is not possible; write -1 (a row) or more than 0")


def _check_apart(options: Any) -> None:
    for part in ("lm_head", "embeddings"):
        bits = getattr(options, f"{part}_bits")
        if bits is not None and (not getattr(options, part) or not 2 <= bits <= 8):
            raise ValueError(f"{part}_bits: {bits} is not possible; write {part}: true and 2 to 8 bits")


def _check_pruning(options: Any) -> None:
    quantizing = ("scheme", "bits", "group_size", "symmetric", "observer", "lm_head_bits", "embeddings")
    for name in (*quantizing, "embeddings_bits"):
        if getattr(options, name):
            raise ValueError(f"{name}: {options.method} stores no codes; write method: {options.method}+gptq")


def _parts(options: Any) -> list[str]:
    return (options.method or "rtn").split("+")


def _integers(options: Any) -> re.Match[str] | None:
    return _INTEGERS.fullmatch(_scheme(options))


def _scheme(options: Any) -> str:
    return f"W{options.bits}A16" if options.bits is not None else options.scheme or DEFAULT_SCHEME


def steps(options: Any, heads: Sequence[str] = ("lm_head",)) -> list[Step]:
    """The recipe; ``heads`` are the names of the model's output layers."""
    separate = options.lm_head_bits is not None
    ignore = [*(() if options.lm_head and not separate else heads), *(options.ignore or ())]
    parts = _parts(options)
    found = [_step(part, options, ignore) for part in parts]
    if parts[-1] == "awq":  # it only scales
        found.append(("QuantizationModifier", _quantization(options, ignore)))
    groups = {}
    if options.embeddings:
        groups["embeddings"] = _integer_group(["Embedding"], options.embeddings_bits, options)
    if separate:
        groups["lm_head"] = _integer_group(list(heads), options.lm_head_bits, options)
    # A step of its own: a table has no inputs to learn from, and GPTQ makes it NaN.
    return [*found, ("QuantizationModifier", {"config_groups": groups})] if groups else found


def _step(part: str, options: Any, ignore: Sequence[str]) -> Step:
    own = {name: getattr(options, name) for name, methods in _OF.items() if part in methods}
    arguments = {name: value for name, value in own.items() if value is not None}
    if part in ("rtn", "gptq"):
        arguments |= _quantization(options, ignore)
    elif part in ("sparsegpt", "wanda"):
        arguments = {"sparsity": 0.5, **arguments, "ignore": list(ignore), **_targets(options)}
    return _MODIFIERS[part], arguments


def _targets(options: Any) -> dict[str, Any]:
    return {"targets": list(options.targets or ["Linear"])}


def _quantization(options: Any, ignore: Sequence[str]) -> dict[str, Any]:
    observer = {"weight_observer": options.observer} if options.observer else {}
    if options.group_size is None and options.symmetric is None:
        return {"scheme": _scheme(options), **_targets(options), "ignore": list(ignore), **observer}
    group = _integer_group(options.targets or ["Linear"], None, options)
    return {"config_groups": {"group_0": group}, "ignore": list(ignore), **observer}


def _integer_group(targets: Sequence[str], bits: int | None, options: Any) -> dict[str, Any]:
    """A group of integers; ``bits`` of its own (weights only), else those of the scheme."""
    own, scheme = bits is not None or targets == ["Embedding"], _scheme(options)
    found = _INTEGERS.fullmatch(scheme)
    width = bits or int(found[1] if found else 8 if "8" in scheme else 4)
    size = options.group_size if options.group_size is not None else SCHEMES.get(scheme)
    size = None if size in (None, -1) else size
    weights = {
        "num_bits": width,
        "type": "int",
        "strategy": "group" if size else "channel",
        "symmetric": options.symmetric if options.symmetric is not None else not scheme.endswith("_ASYM"),
        "dynamic": False,
        **({"group_size": size} if size else {}),
    }
    group: dict[str, Any] = {"targets": list(targets), "weights": weights}
    if not own and found and found[2] != "16":
        group["input_activations"] = {
            "num_bits": int(found[2]),
            "type": "int",
            "strategy": "token",
            "symmetric": True,
            "dynamic": True,
        }
    return group
