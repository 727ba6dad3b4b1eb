"""What a frozen folder has in another form than the scorecard, which reads it from elsewhere."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

CALIBRATION = "calibration.jsonl"


class BaseRunner:
    """What a compressor knows: the case with its options, and two folders."""

    def __init__(self, case: Any, model_dir: Any, output_model: Path) -> None:
        self.case, self.model_dir, self.output_model = case, model_dir, output_model
        self.options = case.options


def token_lists(spec: Any, tokenizer: Any, samples: int | None = None) -> list[list[int]]:
    """The sequences of token ids that the case was calibrated on; checked against their sha256."""
    path = Path(__file__).with_name(CALIBRATION)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != spec.sha256:
        raise SystemExit(f"{path}: is not the calibration data of this case; unpack the folder again")
    return [json.loads(line)["input_ids"] for line in content.splitlines()]


def to_lm(model: Any, tokenizer: Any, case: Any) -> Any:
    """What lm-eval's HFLM is made of."""
    return model, tokenizer


def is_old() -> bool:
    """Whether transformers are older than version 5."""
    return False


def readable(folder: Path) -> Path:
    """``folder`` as these transformers can read it: as it is."""
    return folder


def recipe_of(options: Any, heads: Any = ()) -> list[Any]:
    """The steps of the recipe: modifier and arguments."""
    return [(name, arguments) for name, arguments in options.recipe]


def vision_rows(spec: Any) -> list[Any]:
    """Ends the program: no case with pictures is frozen."""
    raise SystemExit("calibration.vision_samples: pictures are not part of a frozen folder")


def function(reference: str, where: str) -> Any:
    """Ends the program: no case with a function of the user's own is frozen."""
    raise SystemExit(f"{where}: {reference} is not part of a frozen folder")


def package(name: str, folder: Path) -> Any:
    """Import the package ``name`` from ``folder``, without a look at what else is there or installed.

    Where the folder has none (this file copied as ``lm_eval/models/user.py``), the installed one.
    """
    path = folder / name / "__init__.py"
    if name in sys.modules or not path.is_file():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: cannot be imported; unpack the folder again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
