"""Your own compressor: any program that ``build.sh --compress`` starts, loaded through ``user.py``."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from runners.base import CORE, BaseRunner
from scorecard.errors import RunnerUnavailable, SpecError, StageFailed
from scorecard.user_class import taken

if TYPE_CHECKING:
    from lm_eval.api.model import LM

ROOT = Path(__file__).resolve().parents[1]
MODEL_NAME = "user"  # what user.py registers with lm-eval
CLASS_NAME = "UserLM"
BUILT = ("output_model", "results", "build", "dist", "__pycache__")  # made by a run, so no part of the code
LAST_LINES = 8


@dataclass(frozen=True)
class Options:
    folder: str = field(
        default="user",
        metadata={"doc": "folder with build.sh and user.py, relative to models.yaml", "path": True},
    )


class Runner(BaseRunner):
    """Code of your own: `bash build.sh --compress` writes `$OUTPUT_MODEL`, `user.py` loads it.

    `build.sh` runs in its own folder and finds the original in `$MODEL_DIR`, an empty folder for the
    result in `$OUTPUT_MODEL`, and this Python first on `$PATH`. `user.py` registers an lm-eval
    model named `user` (or defines a class `UserLM`) that takes `pretrained=$OUTPUT_MODEL` and, where
    `evaluation` says so, `max_length`, `add_bos_token` and `dtype`; it is imported from its folder and
    works unchanged as `lm_eval/models/user.py`. Every file of the folder is part of the result's key.
    """

    Options = Options

    @property
    def folder(self) -> Path:
        """The user folder. Raises SpecError where it lacks build.sh or user.py."""
        folder: Path = ROOT / self.options.folder
        for name in ("build.sh", "user.py"):
            if not (folder / name).is_file():
                where = f"configs.{self.case.config.name}.folder"
                raise SpecError(f"{where}: {folder} has no {name}; write a folder with build.sh and user.py")
        return folder

    def check(self) -> None:
        """A frozen folder may need other packages, which its build.sh would install into this environment."""
        path = self.folder / "manifest.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))["config"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if config.get("environment", CORE) != CORE:
            raise RunnerUnavailable(
                f"{self.folder} holds the frozen case '{config['name']}', which needs packages of its own; "
                f"run 'bash {self.folder}/build.sh --compress' in an environment of its own"
            )

    def inputs(self) -> Mapping[str, Any]:
        """sha256 of every file of the user folder."""
        return {"code": {str(p.relative_to(self.folder)): _sha256(p) for p in code(self.folder)}}

    def compress(self) -> None:
        self.output_model.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        places = {"OUTPUT_MODEL": self.output_model.resolve(), "MODEL_DIR": self.model_dir.resolve()}
        environment = {**os.environ, "PATH": path, **{k: str(v) for k, v in places.items()}}
        code, lines = _run(["bash", "build.sh", "--compress"], self.folder, environment)
        where = f"{self.case.id}: {self.folder / 'build.sh'} --compress"
        if code:
            said = " | ".join(lines) or "nothing"
            raise StageFailed(f"{where}: exit code {code}; its last lines: {said}")
        if not any(self.output_model.iterdir()):
            raise StageFailed(f"{where}: left nothing in $OUTPUT_MODEL; write there all that user.py reads")

    def load(self) -> LM:
        lm_class = _lm_class(self.folder)
        evaluation = self.case.evaluation
        arguments = {
            "pretrained": str(self.output_model),
            "max_length": evaluation.max_length,
            "add_bos_token": evaluation.add_bos_token,
            "dtype": None if evaluation.dtype == "auto" else evaluation.dtype,
        }
        given = taken(lm_class, {key: value for key, value in arguments.items() if value is not None})
        lm: LM = lm_class.create_from_arg_obj(given, {"batch_size": evaluation.batch_size})
        found = str(getattr(getattr(lm, "model", None), "dtype", None)).removeprefix("torch.")
        if found not in (arguments["dtype"] or found, "None"):
            asked = f"evaluation.dtype asks for {evaluation.dtype}"
            said = f"user.py took no dtype: its weights are {found}, {asked}"
            setattr(lm, "notes", [*getattr(lm, "notes", ()), said])  # noqa: B010 - an LM has no such field
        return lm


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """Run to the end, passing the output on; its exit code and last lines."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if line.strip():
                last.append(line.strip())
    return process.returncode, list(last)


def code(folder: Path) -> Iterator[Path]:
    """The files of a user folder in the order of their paths, without what a run of it has made."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        made = any(part in BUILT or part.startswith(".") or part.endswith(".egg-info") for part in parts)
        if path.is_file() and not made:
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lm_class(folder: Path) -> Any:
    from lm_eval.api.registry import model_registry

    module = _import(folder / "user.py")
    found = getattr(module, CLASS_NAME, None) or model_registry.get(MODEL_NAME, None)
    if found is None:
        raise SpecError(
            f"{folder / 'user.py'}: no lm-eval model in it; write a class {CLASS_NAME} under "
            f'@register_model("{MODEL_NAME}")'
        )
    return found


def _import(path: Path) -> ModuleType:
    """Import a file once for a process: lm-eval refuses to register a second class under one name."""
    name = f"user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise SpecError(f"{path}: cannot be imported; write a Python file")
        sys.path.insert(0, str(path.parent))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
