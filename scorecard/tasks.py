"""From the names in an evaluation spec to lm-eval task objects with their data, and what identifies them.

A task is an lm-eval name (task, group, tag, or a pattern such as ``blimp_*``) or the path of a task YAML
file. Folders in ``task_paths`` are searched first; ``embedded:tasks`` is the folder that comes with the
scorecard. Every function here runs in a worker process: it seeds and may switch off the hub process-wide.
"""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard.documents import locate
from scorecard.errors import DataUnavailable, ScorecardError, SpecError, nearest
from scorecard.identity import config_sha256, documents_sha256
from scorecard.metrics import chance, is_accuracy, primary_metric
from scorecard.spec import EvalSpec

if TYPE_CHECKING:
    from types import TracebackType

    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

HELDOUT = "heldout"  # the name of the held-out text among the tasks of documents.parquet
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def resolve(spec: EvalSpec, *, offline: bool) -> dict[str, Any]:
    """Find every task, fetch its data, and say what identifies it: part of the key of a stage.

    Returns ``{"tasks": {NAME: {"version", "config_sha256", "documents", "documents_sha256",
    "output_type", "chance"}}, "lm_eval_version", "heldout_sha256"}``, equal in every process that has the
    same task files, data and spec. Raises SpecError for a task that is unknown or cannot be used here, and
    DataUnavailable for data that cannot be had.
    """
    import lm_eval

    if offline:
        _go_offline()
    tasks = load(spec)
    return {
        "tasks": {name: _identity(task, spec) for name, task in tasks.items()},
        "lm_eval_version": lm_eval.__version__,
        "heldout_sha256": _heldout_sha256(spec),
    }


def load(spec: EvalSpec) -> dict[str, Task]:
    """The leaf tasks of a spec by name, in the order of the spec, ready to be evaluated.

    Seeds the global generators first, as lm-eval does: some tasks shuffle their documents when loaded.
    """
    if not spec.tasks:
        return {}
    seed(spec.seed)
    keep_compiled_templates()
    manager = _manager(spec)
    names: dict[str, str] = {}
    for written in spec.tasks:
        for found in _match(written, manager):
            if names.setdefault(found, written) != written:
                raise SpecError(f"tasks: '{names[found]}' and '{written}' are both '{found}'; name it once")
    tasks: dict[str, Task] = _build(manager, list(names))["tasks"]
    for name, task in tasks.items():
        _refuse(name, task)
        set_fewshot(task, spec)
    return tasks


def seed(value: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    import numpy as np
    import torch

    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _identity(task: Task, spec: EvalSpec) -> dict[str, Any]:
    metric = primary_metric(list(task.higher_is_better()))
    accuracy = is_accuracy(metric, bool(task.higher_is_better()[metric]))
    shots = task.config.num_fewshot or 0
    return {
        "version": task.VERSION,
        "config_sha256": config_sha256(task),
        "documents": len(task.eval_docs),
        "documents_sha256": documents_sha256(task.eval_docs, _examples(task) if shots else ()),
        "output_type": task.OUTPUT_TYPE,
        "chance": chance(task, spec.limit, metric, accuracy),
    }


def _examples(task: Task) -> Iterable[Any]:
    """The documents that few-shot examples are drawn from."""
    sampler = getattr(task, "sampler", None)
    examples: Iterable[Any] = task.fewshot_docs() if sampler is None else sampler.df
    return examples


def _heldout_sha256(spec: EvalSpec) -> str | None:
    import hashlib

    if spec.heldout is None:
        return None
    path = locate(spec.heldout, ".jsonl")
    if not path.is_file():
        raise DataUnavailable(f"heldout: '{spec.heldout}' is not on this machine; no file {path}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _go_offline() -> None:
    """Switch the hub off, also for libraries that read the environment when they were imported."""
    for name in _OFFLINE:
        os.environ[name] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = True


def keep_compiled_templates() -> None:
    """lm-eval compiles a prompt template anew for every document: a third of the time of short tasks."""
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=1024)(utils.env.from_string)


def _manager(spec: EvalSpec) -> TaskManager:
    """Indexing lm-eval's own 14,000 files takes seconds, so it is left out when nothing needs it."""
    from lm_eval.tasks import TaskManager

    folders = [locate(path) for path in spec.task_paths]
    for folder, written in zip(folders, spec.task_paths, strict=True):
        if not folder.is_dir():
            raise SpecError(f"task_paths: '{written}' is no folder; write a folder with task YAML files")
    local = TaskManager(include_path=folders, include_defaults=False)
    if all(_is_complete(name, local.task_index) for name in spec.tasks):
        return local
    return TaskManager(include_path=folders)


def _is_complete(name: str, index: dict[str, Any]) -> bool:
    """Whether a task, and every member of a group, is found without lm-eval's own tasks."""
    entry = index.get(name)
    config = entry.cfg if entry else _read(Path(name))
    if entry is not None and entry.kind.name == "TAG":
        return True
    if not config:
        return False
    members = config.get("task") if "group" in config else None
    if not isinstance(members, list):
        return "task" in config
    return all(isinstance(m, str) and m in index and _is_complete(m, index) for m in members)


def _read(path: Path) -> dict[str, Any] | None:
    """A task YAML file as a mapping, or None where there is no such file."""
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=False)
    except (YAMLError, ValueError, OSError) as error:
        raise SpecError(f"{path}: {_first_line(error)}; write an lm-eval task YAML file") from None
    if not isinstance(config.get("group", config.get("task")), str):
        raise SpecError(f"{path}: has no name under 'task' or 'group'; write an lm-eval task YAML file")
    return config


def _match(name: str, manager: TaskManager) -> list[str]:
    if name in manager.task_index:
        return [name]
    config = _read(Path(name))
    if config is not None:
        return [_register(config, Path(name).resolve(), manager)]
    found: list[str] = manager.match_tasks([name]) if any(c in name for c in "*?[") else []
    if not found:
        raise SpecError(f"tasks: unknown task '{name}'; {_hint(name, manager.all_tasks)}")
    return found


def _register(config: dict[str, Any], path: Path, manager: TaskManager) -> str:
    """Make a task file known by its name: lm-eval fails on the path of a file that holds a group."""
    from lm_eval.tasks._index import TaskIndex

    name: str = config.get("group") or config["task"]
    manager.task_index.pop(name, None)
    TaskIndex.process_cfg(config, path, manager.task_index)
    return name


def _hint(name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known)
    return hint if len(hint) < 200 else "write a name that 'lm-eval ls tasks' lists, or a task YAML file"


def _build(manager: TaskManager, names: list[str]) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError

    try:
        return dict(manager.load(names))
    except ImportError as error:
        raise SpecError(f"tasks: {_first_line(error)}; install it, or leave the task out") from error
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise _explained(error) from error


def _explained(error: Exception) -> Exception:
    """What to raise for an error of lm-eval: which data set is missing, or the error itself if it is ours."""
    task = _task_in(error.__traceback__)
    if task is None:
        duplicate = isinstance(error, ValueError) and "Duplicate task" in str(error)
        return SpecError(f"tasks: {error}; name it once") if duplicate else error
    return _unavailable(task, error)


def _task_in(trace: TracebackType | None) -> Task | None:
    """The task that was fetching its data when the error was raised, if one was."""
    from lm_eval.api.task import Task

    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "download" and isinstance(owner, Task):
            return owner
        trace = trace.tb_next
    return None


def _unavailable(task: Task, error: Exception) -> ScorecardError:
    import datasets

    files = (task.config.dataset_kwargs or {}).get("data_files")
    name = f"{task.DATASET_PATH}" + (f" ({task.DATASET_NAME})" if task.DATASET_NAME else "")
    where = f"task '{task.config.task}': data set '{name}'" + (f" with {files}" if files else "")
    if files or not datasets.config.HF_HUB_OFFLINE:
        return DataUnavailable(f"{where} cannot be had: {_first_line(error)}; check its name and the network")
    return DataUnavailable(
        f"{where} is not in the cache and the hub is off; "
        f"run once with the network on, or copy it into {datasets.config.HF_DATASETS_CACHE}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".;")


def _refuse(name: str, task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise SpecError(f"tasks: '{name}' runs code that the model writes; leave it out, it is not supported")
    if getattr(task, "MULTIMODAL", False):
        raise SpecError(f"tasks: '{name}' needs images or sound; leave it out, only text is supported")
    if name == HELDOUT:
        raise SpecError(f"tasks: the name '{name}' is taken by the held-out text; rename the task")


def set_fewshot(task: Task, spec: EvalSpec) -> None:
    """As lm-eval does it: a task that says 0 keeps 0, and one that says nothing has 0."""
    if spec.num_fewshot is not None and task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=spec.seed)
