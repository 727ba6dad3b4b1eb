"""The contract of a compression backend: subclass ``BaseRunner`` in one file of this folder, as ``Runner``.

``compress`` writes ``$OUTPUT_MODEL``; ``load`` reads ``$OUTPUT_MODEL`` and nothing else. Both run in the
locked environment that the runner names (``environments/<name>.txt``). Neither may import its library before
it is called: a run that never needs the backend must not pay for it.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from runners import _options
from runners._shapes import Shapes
from scorecard.errors import SpecError, nearest
from scorecard.spec import Case

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CORE = "core"  # the environment of the scorecard itself, which needs no lock of its own
ALIASES = {"auto-gptq": "gptq"}


@dataclass(frozen=True)
class NoOptions:
    """For a runner that has nothing to set."""


class BaseRunner(ABC):
    Options: ClassVar[type[Any]] = NoOptions  # frozen dataclass; field metadata: doc, choices, path, key
    environment: ClassVar[str] = CORE  # a file of environments/, or CORE
    requires: ClassVar[tuple[str, ...]] = ()  # its own distributions there: "name==version", in CORE "name"
    version: ClassVar[int] = 1  # raise when equal options would now give different files

    def __init__(self, case: Case, model_dir: Path | None, output_model: Path) -> None:
        """``model_dir`` holds the original (``None`` where a stage must not see it)."""
        self.case, self.output_model = case, output_model
        self._model_dir = model_dir
        self.options: Any = self.parse(case.config.options, f"configs.{case.config.name}")

    @classmethod
    def parse(cls, options: Mapping[str, Any], where: str) -> Any:
        """``options`` of models.yaml as ``Options``. Raises SpecError naming the key and the nearest one."""
        return _options.parse(options, cls.Options, cls.__module__.rpartition(".")[2], where)

    @property
    def model_dir(self) -> Path:
        if self._model_dir is None:
            raise SpecError(f"{self.case.id}: load() may read $OUTPUT_MODEL only, not the original model")
        return self._model_dir

    @property
    def calibrates(self) -> bool:
        """Whether ``compress`` reads calibration text with these options: its hash then enters the key."""
        return False

    def check(self) -> None:  # noqa: B027 - most have nothing to say
        """Raises RunnerUnavailable, with what mends it, when these options want what this machine lacks.

        Asked before the environment is built: imports nothing. A backend for GPUs must not fall back to the
        CPU; it says so here.
        """

    def check_shapes(self, shapes: Shapes) -> None:  # noqa: B027
        """Raises SpecError naming the first layer of the model that these options cannot store."""

    def inputs(self) -> Mapping[str, Any]:
        """What else can change the files that ``compress`` writes (hashes of scripts); part of the key."""
        return {}

    def frozen_options(self) -> Mapping[str, Any]:
        """The options by field, as a frozen folder has them: one that names a file has what is in it."""
        return {f.name: getattr(self.options, f.name) for f in dataclasses.fields(self.options)}

    @abstractmethod
    def compress(self) -> None:
        """Write into ``self.output_model`` all files needed to load, and only those."""

    @abstractmethod
    def load(self) -> LM:
        """An lm-eval LM made from ``self.output_model`` and nothing else."""


def names() -> list[str]:
    """Every backend of this folder; a leading underscore marks a helper."""
    here = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(n for n in here if not n.startswith("_") and n not in ("base", "cli"))


def get(name: str) -> type[BaseRunner]:
    """The ``Runner`` class of ``runners/<name>.py``. Raises SpecError for an unknown name."""
    name = ALIASES.get(name, name)
    if not re.fullmatch(r"\w+", name) or name not in names():
        raise SpecError(f"runner '{name}' is unknown; {nearest(name, [*names(), *ALIASES])}")
    runner: type[BaseRunner] = importlib.import_module(f"runners.{name}").Runner
    return runner
