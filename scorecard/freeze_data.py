"""The data of a frozen folder: calibration as token ids, and the tasks that are no part of lm-eval."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runners import _calibration, _calibration_source
from runners._hf import load_tokenizer
from runners.base import BaseRunner
from scorecard.documents import locate
from scorecard.errors import SpecError
from scorecard.freeze_code import Calibration
from scorecard.spec import Case, EvalSpec, Record

_FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")
_INCLUDE = re.compile(r"^include:\s*(\S+)", re.MULTILINE)
_WORD = re.compile(r"[\w./+-]+\.(?:jsonl?|parquet|csv|tsv|txt|arrow)\b")


def calibration(case: Case, runner: BaseRunner, compressed: Record, store: Path) -> Calibration | None:
    """The token ids that the case was calibrated on; ``None`` for one that was not.

    Raises SpecError where they are not those that ``compressed`` tells of.
    """
    if not runner.calibrates or case.calibration is None:
        return None
    path = _calibration_source.resolve(case.calibration, store / "calibration", offline=True)
    spec = dataclasses.replace(case.calibration, data=str(path))
    tokenizer = load_tokenizer(runner.model_dir, case)
    sequences = _calibration.token_lists(spec, tokenizer, case.config.options.get("samples"))
    sha256 = _calibration.token_sha256(sequences)
    said = compressed.result.get("calibration") or {}
    if said.get("sha256") != sha256:
        raise SpecError(
            f"freeze: {case.id} was calibrated on other token ids than {case.calibration.data} gives now; "
            "compress it again"
        )
    text = "".join(json.dumps({"input_ids": ids}, separators=(",", ":")) + "\n" for ids in sequences)
    tokens = sum(map(len, sequences))
    return Calibration(text, hashlib.sha256(text.encode()).hexdigest(), len(sequences), tokens, sha256)


def tasks(spec: EvalSpec, names: Iterable[str]) -> dict[str, bytes]:
    """Task files, and the data and code they name, by their path in the folder ``tasks``; those of lm-eval
    itself are left out.

    Data that lies elsewhere is put beside the task file, whose text then names it there. Raises SpecError for
    two files of one name.
    """
    index = _index(spec)
    found: dict[str, bytes] = {}
    for name in names:
        if name in index:
            for path, content in _files(index[name], set()):
                if found.setdefault(path, content) != content:
                    raise SpecError(f"freeze: two task files are called {path}; rename one of them")
    return found


def _index(spec: EvalSpec) -> dict[str, Path]:
    """The YAML file of each local task by the task's name."""
    from lm_eval.tasks import TaskManager

    folders = [locate(path) for path in spec.task_paths]
    files = [Path(task) for task in spec.tasks if Path(task).is_file()]
    manager = TaskManager(include_path=[*folders, *{f.parent for f in files}], include_defaults=False)
    index: dict[str, Any] = manager.task_index
    found = {name: Path(entry.yaml_path) for name, entry in index.items() if entry.yaml_path}
    written = {m[1]: f for f in files if (m := re.search(r"^task:\s*(\S+)", f.read_text(), re.MULTILINE))}
    return {**found, **written}


def _files(path: Path, seen: set[Path]) -> Iterator[tuple[str, bytes]]:
    """A task file with all that it names, at any depth."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    content = path.read_bytes()
    if path.suffix not in (".yaml", ".yml", ".py"):
        yield path.name, content
        return
    text = content.decode("utf-8")
    for word in sorted(set(_WORD.findall(text))):
        data = _data(word, path.parent)
        if data:
            yield from _files(data, seen)
            if word != data.name:  # lies elsewhere: from the folder that evaluate.py runs in
                text = text.replace(word, f"tasks/{data.name}")
    for include in _INCLUDE.findall(text):
        yield from _files(path.parent / include, seen)
        text = text.replace(f"include: {include}", f"include: {Path(include).name}")
    for module in _FUNCTION.findall(text):
        yield from _files(path.parent / f"{module.replace('.', '/')}.py", seen)
    yield path.name, text.encode()


def _data(word: str, folder: Path) -> Path | None:
    for place in (folder / word, Path(word)):
        if place.is_file():
            return place
    return None
