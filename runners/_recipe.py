"""Recipes of llm-compressor, read and checked without the library.

A recipe is a mapping ``<name>_stage`` -> ``<name>_modifiers`` -> modifier -> arguments, or a list of mappings
modifier -> arguments (https://docs.vllm.ai/projects/llm-compressor). The library passes silently over stages
and groups that are called otherwise, and then compresses nothing; here they are errors. What comes out is a
list of steps, in the order in which they are applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from scorecard.errors import SpecError, nearest
from scorecard.yaml_text import parse, show

Step = tuple[str, dict[str, Any]]  # modifier and its arguments

_COMMON = {"index", "group", "start", "end", "update"}
_SCHEMES_OF = {
    "config_groups",
    "targets",
    "ignore",
    "scheme",
    "kv_cache_scheme",
    "bypass_divisibility_checks",
}
_OBSERVERS = {"weight_observer", "input_observer", "output_observer", "observer"}
QUANTIZES = frozenset(_SCHEMES_OF | _OBSERVERS)
_OWL = {"sparsity_profile", "owl_m", "owl_lmbda"}
_PRUNES = {"sparsity", "mask_structure", "sequential_update", "targets", "ignore"} | _OWL
_SMOOTHS = {"smoothing_strength", "mappings", "ignore", "num_calibration_steps", "algorithm"}
_TRANSFORMS = {"transform_type", "transform_block_size", "transform_config"}
_ROTATES = {"rotations", "randomize", "learnable", "precision"} | _TRANSFORMS
_FADES = {"init_sparsity", "final_sparsity", "update_scheduler", "scheduler_args", "leave_enabled"}
# The modifiers of llm-compressor 0.14 and their arguments; a test compares them with the library.
MODIFIERS: Mapping[str, Set[str]] = {
    "AWQModifier": {"mappings", "offload_device", "duo_scaling", "n_grid"},
    "AutoRoundModifier": QUANTIZES
    | {"iters", "enable_torch_compile", "batch_size", "lr", "device_ids", "disable_opt_rtn"},
    "ConstantPruningModifier": {"targets"},
    "GPTQModifier": QUANTIZES | {"block_size", "dampening_frac", "actorder", "batched_quantization"},
    "LogarithmicEqualizationModifier": _SMOOTHS,
    "MagnitudePruningModifier": _FADES | {"targets", "mask_structure", "apply_globally"},
    "QuIPModifier": _ROTATES | {"targets", "ignore"},
    "QuantizationModifier": QUANTIZES,
    "REAPPruningModifier": {"sparsity", "ignore", "report_path"},
    "SmoothQuantModifier": _SMOOTHS,
    "SparseGPTModifier": _PRUNES
    | {"block_size", "dampening_frac", "preserve_sparsity_mask", "offload_hessians"},
    "SpinQuantModifier": _ROTATES | {"mappings", "norm_mappings"},
    "WandaPruningModifier": _PRUNES,
}
QUANTIZERS = frozenset(name for name, arguments in MODIFIERS.items() if arguments >= QUANTIZES)
PRUNERS = frozenset({"SparseGPTModifier", "WandaPruningModifier"})
_CALIBRATED = frozenset(MODIFIERS) - {
    "ConstantPruningModifier",
    "MagnitudePruningModifier",
    "QuIPModifier",
    "QuantizationModifier",
    "SpinQuantModifier",
}
# Preset schemes and the group of input features that shares a scale; None: a row or the whole tensor.
SCHEMES: Mapping[str, int | None] = {
    **{f"W{w}A{a}": 128 for a, least in ((4, 2), (8, 2), (16, 2)) for w in range(least, min(a, 8) + 1)},
    "W4A16_ASYM": 128,
    "W4AFP8": 128,
    "W8A8": None,
    "INT8": None,
    "FP8": None,
    "FP8_DYNAMIC": None,
    "FP8_BLOCK": 128,
    "NVFP4A16": 16,
    "NVFP4": 16,
    "MXFP4A16": 32,
    "MXFP4": 32,
    "MXFP8A16": 32,
    "MXFP8": 32,
}
_STATIC_INPUTS = frozenset({"FP8", "NVFP4"})
_WITH_DATA = frozenset({"imatrix_mse", "nvfp4_expanded_imatrix"})


def steps(recipe: Any, where: str) -> list[Step]:
    """The steps of a recipe: YAML text, a mapping, or a list of modifiers.

    Raises SpecError at ``where`` for a stage, group, modifier or argument that the library does not know,
    and for a recipe without any modifier.
    """
    tree = parse(recipe, where) if isinstance(recipe, str) else recipe
    if not isinstance(tree, (Mapping, list)):
        raise SpecError(
            f"{where}: {show(tree)} is no recipe; write stages of modifiers, or a list of modifiers"
        )
    found = [
        step for name, arguments, place in _modifiers(tree, where) for step in _step(name, arguments, place)
    ]
    if not found:
        raise SpecError(f"{where}: holds no modifier; write 'quant_stage: {{quant_modifiers: {{…}}}}'")
    for index, (name, _) in enumerate(found):
        later = {other for other, _ in found[index + 1 :]}
        if name == "AWQModifier" and not later & QUANTIZERS:
            raise SpecError(f"{where}: AWQModifier only scales; write a QuantizationModifier after it")
    return found


def _modifiers(tree: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    """Name, arguments and place of each modifier, in order."""
    if isinstance(tree, list):
        for index, part in enumerate(tree):
            place = f"{where}[{index}]"
            if not isinstance(part, Mapping):
                raise SpecError(
                    f"{place}: {show(part)} is no modifier; write 'GPTQModifier: {{scheme: W4A16}}'"
                )
            yield from ((name, arguments, f"{place}.{name}") for name, arguments in part.items())
        return
    for name, value in tree.items():
        place = f"{where}.{name}"
        if name in MODIFIERS or name.endswith("Modifier"):
            yield name, value, place
        elif not name.endswith("_stage"):
            raise SpecError(f"{place}: is no stage, and would be passed over; {_stage_hint(name)}")
        else:
            yield from _groups(value, place)


def _stage_hint(name: str) -> str:
    for modifier in MODIFIERS:
        if modifier.lower() == name.lower():
            return f"did you mean '{modifier}'?"
    return f"write '{name.removesuffix('_stages')}_stage'"


def _groups(stage: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(stage, Mapping):
        raise SpecError(f"{where}: {show(stage)} is no stage; write '{{quant_modifiers: {{…}}}}'")
    for name, group in stage.items():
        place = f"{where}.{name}"
        if name == "run_type":
            continue  # of old recipes; the library reads it no more
        if not name.endswith("_modifiers"):
            raise SpecError(
                f"{place}: is no group of modifiers; write '{name.removesuffix('_mods')}_modifiers'"
            )
        if isinstance(group, Mapping):
            yield from ((modifier, arguments, f"{place}.{modifier}") for modifier, arguments in group.items())
        else:
            yield from _modifiers(group if isinstance(group, list) else [group], place)


def _step(name: str, arguments: Any, where: str) -> list[Step]:
    if name not in MODIFIERS:
        raise SpecError(f"{where}: is no modifier; {nearest(name, MODIFIERS)}")
    if not isinstance(arguments, Mapping | None):
        raise SpecError(f"{where}: {show(arguments)} is not a mapping; write '{name}: {{…}}'")
    given = dict(arguments or {})
    if name == "AWQModifier" and (quantization := {k: v for k, v in given.items() if k in QUANTIZES}):
        # Until llm-compressor 0.9 one modifier did both.
        scaling = {k: v for k, v in given.items() if k not in QUANTIZES}
        return [*_step(name, scaling, where), *_step("QuantizationModifier", quantization, where)]
    for argument in given:
        if argument not in MODIFIERS[name] | _COMMON:
            hint = nearest(argument, MODIFIERS[name])
            raise SpecError(f"{where}: unknown argument {show(argument)}; {hint}")
    if name in QUANTIZERS:
        _check_schemes(given.get("scheme"), f"{where}.scheme")
    return [(name, given)]


def _check_schemes(scheme: Any, where: str) -> None:
    for name in _names(scheme):
        if name.upper() not in SCHEMES:
            raise SpecError(f"{where}: {show(name)} is no scheme; {nearest(name.upper(), SCHEMES)}")


def _names(scheme: Any) -> list[str]:
    """Preset names in ``scheme``: one name, or a mapping of names to targets."""
    return [scheme] if isinstance(scheme, str) else list(scheme) if isinstance(scheme, Mapping) else []


def needs_calibration(recipe: Sequence[Step]) -> bool:
    """Whether any step reads calibration data, as the library decides it."""
    return any(name in _CALIBRATED or _static(arguments) for name, arguments in recipe)


def _static(arguments: Mapping[str, Any]) -> bool:
    if arguments.get("kv_cache_scheme") is not None:
        return True
    observers = {*_mapping(arguments.get("observer")).values(), arguments.get("weight_observer")}
    if observers & _WITH_DATA or {name.upper() for name in _names(arguments.get("scheme"))} & _STATIC_INPUTS:
        return True
    for group in _mapping(arguments.get("config_groups")).values():
        inputs, outputs = group.get("input_activations"), group.get("output_activations")
        if any(
            part is not None and part.get("dynamic", False) in (False, "local") for part in (inputs, outputs)
        ):
            return True
        if _mapping(group.get("weights")).get("observer") in _WITH_DATA:
            return True
    return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def group_sizes(step: Step) -> Iterator[tuple[list[str], int]]:
    """For each group of a quantizing step: targets, and how many input features share a scale."""
    name, arguments = step
    if name not in QUANTIZERS or arguments.get("bypass_divisibility_checks"):
        return
    targets, scheme = _list(arguments.get("targets", "Linear")), arguments.get("scheme")
    for preset in _names(scheme):
        if size := SCHEMES[preset.upper()]:
            yield _list(scheme[preset]) if isinstance(scheme, Mapping) else targets, size
    for group in _mapping(arguments.get("config_groups")).values():
        if size := _mapping(group.get("weights")).get("group_size"):
            yield _list(group.get("targets", targets)), size


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def matches(name: str, targets: Sequence[str], kind: str = "Linear") -> bool:
    """Whether a layer is meant: by its class, its name, or a regular expression after ``re:``."""
    return any(
        re.match(target.removeprefix("re:"), name) if target.startswith("re:") else target in (kind, name)
        for target in targets
    )
