"""The contract of a compression backend: subclass ``BaseRunner`` in one file of this folder, as ``Runner``.

``compress`` writes ``$OUTPUT_MODEL``; ``load`` reads ``$OUTPUT_MODEL`` and nothing else. Neither may import
its library before it is called: a run that never needs the backend must not pay for it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scorecard.errors import RunnerUnavailable, SpecError, nearest
from scorecard.spec import Case

if TYPE_CHECKING:
    from lm_eval.api.model import LM

ALIASES = {"auto-gptq": "gptq"}


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """For a runner that has nothing to set."""


class BaseRunner(ABC):
    Options: ClassVar[type[Any]] = NoOptions  # frozen dataclass; field metadata: doc, choices, path
    requires: ClassVar[tuple[str, ...]] = ()  # distributions, "name" or "name==version"
    version: ClassVar[int] = 1  # raise when equal options would now give different files
    calibrates: ClassVar[bool] = False  # compress() reads the calibration text, so its hash enters the key

    def __init__(self, case: Case, model_dir: Path | None, output_model: Path) -> None:
        """``model_dir`` holds the original (``None`` where a stage must not see it)."""
        self.case, self.output_model = case, output_model
        self._model_dir = model_dir
        self.options: Any = self.parse(case.config.options, f"configs.{case.config.name}")

    @property
    def model_dir(self) -> Path:
        if self._model_dir is None:
            raise SpecError(f"{self.case.id}: load() may read $OUTPUT_MODEL only, not the original model")
        return self._model_dir

    @classmethod
    def parse(cls, options: Mapping[str, Any], where: str) -> Any:
        """``options`` of models.yaml as ``Options``. Raises SpecError naming the key and the nearest one."""
        fields = {f.name: f for f in dataclasses.fields(cls.Options)}
        hints = typing.get_type_hints(cls.Options)
        for key, value in options.items():
            if key not in fields:
                runner = cls.__module__.rpartition(".")[2]
                hint = nearest(key, fields)
                raise SpecError(f"{where}: unknown option '{key}' for runner '{runner}'; {hint}")
            _check_type(f"{where}.{key}", value, hints[key], fields[key].metadata.get("choices"))
        missing = [n for n, f in fields.items() if n not in options and f.default is f.default_factory]
        if missing:
            raise SpecError(f"{where}: option '{missing[0]}' is missing; write '{missing[0]}: …'")
        return cls.Options(**options)

    @classmethod
    def check(cls) -> None:
        """Raises RunnerUnavailable with the one line that mends it."""
        for requirement in cls.requires:
            name, _, wanted = requirement.partition("==")
            mend = f"run 'pip install {requirement}'"
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                raise RunnerUnavailable(f"needs {requirement}: {mend}") from None
            if wanted and found != wanted:
                raise RunnerUnavailable(f"needs {requirement}, found {found}: {mend}")

    def inputs(self) -> Mapping[str, Any]:
        """What else can change the files that ``compress`` writes (hashes of scripts); part of the key."""
        return {}

    @abstractmethod
    def compress(self) -> None:
        """Write into ``self.output_model`` all files needed to load, and only those."""

    @abstractmethod
    def load(self) -> LM:
        """An lm-eval LM made from ``self.output_model`` and nothing else."""


def _check_type(where: str, value: Any, hint: Any, choices: tuple[Any, ...] | None) -> None:
    allowed = typing.get_args(hint) or (hint,)
    plain = tuple(typing.get_origin(a) or a for a in allowed)
    if float in plain:
        plain += (int,)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        names = " or ".join("null" if t is type(None) else t.__name__ for t in plain)
        raise SpecError(f"{where}: {value!r} is of the wrong type; write {names}")
    if choices and value not in choices:
        raise SpecError(f"{where}: {value!r} is not possible; write one of {', '.join(map(str, choices))}")


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
