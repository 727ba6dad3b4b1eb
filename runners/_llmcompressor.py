"""What of llm-compressor is called, inside its own environment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners._hf import device
from runners._recipe import PRUNERS, QUANTIZERS, Step
from scorecard.errors import SourceError, SpecError, nearest
from scorecard.spec import Case

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

CAUSAL = "AutoModelForCausalLM"
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)


def model_class(name: str, where: str) -> Any:
    """A class of transformers. Raises SpecError at ``where`` with the nearest one."""
    import transformers

    found = getattr(transformers, name, None)
    if not hasattr(found, "from_pretrained"):
        models = [n for n in dir(transformers) if n.startswith("AutoModel") or n.endswith("Generation")]
        raise SpecError(f"{where}: transformers has no model class '{name}'; {nearest(name, models)}")
    return found


def load_model(folder: Path, case: Case, kind: Any, **settings: Any) -> PreTrainedModel:
    """A plain or a compressed model in evaluation mode, never from the network.

    Raises SourceError where a weight is missing: transformers would go on with a random one.
    """
    with _compressed_embeddings():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
            str(folder),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=case.model.trust_remote_code,
            use_safetensors=None if case.model.allow_pickle else True,
            **{"dtype": case.evaluation.dtype, "device_map": device(), **settings},
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise SourceError(f"{folder}: {missing[0]} is not in the files; compress again with another recipe")
    return model.eval()


@contextmanager
def _compressed_embeddings() -> Iterator[None]:
    """Let transformers load what is compressed in places that it initializes.

    Before it fills in what was read it initializes every Embedding, and in some models (GPTBigCode) the
    layers of a block, by their ``weight``; one that is stored packed has none (AttributeError in 5.17).
    """
    from torch import nn
    from transformers import PreTrainedModel

    initialize = PreTrainedModel._initialize_weights

    def unless_packed(self: Any, module: Any, *arguments: Any, **settings: Any) -> None:
        packed = any(
            isinstance(part, nn.Embedding | nn.Linear) and "weight" not in part._parameters
            for part in (module, *module.children())
        )
        if not packed:
            initialize(self, module, *arguments, **settings)

    PreTrainedModel._initialize_weights = unless_packed
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize


def placement(limit: str | float | None, layers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """``from_pretrained`` settings that spread a model over the GPUs.

    ``limit`` is a number of GB for each GPU, or ``hessian``: what GPTQ's Hessians of one decoder layer (the
    square of each Linear's input width, in float32) leave free.
    """
    import torch

    if device() == "cpu":
        return {"device_map": "cpu"}
    if limit is None:
        return {"device_map": "auto"}
    gpus = range(torch.cuda.device_count())
    if limit != "hessian":
        return {"device_map": "auto", "max_memory": dict.fromkeys(gpus, f"{limit}GB")}
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus}
    return {
        "device_map": "auto",
        "max_memory": {g: max(0, n - hessian_bytes(layers)) for g, n in free.items()},
    }


def hessian_bytes(layers: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of GPTQ's float32 Hessians for the decoder layer that has the largest ones."""
    sums: dict[str, int] = {}
    for name, (_, width) in layers.items():
        block = re.match(r".*?\.\d+(?=\.)", name)
        key = block.group() if block else name
        sums[key] = sums.get(key, 0) + 4 * width * width
    return max(sums.values(), default=0)


def modifiers(recipe: Sequence[Step], where: str) -> list[Any]:
    """The library's objects for the steps. Raises SpecError with what the library has against a value."""
    from llmcompressor.modifiers import ModifierFactory
    from pydantic import ValidationError

    ModifierFactory.refresh()
    found = []
    for name, arguments in recipe:
        if name in PRUNERS and "ignore" in arguments:
            arguments = {**arguments, "ignore": _with_dots(arguments["ignore"])}
        try:
            found.append(
                ModifierFactory.create(name, allow_registered=True, allow_experimental=True, **arguments)
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, (name, *first["loc"])))
            raise SpecError(f"{where}: {place}: {first['msg'].splitlines()[0]}; mend it") from None
    return found


def _with_dots(ignore: Sequence[str]) -> list[str]:
    """``ignore`` as the pruning modifiers of 0.14 read it.

    With ``targets: [Linear]`` they know a layer as its name and a dot, so that ``lm_head`` is pruned in spite
    of ``ignore: [lm_head]``.
    """
    dotted = [name[3:].removesuffix("$") if name.startswith("re:") else re.escape(name) for name in ignore]
    return [*ignore, *(rf"re:(?:{pattern})\.$" for pattern in dotted)]


def oneshot(
    model: Any,
    processor: Any,
    recipe: Sequence[Step],
    batches: DataLoader[Any] | None,
    where: str,
    **settings: Any,
) -> None:
    """Apply the steps to the model in place. Raises SpecError where a step that quantizes found no layer."""
    from compressed_tensors.quantization.utils import is_module_quantized
    from llmcompressor import oneshot as apply

    with _no_pinned_memory():
        apply(
            model=model,
            processor=processor,
            recipe=modifiers(recipe, where),
            dataset=batches,
            clear_sparse_session=True,
            **settings,
        )
    if {name for name, _ in recipe} & QUANTIZERS and not any(map(is_module_quantized, model.modules())):
        raise SpecError(f"{where}: no layer of this model is meant by its targets; write targets: [Linear]")


def save(model: Any, folder: Path, where: str, *, compressed: bool) -> None:
    """Write what loading needs. Raises SpecError for a recipe whose result transformers would misread."""
    left = _left_alone(model)
    model.save_pretrained(folder, save_compressed=compressed)
    (folder / "recipe.yaml").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    stored = config.get("quantization_config") or {}
    _check_no_transforms(stored, where)
    if stored and (more := [name for name in left if name not in stored["ignore"]]):
        # A model of text and pictures has other names in its files than in memory; transformers reads these.
        stored["ignore"] += more
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _left_alone(model: Any) -> list[str]:
    """Names of the Linears that no step quantizes."""
    from compressed_tensors.quantization.utils import is_module_quantized
    from torch import nn

    named = model.named_modules()
    return [n for n, module in named if isinstance(module, nn.Linear) and not is_module_quantized(module)]


def _check_no_transforms(stored: Mapping[str, Any], where: str) -> None:
    """Raises SpecError for rotations that are computed while the model runs.

    transformers 5.17 loads such a folder without them and without a word: weights that are rotated, inputs
    that are not.
    """
    groups = ((stored.get("transform_config") or {}).get("config_groups") or {}).values()
    places = {place["location"] for group in groups for place in group["apply"]}
    if any(not place.startswith("weight_") for place in places):  # those are in the weights
        raise SpecError(
            f"{where}: leaves rotations of activations, which transformers does not load; "
            "write 'SpinQuantModifier: {rotations: [R1, R2]}', whose rotations go into the weights"
        )


@contextmanager
def _no_pinned_memory() -> Iterator[None]:
    """Without a GPU there is no memory to pin, but the library's cache of activations tries."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin = IntermediatesCache.pin_memory
    if device() == "cpu":
        IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
