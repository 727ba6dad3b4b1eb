"""Model folders of transformers 5 for a backend whose environment holds transformers 4.

Version 5 spells some of ``config.json`` anew: ``rope_parameters`` holds what were ``rope_theta``,
``rope_scaling`` and ``partial_rotary_factor``, and ``dtype`` was ``torch_dtype``
(https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md). Version 4 reads such a file
without an error and takes its own defaults: another model.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorecard.errors import SourceError

_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@functools.cache
def is_old() -> bool:
    """Whether the transformers of this environment are older than version 5."""
    return int(importlib.metadata.version("transformers").partition(".")[0]) < 5


@functools.cache
def readable(folder: Path) -> Path:
    """``folder`` for the transformers of this environment: itself, or links to it and translated files."""
    if not is_old():
        return folder
    _folders.append(tempfile.TemporaryDirectory(prefix="scorecard-", ignore_cleanup_errors=True))
    view = Path(_folders[-1].name)
    for path in folder.iterdir():
        (view / path.name).symlink_to(path.resolve())
    translate(view)
    return view


def translate(folder: Path) -> None:
    """Write the configuration files of ``folder`` as version 4 does."""
    for name, change in _CHANGES.items():
        path = folder / name
        if not path.is_file():
            continue
        written = json.loads(path.read_text(encoding="utf-8"))
        changed = change(written)
        if changed != written:
            path.unlink()  # a link is replaced, not what it leads to
            path.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def old_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of version 5 as version 4 spells it. Raises SourceError for what it cannot say."""
    changed = {key: _without_new_keys(value) for key, value in config.items()}
    if "dtype" in changed:
        changed["torch_dtype"] = changed.pop("dtype")
    rope = changed.pop("rope_parameters", None)
    return changed | _old_rope(rope, str(config.get("model_type"))) if rope else changed


def _without_new_keys(value: Any) -> Any:
    """The configurations inside a configuration (``text_config``) are translated too."""
    return old_config(value) if isinstance(value, dict) and "model_type" in value else value


def _old_rope(rope: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if "full_attention" in rope and set(rope) <= {"full_attention", "sliding_attention"}:
        local = rope.get("sliding_attention") or {}
        old = _old_rope(rope["full_attention"], kind)
        return {**old, "rope_local_base_freq": local["rope_theta"]} if local else old
    if "rope_type" not in rope:
        raise SourceError(f"config.json: transformers 4 has no words for rope_parameters {dict(rope)}")
    rest = dict(rope)
    names = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if kind == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    old = {names[key]: rest.pop(key) for key in names if key in rest}
    if rest["rope_type"] != "default":
        old["rope_scaling"] = rest
    return old


def old_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` of version 5 as version 4 spells it."""
    changed = dict(config)
    changed.pop("backend", None)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


_CHANGES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "config.json": old_config,
    "tokenizer_config.json": old_tokenizer_config,
}
