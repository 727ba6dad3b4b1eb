"""models.yaml to cases: read, check, fill in defaults, replace ``$variables``.

Everything a user can get wrong is a SpecError of one line, ``models.yaml: path.of.the.key: what is wrong;
what to write instead``. Options of a runner are only carried: the runner itself checks them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorecard.calibration_sets import KNOWN
from scorecard.document import Config, Document, Model, Settings, Use
from scorecard.errors import SpecError, nearest
from scorecard.sections import EarlyStopping, Evaluation, Limits
from scorecard.spec import (
    CalibrationSpec,
    Case,
    ConfigSpec,
    EarlyStop,
    EvalSpec,
    GateSpec,
    Limit,
    MeasureSpec,
    ModelSpec,
)
from scorecard.spec import Expect as ExpectSpec
from scorecard.validation import validate
from scorecard.variables import substitute
from scorecard.yaml_text import MAX_BYTES, one_line, parse, show

BASELINE = "baseline"


@dataclass(frozen=True)
class Suite:
    """The cases of one models.yaml in the order of the file, and the baseline case of each model."""

    path: Path
    cases: tuple[Case, ...]
    baselines: Mapping[str, Case]

    def baseline_of(self, case: Case) -> Case:
        """The uncompressed model, scored and timed with the settings of ``case`` so that both compare."""
        baseline = self.baselines[case.model.id]
        return dataclasses.replace(baseline, evaluation=case.evaluation, measure=case.measure)


def load(path: Path, *, evaluation: Mapping[str, Any] | None = None) -> Suite:
    """The suite that ``path`` describes. ``evaluation`` (fields of EvalSpec) overrides the file everywhere;
    relative paths in it are relative to the current folder, those of the file to the file's folder.

    Raises SpecError.
    """
    where = one_line(path.name)
    document = validate(Document, _read(path, where), where)
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in (evaluation or {}).items()}
    override = validate(Evaluation, given, "command line").given()
    folder = path.absolute().parent
    loader = _Loader(where, folder, document, _located(override, Path.cwd()))
    return Suite(path, tuple(loader.cases()), loader.baselines())


def _read(path: Path, where: str) -> Any:
    if (tree := parse(_text(path, where, "write the path of a models.yaml"), where)) is None:
        raise SpecError(f"{where}: is empty; write 'models:' and 'configs:', as docs/models-yaml.md shows")
    return tree


def _text(path: Path, where: str, instead: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise SpecError(f"{where}: cannot be read ({reason}); {instead}") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{where}: more than {MAX_BYTES >> 20} MiB; a models.yaml is a few kilobytes of text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


@dataclass(frozen=True)
class _Loader:
    """One document on its way to cases; ``override`` is the command line's evaluation."""

    where: str
    folder: Path
    document: Document
    override: Mapping[str, Any]

    def cases(self) -> Iterator[Case]:
        seen: dict[str, str] = {}
        for place, model in self._models():
            for use_place, use in self._uses(place, model):
                case = self._case(place, model, use_place, use)
                if case.id in seen:
                    problem = f"case '{case.id}' is there already, from {seen[case.id]}; rename it with 'as'"
                    raise self._error(use_place, problem)
                seen[case.id] = use_place
                yield case

    def baselines(self) -> dict[str, Case]:
        """By model id: the listed case named ``baseline``, else one made for the purpose."""
        listed = {case.model.id: case for case in self.cases() if case.config.name == BASELINE}
        use = Use(config=BASELINE)
        made = (self._case(place, model, f"configs.{BASELINE}", use) for place, model in self._models())
        return {case.model.id: listed.get(case.model.id, case) for case in made}

    def _models(self) -> Iterator[tuple[str, Model]]:
        seen: dict[str, str] = {}
        for index, model in enumerate(self.document.models):
            place, name = f"models[{index}]", f"{model.set}.{model.name}@{model.version}"
            if name in seen:
                problem = f"model '{name}' is there already, as {seen[name]}; change its version"
                raise self._error(place, problem)
            seen[name] = place
            yield place, model

    def _uses(self, place: str, model: Model) -> list[tuple[str, Use]]:
        """The configs of a model, each with the place that asks for it."""
        place = f"{place}.configs" if model.configs else "defaults.configs"
        uses = model.configs or self.document.defaults.configs
        if uses:
            return [(f"{place}[{i}]", use) for i, use in enumerate(uses)]
        return [(f"configs.{name}", Use(config=name)) for name in self.document.configs or [BASELINE]]

    def _case(self, place: str, model: Model, use_place: str, use: Use) -> Case:
        config, name = self._config(use_place, use), use.as_ or use.config
        levels: list[Settings] = [self.document.defaults, model, config]
        return Case(
            model=self._model(model),
            config=ConfigSpec(name, config.runner, self._options(use_place, use, config)),
            evaluation=self._evaluation(place, model, config),
            calibration=self._calibration(place, levels),
            measure=MeasureSpec(**_merged(level.measure.given() for level in levels)),
            limits=_limits([level.limits for level in levels]),
            expect=self._expect(place, model, config, name),
            gate=None if config.runner == BASELINE else _gate(levels),
        )

    def _model(self, model: Model) -> ModelSpec:
        names = {field.name for field in dataclasses.fields(ModelSpec)}
        values = {name: value for name, value in model if name in names}
        scheme, _, rest = model.source.partition(":")
        if scheme == "path":
            values["source"] = f"path:{_path(self.folder, rest)}"
        return ModelSpec(**values)

    def _config(self, use_place: str, use: Use) -> Config:
        known = {BASELINE: Config(runner=BASELINE), **self.document.configs}
        if use.config not in known:
            raise self._error(use_place, f"unknown config {show(use.config)}; {nearest(use.config, known)}")
        if BASELINE in (use.as_, use.config) and known[use.config].runner != BASELINE:
            problem = f"the name '{BASELINE}' is kept for the runner '{BASELINE}'; write another name"
            raise self._error(use_place, problem)
        return known[use.config]

    def _options(self, use_place: str, use: Use, config: Config) -> dict[str, Any]:
        """The runner's options with every variable replaced; a variable that nothing uses is an error."""
        place, values = f"configs.{use.config}", {**config.recipe_args, **use.recipe_args}
        written = {**(config.model_extra or {}), **self._recipe(config, place)}
        options, used = substitute(written, values, f"{self.where}: {place}")
        if unused := [name for name in values if name not in used]:
            setter = use_place if unused[0] in use.recipe_args else place
            problem = (
                f"variable '{unused[0]}' is never used; write '${unused[0]}' in an option or leave it out"
            )
            raise self._error(f"{setter}.recipe_args", problem)
        return dict(options)

    def _recipe(self, config: Config, place: str) -> dict[str, str]:
        """An option ``recipe`` that names a file stands for the text of that file."""
        recipe = (config.model_extra or {}).get("recipe")
        if not isinstance(recipe, str) or not re.fullmatch(r"[^\n]+\.(yaml|yml|json)", recipe):
            return {}
        path = Path(_path(self.folder, recipe))
        return {"recipe": _text(path, f"{self.where}: {place}.recipe", "write the path of a YAML file")}

    def _evaluation(self, place: str, model: Model, config: Config) -> EvalSpec:
        levels = [level.evaluation.given() for level in (self.document.defaults, model, config)]
        if model.tasks is not None:
            if model.evaluation.tasks is not None:
                raise self._error(f"{place}.tasks", "'evaluation' says 'tasks' too; keep one of them")
            levels.insert(2, {"tasks": model.tasks})
        found = _merged(_located(level, self.folder) for level in levels) | dict(self.override)
        if not found.get("tasks"):
            raise self._error(
                f"{place}.tasks", "is missing; write 'tasks: [hellaswag]' here or in 'defaults'"
            )
        found.setdefault("task_paths", Evaluation().task_paths)
        return EvalSpec(**{name: _frozen(value) for name, value in found.items()})

    def _calibration(self, place: str, levels: list[Settings]) -> CalibrationSpec | None:
        found: dict[str, Any] = {}
        for level in levels:
            if "calibration" in level.model_fields_set:
                # An explicit null forgets what earlier levels said.
                found = found | level.calibration.given() if level.calibration else {}
        if found and not found.get("data"):
            raise self._error(f"{place}.calibration.data", "is missing; write 'data: embedded:calibration'")
        return CalibrationSpec(**_located(found, self.folder)) if found else None

    def _expect(self, place: str, model: Model, config: Config, name: str) -> ExpectSpec | None:
        names = {BASELINE, *(use.as_ or use.config for _, use in self._uses(place, model))}
        for declared in model.expect:
            if declared not in names:
                problem = f"this model has no config {show(declared)}; {nearest(declared, names)}"
                raise self._error(f"{place}.expect", problem)
        expect = model.expect.get(name) or config.expect
        return ExpectSpec(**dict(expect)) if expect else None

    def _error(self, place: str, problem: str) -> SpecError:
        return SpecError(one_line(f"{self.where}: {place}: {problem}"))


def _merged(levels: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for level in levels for name, value in level.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, EarlyStopping):
        return EarlyStop(**dict(value))
    return tuple(value) if isinstance(value, list) else value


def _gate(levels: Iterable[Settings]) -> GateSpec | None:
    """The thresholds of all levels together, a null taking back what an earlier one says; ``None``: none."""
    found = _merged(level.gate.given() for level in levels)
    limits = {"size_gib" if name == "size" else name: value for name, value in found.items()}
    return GateSpec(**limits) if any(value is not None for value in limits.values()) else None


def _limits(levels: Iterable[Limits]) -> dict[str, Limit]:
    found: dict[str, dict[str, Any]] = {}
    for level in levels:
        for stage, limit in level.given().items():
            found[stage] = found.get(stage, {}) | limit.given() if limit else {}
    return {
        stage: Limit(time_seconds=values.get("time"), memory_gib=values.get("memory"))
        for stage, values in found.items()
        if any(value is not None for value in values.values())
    }


def _located(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``values`` with relative paths of files and folders made absolute."""
    found = dict(values)
    for name in ("heldout", "data", "collator"):
        if found.get(name) and not (found[name] in KNOWN or found[name].startswith("hf:")):
            found[name] = _path(folder, found[name])
    if found.get("tasks"):
        found["tasks"] = [_path(folder, t) if t.endswith((".yaml", ".yml")) else t for t in found["tasks"]]
    if "task_paths" in found:
        found["task_paths"] = [_path(folder, path) for path in found["task_paths"]]
    return found


def _path(folder: Path, text: str) -> str:
    if text.startswith("embedded:"):
        return text
    try:
        return str(folder / Path(text).expanduser())
    except RuntimeError:  # no such home
        return str(folder / text)
