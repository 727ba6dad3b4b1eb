"""What was asked of each layer: by the config of models.yaml, and by the artifact's own config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WEIGHT_BITS = (  # spellings of formats and schemes, first match wins
    re.compile(r"^w(\d)a\d+", re.I),  # W4A16
    re.compile(r"^8da(\d)w$", re.I),  # torchao
    re.compile(r"^(?:nv|mx)?fpw?(\d)", re.I),  # FP8_DYNAMIC, NVFP4A16, MXFP4, FPW8A16
    re.compile(r"^int(\d)(?:_|$)", re.I),  # INT8_W8A8
    re.compile(r"^[a-z_]+(\d)$", re.I),  # nf4, int8, qint4
)
_FLOAT_SCHEME = re.compile(r"^(?:(?:nv|mx)?fp|int8_)", re.I)
_BEYOND_ROUNDING = (("gptq", "GPTQ"), ("awq", "AWQ"), ("auto_?-?round", "AutoRound"))
_METHOD_KEYS = ("runner", "recipe", "method", "algorithm", "modifier", "modifiers")
_EXCLUDING = ("exclude", "skip_modules", "ignore", "targets", "layer_config", "dynamic")
_SPARSE = re.compile(r"sparse|spars|wanda|prun", re.I)
_ROTATING = re.compile(r"spinquant|quip|quarot|hadamard", re.I)


@dataclass(frozen=True)
class Asked:
    """``None`` where nothing was said; ``group_size`` -1 is the whole row."""

    bits: float | None = None
    group_size: int | None = None
    symmetric: bool | None = None


def by_claims(claims: Mapping[str, Any]) -> Asked:
    """From ``bits``, ``format`` or ``scheme``, ``group_size`` or ``block_size``, and ``symmetric``.

    A scheme of floats (``NVFP4``, ``FP8_BLOCK``) says by itself how they are stored.
    """
    scheme = str(claims.get("scheme"))
    if _FLOAT_SCHEME.match(scheme):
        return Asked(_bits_of(scheme))
    size = claims.get("group_size")
    if size is None and claims.get("format") in ("nf4", "fp4"):
        size = claims.get("block_size")
    return Asked(_claimed_bits(claims), _whole(size), _truth(claims.get("symmetric")))


def leaves_out(claims: Mapping[str, Any]) -> bool:
    """Whether the options name layers to leave alone."""
    return any(claims.get(key) for key in _EXCLUDING) or bool(claims.get("recipe"))


def _claimed_bits(claims: Mapping[str, Any]) -> float | None:
    bits = claims.get("bits")
    if isinstance(bits, int | float) and not isinstance(bits, bool):
        return bits
    return _bits_of(str(claims.get("format"))) or _bits_of(str(claims.get("scheme")))


def _bits_of(said: str) -> int | None:
    found = next((match for pattern in _WEIGHT_BITS if (match := pattern.match(said))), None)
    return int(found[1]) if found else None


def by_config(config: Mapping[str, Any], layer: str) -> Asked:
    """From ``quantization_config``: of compressed-tensors, GPTQ and AWQ, auto-round, bitsandbytes, HQQ."""
    if isinstance(config.get("config_groups"), dict):
        return _by_groups(config, layer)
    if config.get("quant_method") == "bitsandbytes":
        return Asked(8 if config.get("load_in_8bit") else 4 if config.get("load_in_4bit") else None)
    if config.get("quant_method") in ("gptq", "awq", "auto-round"):
        own = {**config, **_override(config, layer)}
        symmetric = own.get("sym", not own["zero_point"] if "zero_point" in own else None)
        return Asked(_whole(own.get("bits")), _whole(own.get("group_size")), _truth(symmetric))
    if config.get("quant_method") == "hqq":
        return Asked(
            config.get("nbits"), _whole(config.get("group_size")) if config.get("axis") == 1 else None
        )
    return Asked()


def _by_groups(config: Mapping[str, Any], layer: str) -> Asked:
    groups = [group for group in config["config_groups"].values() if isinstance(group, dict)]
    named = [g for g in groups if any(_targets(str(t), layer) for t in g.get("targets") or ())]
    (group,) = named if len(named) == 1 else groups if len(groups) == 1 else ({},)
    weights = group.get("weights") or {}
    size = -1 if weights.get("strategy") == "channel" else weights.get("group_size")
    return Asked(_whole(weights.get("num_bits")), _whole(size), _truth(weights.get("symmetric")))


def _targets(target: str, layer: str) -> bool:
    if target.startswith("re:"):
        return _matches(target.removeprefix("re:"), layer)
    return target == layer


def overridden(config: Mapping[str, Any], layer: str) -> bool:
    """Whether the artifact's config says something of this layer that is not for all."""
    groups = config.get("config_groups")
    return bool(_override(config, layer)) or (isinstance(groups, dict) and len(groups) > 1)


def _override(config: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    """GPTQModel's ``dynamic`` (patterns) and auto-round's ``extra_config`` (names or patterns)."""
    for key in ("dynamic", "extra_config"):
        for pattern, own in (config.get(key) or {}).items():
            if isinstance(own, dict) and _matches(pattern.removeprefix("+:"), layer):
                return own
    return {}


def _matches(pattern: str, layer: str) -> bool:
    try:
        return re.match(pattern, layer) is not None
    except re.error:
        return pattern == layer


@dataclass(frozen=True)
class Methods:
    """What the config's method does to weights, as far as its name and recipe tell."""

    beyond_rounding: str | None = None
    sparse: bool = False
    rotates: bool = False


def methods(claims: Mapping[str, Any], applied: str) -> Methods:
    """``applied``: the recipe that llm-compressor wrote beside the weights, or nothing."""
    said = json.dumps({k: claims[k] for k in _METHOD_KEYS if claims.get(k)}, default=str)
    text = f"{said} {applied}"
    turned = str(claims.get("rotation"))
    sparse = any(value and _SPARSE.search(key) for key, value in claims.items())
    return Methods(
        _tuned(claims, said.lower()),
        sparse or bool(_SPARSE.search(text)),
        bool(_ROTATING.search(f"{text} {turned}")),
    )


def _tuned(claims: Mapping[str, Any], said: str) -> str | None:
    """The method that must give other codes than rounding. Without iterations auto-round is rounding."""
    if str(claims.get("method", "")).lower() == "rtn":
        return None
    found = next((name for pattern, name in _BEYOND_ROUNDING if re.search(pattern, said)), None)
    return None if found == "AutoRound" and claims.get("iters", 1) == 0 else found


def quantization_config(folder: Path) -> dict[str, Any]:
    """Of the artifact's config.json; empty where there is none. auto-round writes one folder deeper."""
    found = model_config(folder).get("quantization_config")
    return found if isinstance(found, dict) else {}


def model_config(folder: Path) -> dict[str, Any]:
    """config.json, or else the only one below; empty where there is none."""
    paths = [folder / "config.json"] if (folder / "config.json").is_file() else _below(folder)
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8")) if paths else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _below(folder: Path) -> Sequence[Path]:
    found = sorted(folder.rglob("config.json"))
    return found if len(found) == 1 else ()


def applied_recipe(folder: Path) -> str:
    try:
        return (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
