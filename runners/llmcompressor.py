"""llm-compressor: recipes of modifiers (GPTQ, AWQ, SmoothQuant, SparseGPT …) into compressed-tensors."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners import _llmcompressor as library
from runners import _recipe, _recipe_options
from runners._calibration import fingerprint, token_lists, vision_rows
from runners._hf import (
    copy_files,
    copy_side_files,
    empty_model,
    load_tokenizer,
    shapes,
    stored_turned,
    to_lm,
)
from runners._llmcompressor_data import batches, picture_batches
from runners._shapes import Shapes, check_group_size
from runners.base import BaseRunner
from scorecard import machine
from scorecard.errors import RunnerUnavailable, SpecError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel


SAID_BY_RECIPE = ("recipe", *_recipe_options.NAMES)


@dataclass(frozen=True)
class Options:
    recipe: str | dict[str, Any] | list[Any] | None = field(
        default=None,
        metadata={
            "doc": "YAML text, a .yaml, .yml or .json file, a mapping of stages, or a list of modifiers"
        },
    )
    scheme: str | None = field(
        default=None,
        metadata={
            "doc": "numbers of weights (W) and activations (A); null: W4A16",
            "choices": tuple(_recipe.SCHEMES),
        },
    )
    method: str | None = field(
        default=None,
        metadata={"doc": "how weights are rounded or pruned; null: rtn", "choices": _recipe_options.METHODS},
    )
    bits: int | None = field(
        default=None, metadata={"doc": "2 to 8, short for a scheme with 16-bit activations"}
    )
    group_size: int | None = field(
        default=None, metadata={"doc": "input features that share a scale, -1 a row; null: the scheme's own"}
    )
    symmetric: bool | None = field(default=None, metadata={"doc": "no zero point; null: the scheme's own"})
    targets: list[str] | None = field(
        default=None, metadata={"doc": "classes, names or `re:` patterns of layers; null: [Linear]"}
    )
    ignore: list[str] | None = field(default=None, metadata={"doc": "names or `re:` patterns to leave alone"})
    observer: str | None = field(default=None, metadata={"doc": "how scales are found: minmax, mse, …"})
    lm_head: bool = field(default=False, metadata={"doc": "the output layer too"})
    lm_head_bits: int | None = field(
        default=None, metadata={"doc": "round the output layer to other bits; null: as the body"}
    )
    embeddings: bool = field(default=False, metadata={"doc": "round the input embeddings too"})
    embeddings_bits: int | None = field(default=None, metadata={"doc": "their bits; null: as the body"})
    dampening_frac: float | None = field(
        default=None, metadata={"doc": "GPTQ, SparseGPT: damping; null: 0.01"}
    )
    block_size: int | None = field(
        default=None, metadata={"doc": "GPTQ, SparseGPT: columns at a time; null: 128"}
    )
    actorder: str | None = field(
        default=None,
        metadata={
            "doc": "GPTQ: order of columns by activation; null: static",
            "choices": ("static", "weight", "group", "dynamic"),
        },
    )
    smoothing_strength: float | None = field(default=None, metadata={"doc": "SmoothQuant; null: 0.5"})
    sparsity: float | None = field(
        default=None, metadata={"doc": "SparseGPT, Wanda: share of zeros; null: 0.5"}
    )
    mask_structure: str | None = field(
        default=None, metadata={"doc": "SparseGPT, Wanda: zeros in a group, such as 2:4; null: anywhere"}
    )
    duo_scaling: bool | None = field(
        default=None, metadata={"doc": "AWQ: scales from weights too; null: true"}
    )
    n_grid: int | None = field(default=None, metadata={"doc": "AWQ: scales to try; null: 20"})
    samples: int | None = field(
        default=None, metadata={"doc": "calibration sequences to use; null: calibration.samples"}
    )
    batch_size: int = field(default=1, metadata={"doc": "calibration sequences at once"})
    data_collator: str | None = field(
        default=None, metadata={"doc": "`file.py:function` that makes a batch from samples", "path": True}
    )
    pipeline: str = field(
        default="independent",
        metadata={
            "doc": "how calibration data go through the model",
            "choices": ("independent", "sequential", "basic", "datafree"),
        },
    )
    sequential_targets: list[str] | None = field(
        default=None, metadata={"doc": "layers that are calibrated one after the other; null: decoder layers"}
    )
    moe_calibrate_all_experts: bool = field(default=True, metadata={"doc": "every expert sees every token"})
    model_class: str = field(default=library.CAUSAL, metadata={"doc": "class of transformers to load with"})
    tracing_class: str | None = field(
        default=None,
        metadata={"doc": "class of transformers to compress with; null: model_class"},
    )
    max_memory_per_gpu: str | float | None = field(
        default=None, metadata={"doc": "GB of the model on each GPU, or `hessian`: leave room for GPTQ's"}
    )
    save_compressed: bool = field(
        default=True, metadata={"doc": "false: rounded weights in their first type"}
    )
    save_directory: str | None = field(
        default=None,
        metadata={
            "doc": "folder for a copy, in a folder named by the case, relative to models.yaml",
            "path": True,
        },
    )
    tags: list[str] | None = field(default=None, metadata={"doc": "words kept with the record", "key": False})

    def __post_init__(self) -> None:
        if isinstance(self.max_memory_per_gpu, str) and self.max_memory_per_gpu != "hessian":
            raise ValueError("max_memory_per_gpu: is no number; write GB, hessian or null")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size} is not possible; write 1 or more")
        if self.recipe is None:
            _recipe_options.check(self)
        elif doubled := [name for name in _recipe_options.NAMES if getattr(self, name) not in (None, False)]:
            raise ValueError(f"{doubled[0]}: the recipe says everything; keep one of both")
        try:
            calibrated = _recipe.needs_calibration(self.steps())
        except SpecError as error:
            raise ValueError(str(error)) from None
        if calibrated and self.pipeline == "datafree":
            raise ValueError("pipeline: the recipe needs calibration data; write pipeline: independent")

    def steps(self, heads: tuple[str, ...] = ("lm_head",)) -> list[_recipe.Step]:
        """The recipe, however it was written; ``heads`` names the output layers."""
        return recipe_of(self, heads)


def recipe_of(options: Options, heads: tuple[str, ...]) -> list[_recipe.Step]:
    """The steps that the options stand for."""
    if options.recipe is None:
        return _recipe_options.steps(options, heads)
    return _recipe.steps(options.recipe, "recipe")


class Runner(BaseRunner):
    """llm-compressor: `recipe` (stages of modifiers), or `method` and `scheme` that stand for one.

    The artifact is a compressed-tensors folder, as vLLM and transformers read it. On a CPU, formats with
    compressed activations are computed in full precision on rounded values: right numbers, no speed. Sparse
    methods store zeros as they are: the file is as large as before. Embeddings and an output layer with bits
    of its own are rounded to nearest. `save_directory` gets a copy when the case is compressed, not when its
    result is there already.
    """

    Options = Options
    environment = "llmcompressor"
    requires = ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0")

    @property
    def calibrates(self) -> bool:
        return _recipe.needs_calibration(self.options.steps())

    def check(self) -> None:
        if self.options.max_memory_per_gpu is not None and machine.device() != "cuda":
            raise RunnerUnavailable("max_memory_per_gpu needs a GPU; write max_memory_per_gpu: null")

    def check_shapes(self, shapes: Shapes) -> None:
        for part in ("lm_head", "embeddings"):
            if shapes.tied and getattr(self.options, part):
                where = f"configs.{self.case.config.name}.{part}"
                raise SpecError(f"{where}: embeddings and output layer are one tensor; write {part}: false")
        heads = tuple(shapes.lm_head) or ("lm_head",)
        for step in self.options.steps(heads):
            for targets, size in _recipe.group_sizes(step):
                layers = {
                    name: shape
                    for name, shape in shapes.layers(lm_head=True).items()
                    if _recipe.matches(name, targets) and not _recipe.matches(name, step[1].get("ignore", ()))
                }
                check_group_size(self.case, layers, size)

    def inputs(self) -> Mapping[str, Any]:
        collator = self.options.data_collator
        return {"collator": fingerprint(collator)} if collator else {}

    def frozen_options(self) -> Mapping[str, Any]:
        """The recipe as its steps, and no copy elsewhere. Raises SpecError for what stays outside of it."""
        where = f"configs.{self.case.config.name}"
        for name in ("data_collator",):
            if getattr(self.options, name):
                raise SpecError(f"{where}.{name}: cannot be frozen; leave it out")
        plain = {f.name: f.default for f in dataclasses.fields(Options)}
        kept = {name: value for name, value in super().frozen_options().items() if name not in SAID_BY_RECIPE}
        heads = tuple(shapes(self.model_dir, self.case).lm_head) or ("lm_head",)
        return {**plain, **kept, "recipe": self.options.steps(heads), "save_directory": None}

    def compress(self) -> None:
        import torch

        options, where = self.options, f"configs.{self.case.config.name}"
        torch.manual_seed(self.case.calibration.seed if self.case.calibration else 0)
        if stored_turned(empty_model(self.model_dir, self.case)):
            raise SpecError(
                f"{where}.runner: llm-compressor passes over Conv1D, as GPT-2's; write runner: gptq"
            )
        kind = library.model_class(options.tracing_class or options.model_class, f"{where}.model_class")
        model = library.load_model(self.model_dir, self.case, kind, dtype="auto", **self._placement())
        recipe = options.steps(_heads(model))
        settings = {
            "pipeline": options.pipeline,
            "sequential_targets": options.sequential_targets,
            "moe_calibrate_all_experts": options.moe_calibrate_all_experts,
            "trust_remote_code_model": self.case.model.trust_remote_code,
        }
        tokenizer = load_tokenizer(self.model_dir, self.case)
        data = self._batches(tokenizer) if _recipe.needs_calibration(recipe) else None
        library.oneshot(model, tokenizer, recipe, data, where, **settings)
        library.save(model, self.output_model, f"{where}.recipe", compressed=options.save_compressed)
        copy_side_files(self.model_dir, self.output_model, self.case, config=False)
        pictures = [self.model_dir / name for name in library.PROCESSOR_FILES]
        copy_files((path for path in pictures if path.is_file()), self.output_model)
        self._keep_copy()

    def _placement(self) -> dict[str, Any]:
        limit = self.options.max_memory_per_gpu
        layers = shapes(self.model_dir, self.case).body if limit == "hessian" else {}
        return library.placement(limit, layers)

    def _batches(self, tokenizer: Any) -> Any:
        options, calibration = self.options, self.case.calibration
        texts = token_lists(calibration, tokenizer, options.samples)
        pictures: list[dict[str, Any]] = []
        if calibration and calibration.vision_samples and options.model_class != library.CAUSAL:
            from transformers import AutoProcessor

            trust = self.case.model.trust_remote_code
            processor = AutoProcessor.from_pretrained(
                str(self.model_dir), local_files_only=True, trust_remote_code=trust
            )
            pictures = picture_batches(vision_rows(calibration), processor, calibration.max_length)
        return batches(texts, pictures, options.batch_size, options.data_collator)

    def _keep_copy(self) -> None:
        if self.options.save_directory is None:
            return
        folder = Path(self.options.save_directory) / self.case.id
        if folder.exists():
            shutil.rmtree(folder)  # named by the case: an earlier result of it
        shutil.copytree(self.output_model, folder)

    def load(self) -> LM:
        where = f"configs.{self.case.config.name}.model_class"
        kind = library.model_class(self.options.model_class, where)
        model = library.load_model(self.output_model, self.case, kind)
        return to_lm(model, load_tokenizer(self.output_model, self.case), self.case)


def _heads(model: PreTrainedModel) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    return tuple(name for name, module in model.named_modules() if module is head) or ("lm_head",)
