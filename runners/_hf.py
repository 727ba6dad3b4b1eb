"""Folders in the Hugging Face layout: load a causal language model, copy the files that loading needs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from runners._old_transformers import is_old, readable
from runners._shapes import Shapes, Size
from scorecard.errors import SourceError
from scorecard.spec import Case

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Vocabularies that tokenizer.json repeats; copied only where there is no tokenizer.json.
SLOW_TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluation_dtype(case: Case) -> torch.dtype | None:
    """The dtype that ``evaluation.dtype`` asks for; ``None``: the artifact's own."""
    import torch

    return None if case.evaluation.dtype == "auto" else getattr(torch, case.evaluation.dtype)


def load_causal_lm(folder: Path, case: Case, **settings: Any) -> PreTrainedModel:
    """The model of ``folder`` in evaluation mode on ``device()``; never from the network.

    ``settings`` are passed to ``from_pretrained`` (a quantization config, say). Raises SourceError where a
    weight of the model is not in the files.
    """
    from transformers import AutoModelForCausalLM

    settings.setdefault("torch_dtype" if is_old() else "dtype", case.evaluation.dtype)
    loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        str(readable(folder)),
        local_files_only=True,
        trust_remote_code=case.model.trust_remote_code,
        use_safetensors=None if case.model.allow_pickle else True,
        device_map=device(),
        output_loading_info=True,
        **settings,
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers gives them random values: a format that it cannot read is no error to it
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"{folder}: holds no {missing[0]}{more} that loads; write its weights again")
    return model.eval()


def load_config(folder: Path, case: Case) -> Any:
    """The transformers configuration of ``folder``."""
    from transformers import AutoConfig

    trust = case.model.trust_remote_code
    return AutoConfig.from_pretrained(str(readable(folder)), local_files_only=True, trust_remote_code=trust)


def load_tokenizer(folder: Path, case: Case) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder``."""
    from transformers import AutoTokenizer

    trust = case.model.trust_remote_code
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(readable(folder)), local_files_only=True, trust_remote_code=trust
    )
    tokenizer.name_or_path = str(folder)  # not that of a translated view: lm-eval shows it
    return tokenizer


def empty_model(folder: Path, case: Case) -> PreTrainedModel:
    """The model's modules without any weights (meta device): names and shapes for the price of a config.

    A model of text and pictures has no causal class; it is made as what it is.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = load_config(folder, case)
    pictures = type(config) in AutoModelForImageTextToText._model_mapping
    causal = not pictures or type(config) in AutoModelForCausalLM._model_mapping
    kind = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config, trust_remote_code=case.model.trust_remote_code)
    return model


def shapes(folder: Path, case: Case) -> Shapes:
    """The layers of the model in ``folder`` that weight compression touches, without reading a weight."""
    model = empty_model(folder, case)
    sizes = {name: size for name, module in model.named_modules() if (size := linear_size(module))}
    head = model.get_output_embeddings()
    heads = {name for name, module in model.named_modules() if module is head}
    return Shapes(
        body={name: size for name, size in sizes.items() if name not in heads},
        lm_head={name: size for name, size in sizes.items() if name in heads},
        tied=is_tied(folder, case),
    )


def linear_size(module: torch.nn.Module) -> Size | None:
    """(out_features, in_features) of a Linear or of GPT-2's Conv1D; ``None`` for any other module.

    A Conv1D (``transformers.pytorch_utils``) is a Linear whose weight is stored as [in, out].
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    return None


def stored_turned(model: PreTrainedModel) -> set[str]:
    """Names of the weights of Conv1D layers, which are stored as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}


def is_tied(folder: Path, case: Case) -> bool:
    """Whether input embeddings and lm_head are one tensor."""
    return bool(getattr(load_config(folder, case), "tie_word_embeddings", False))


def model_from_state(folder: Path, case: Case, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The config in ``folder`` with plain weights from memory. Raises SourceError where one is missing."""
    from transformers import GenerationConfig

    empty = empty_model(folder, case)
    dtype = case.evaluation.dtype if case.evaluation.dtype != "auto" else empty.config.dtype
    if hasattr(empty.config, "quantization_config"):  # it tells of the files, not of this state
        del empty.config.quantization_config
    model, info = type(empty).from_pretrained(
        None, config=empty.config, state_dict=dict(state), dtype=dtype, output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
        raise SourceError(f"{folder}: weights and config.json do not match ({wrong[0]}); compress again")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    loaded: PreTrainedModel = model.to(device()).eval()
    return loaded


def to_lm(model: Any, tokenizer: PreTrainedTokenizerBase, case: Case) -> LM:
    """A model in memory as an lm-eval LM: ``evaluation.lm`` says of which class.

    Where lm-eval is not installed, ``hf`` is its twin.
    """
    settings: dict[str, Any] = {
        "batch_size": case.evaluation.batch_size,
        "max_length": case.evaluation.max_length,
        "add_bos_token": case.evaluation.add_bos_token,
    }
    if case.evaluation.lm == "shared":
        from runners._scoring.lm import make_lm

        return cast("LM", make_lm(model, tokenizer, **settings))
    if importlib.util.find_spec("lm_eval") is None:
        from runners._plain_lm import PlainLM

        return cast("LM", PlainLM(model, tokenizer, **settings))
    from lm_eval.models.huggingface import HFLM

    lm: LM = HFLM(pretrained=model, tokenizer=tokenizer, **settings)
    return lm


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files that make up the model, each weight once.

    Some folders hold the weights twice (shards beside ``consolidated.safetensors``); the index decides.
    Raises SourceError where there are none.
    """
    index = model_dir / "model.safetensors.index.json"
    if (model_dir / "model.safetensors").is_file():
        return [model_dir / "model.safetensors"]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [model_dir / name for name in sorted(names)]
    found = sorted(model_dir.glob("*.safetensors"))
    if not found:
        raise SourceError(f"{model_dir}: no .safetensors file; convert the weights with save_pretrained")
    return found


def widened(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model`` in float32, its floating-point numbers as the files of ``folder`` have them.

    For libraries whose loaders know 16-bit types only: they round what is stored in another one.
    """
    import torch

    torch.nn.Module.float(model)  # transformers' own refuses a compressed model
    places = {name: t for name, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}
    with torch.no_grad():
        for path in weight_files(folder):
            for name, tensor in read_tensors(path)[0].items():
                if name in places and tensor.is_floating_point():
                    places[name].copy_(tensor)
    return model


def store_as_original(model_dir: Path, output_model: Path) -> None:
    """Give every floating-point tensor that an artifact has of the original the dtype that it has there.

    A library that computes in float32 where the processor has no bfloat16 also saves in float32 what it
    leaves alone; the bytes on disk must not depend on the machine. Each file is held in memory by itself.
    """
    import torch
    from safetensors import safe_open

    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    dtypes: dict[str, torch.dtype | None] = {}
    for path in weight_files(model_dir):
        with safe_open(str(path), framework="pt") as file:
            dtypes |= {name: names.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    for path in weight_files(output_model):
        tensors, metadata = read_tensors(path)
        wanted = {
            name: dtype
            for name, tensor in tensors.items()
            if (dtype := dtypes.get(name)) and tensor.dtype.is_floating_point and tensor.dtype != dtype
        }
        if wanted:
            tensors |= {name: tensors[name].to(dtype) for name, dtype in wanted.items()}
            write_tensors(tensors, path, metadata)
    original, config = (
        json.loads((f / "config.json").read_text(encoding="utf-8")) for f in (model_dir, output_model)
    )
    said = {name: original[name] for name in ("dtype", "torch_dtype") if name in original and name in config}
    _write_config(output_model / "config.json", config | said)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    from safetensors.torch import load_file

    return load_file(path), metadata_of(path)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Replace ``path``, whose tensors may still be mapped."""
    from safetensors.torch import save_file

    new = path.with_name(f"{path.name}.new")
    save_file(tensors, new, metadata=dict(metadata))
    new.replace(path)


def copy_side_files(model_dir: Path, output_model: Path, case: Case, *, config: bool = True) -> None:
    """Copy tokenizer, generation config and, if asked, config of the original over what a library wrote.

    Libraries write a tokenizer anew on saving, up to twice as large. Model code (``*.py``) comes along only
    where models.yaml trusts it.
    """
    replaced = (*TOKENIZER_FILES, "generation_config.json", *(("config.json",) if config else ()))
    for name in (*replaced, *SLOW_TOKENIZER_FILES):
        (output_model / name).unlink(missing_ok=True)
    names = list(replaced)
    if not (model_dir / "tokenizer.json").is_file():
        names += SLOW_TOKENIZER_FILES
    if case.model.trust_remote_code:
        names += [path.name for path in sorted(model_dir.glob("*.py"))]
    copy_files((model_dir / name for name in names if (model_dir / name).is_file()), output_model)
    _strip_origin(output_model / "config.json")


def copy_files(paths: Iterable[Path], folder: Path) -> None:
    """Copy bytes; links are followed, so that the copy stands alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _strip_origin(config: Path) -> None:
    # A library may note where it loaded the original from; the artifact must not lead back to it.
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.pop("_name_or_path", None) is not None:
        _write_config(config, content)


def _write_config(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
