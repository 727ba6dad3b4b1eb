"""One run put together: options, the cases they select, the bench that works on them, the rows that come out.

What pytest, ``python -m scorecard`` and ``runners/cli.py`` share.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from runners import base
from scorecard import environments, load, machine, sources
from scorecard.errors import SpecError, nearest
from scorecard.perform import Settings
from scorecard.row import DEFAULT_RANKING, SCORES
from scorecard.spec import Case, Record, Stage
from scorecard.stages import Bench, default_jobs
from scorecard.store import Store

BENCH_STAGES: tuple[Stage, ...] = ("compress", "audit", "evaluate", "measure")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where things are and how to go about the work; ``evaluation`` overrides what models.yaml says."""

    models_yaml: Path
    models_dir: Path
    work_dir: Path
    results_dir: Path
    jobs: int | None = None
    offline: bool = False
    build: bool = True
    rerun: bool = False
    ranking: str = DEFAULT_RANKING
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def add_options(add: Callable[..., Any]) -> None:
    """Declare the options; ``add`` is ``argparse``'s ``add_argument`` or pytest's ``addoption``."""
    add("--models-yaml", metavar="FILE", help="the matrix of models and configs [models.yaml]")
    add("--models-dir", metavar="DIR", help="where fetched models are kept [~/.scorecard-models]")
    add("--work-dir", metavar="DIR", help="the store of finished stages [.scorecard]")
    add("--results-dir", metavar="DIR", help="where results.json, results.csv and results.md go [results]")
    add("--jobs", type=int, metavar="N", help="workers at once [one per core, one on a GPU]")
    add("--offline", action="store_true", help="fetch nothing: neither models nor data sets")
    add("--no-build", action="store_true", help="compute nothing, report what the store has")
    add("--rerun", action="store_true", help="compute again what the store has")
    add("--tasks", metavar="A,B", help="evaluate on these lm-eval tasks instead")
    add("--num-fewshot", type=int, metavar="N", help="examples in the prompt of every task")
    add("--limit", type=int, metavar="N", help="documents per task (for a quick look: not comparable)")
    add("--batch-size", type=int, metavar="N", help="evaluation batch size")
    add("--ranking", choices=list(SCORES), default=DEFAULT_RANKING, help="rank by [%(default)s]")
    add("--apply-chat-template", action="store_true", help="prompts through the tokenizer's chat template")


def from_arguments(given: Callable[[str], Any]) -> Options:
    """``Options`` from parsed arguments; ``given("models_dir")`` is one of them, ``None`` where not said."""
    evaluation = {
        "tasks": tuple(t.strip() for t in given("tasks").split(",") if t.strip()) if given("tasks") else None,
        "num_fewshot": given("num_fewshot"),
        "limit": given("limit"),
        "batch_size": given("batch_size"),
        "apply_chat_template": given("apply_chat_template") or None,
    }
    for name in ("limit", "batch_size", "jobs"):
        if given(name) is not None and given(name) < 1:
            raise SpecError(f"--{name.replace('_', '-')}: {given(name)} is not possible; write 1 or more")

    def place(name: str, default: Path) -> Path:
        return Path(given(name) or os.environ.get(f"SCORECARD_{name.upper()}") or default).resolve()

    return Options(
        models_yaml=place("models_yaml", machine.ROOT / "models.yaml"),
        models_dir=place("models_dir", sources.default_models_dir()),
        work_dir=place("work_dir", machine.ROOT / ".scorecard"),
        results_dir=place("results_dir", machine.ROOT / "results"),
        jobs=given("jobs"),
        offline=bool(given("offline")),
        build=not given("no_build"),
        rerun=bool(given("rerun")),
        ranking=given("ranking"),
        evaluation={name: value for name, value in evaluation.items() if value is not None},
    )


class Run:
    """The cases of a models.yaml, ready to be worked on. Raises SpecError for a file that is wrong.

    A run that is not ``exclusive`` is one of several side by side (``pytest -n``): it works on one stage at a
    time and takes its share of the cores.
    """

    def __init__(self, options: Options, *, exclusive: bool = True) -> None:
        self.options, self.exclusive = options, exclusive
        self.suite = load.load(options.models_yaml, evaluation=options.evaluation)
        self._weighed: list[Future[Record]] = []
        for case in self.suite.cases:
            check_options(case, options.models_yaml.name)
        self.cases = [place_options(case, options.models_yaml.parent) for case in self.suite.cases]

    def notices(self) -> list[str]:
        """What a user should know before the run, a line each."""
        names = dict.fromkeys(case.config.runner for case in self.cases)
        aliases = [
            f"runner '{n}' is no longer maintained; '{base.ALIASES[n]}', its successor, does the work"
            for n in names
            if n in base.ALIASES
        ]
        wanted = dict.fromkeys(base.get(n).environment for n in names) if self.options.build else {}
        missing = [n for n in wanted if n != base.CORE and environments.find(n) is None]
        built = "built once, when first needed (seconds with uv, a minute or two each with pip)"
        return aliases + ([f"environments still missing: {', '.join(missing)}; {built}"] if missing else [])

    def environments(self, cases: Iterable[Case]) -> list[str]:
        """What the environments of these cases took, a line each; of those that are built."""
        names = sorted({base.get(case.config.runner).environment for case in cases} - {base.CORE})
        return [f"environment {found}" for name in names if (found := environments.line(name))]

    def baseline_of(self, case: Case) -> Case:
        return self.suite.baseline_of(case)

    def case(self, name: str) -> Case:
        """The case with this id. Raises SpecError naming the nearest one."""
        known = {case.id: case for case in self.cases}
        if name not in known:
            raise SpecError(
                f"{self.options.models_yaml.name}: there is no case '{name}'; {nearest(name, known)}"
            )
        return known[name]

    @cached_property
    def bench(self) -> Bench:
        return Bench(Store(self.options.work_dir), self.baseline_of, self._settings())

    def _settings(self) -> Settings:
        options = self.options
        jobs = options.jobs or default_jobs(self._largest_model_bytes())
        beside = 1 if self.exclusive else int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        jobs = jobs if self.exclusive else 1
        return Settings(
            models_dir=options.models_dir,
            jobs=jobs,
            threads=max(1, machine.cores() // (jobs * beside)),
            offline=options.offline,
            build=options.build,
            rerun=options.rerun,
        )

    def _largest_model_bytes(self) -> int:
        """Of the models already on disk; what is still to be fetched is taken for 4 GiB."""
        sizes = [_size_bytes(self.options.models_dir, case) for case in self.cases]
        return max(sizes, default=0)

    def submit(self, wanted: Iterable[tuple[Case, Stage]]) -> None:
        """Begin work on these, and weigh the baselines that their rows are compared with."""
        pairs = list(wanted)
        baselines = [self.baseline_of(case) for case, stage in pairs if stage == "audit"]
        self.bench.submit([*pairs, *((case, "audit") for case in baselines)])
        self._weighed += [self.bench.future(case, "audit") for case in baselines]

    def wait(self) -> None:
        """Wait for the baselines that nobody asked for by name."""
        for future in self._weighed:
            future.result()

    def close(self) -> None:
        if "bench" in self.__dict__:
            self.bench.close()

    def beside(self, baseline: Case, *, build: bool) -> Bench:
        """A bench of its own, on which every case of the model refers to this very ``baseline``; for the
        caller to close. With ``build=False`` it only reads the store."""
        settings = dataclasses.replace(self._settings(), build=build, rerun=build and self.options.rerun)
        return Bench(Store(self.options.work_dir), lambda _: baseline, settings)

    def lookup(self, cases: Iterable[Case]) -> dict[str, dict[Stage, Record]]:
        """What the store has of these cases by id, nothing computed."""
        return self.lookup_named({case.id: case for case in cases})

    def lookup_named(self, cases: Mapping[str, Case]) -> dict[str, dict[Stage, Record]]:
        """The same under names of the caller's: one case may be there with several settings."""
        settings = dataclasses.replace(self._settings(), build=False, rerun=False)
        reader = Bench(Store(self.options.work_dir), self.baseline_of, settings)
        try:
            reader.submit((case, stage) for case in cases.values() for stage in BENCH_STAGES)
            return {
                name: {stage: reader.record(case, stage) for stage in BENCH_STAGES}
                for name, case in cases.items()
            }
        finally:
            reader.close()


def check_options(case: Case, where: str) -> None:
    """Raises SpecError for an unknown runner or option before any work starts."""
    place = f"{where}: configs.{case.config.name}"
    try:
        runner = base.get(case.config.runner)
    except SpecError as error:
        raise SpecError(f"{place}: {error}") from None
    runner.parse(case.config.options, place)


def place_options(case: Case, folder: Path) -> Case:
    """The case with every option that is a path made absolute; ``folder`` is the one of models.yaml."""
    fields = dataclasses.fields(base.get(case.config.runner).Options)
    paths = {f.name for f in fields if f.metadata.get("path")} & set(case.config.options)
    given = case.config.options.items()
    options = {n: str(folder / v) if n in paths and v is not None else v for n, v in given}
    return dataclasses.replace(case, config=dataclasses.replace(case.config, options=options))


def _size_bytes(models_dir: Path, case: Case) -> int:
    model = case.model
    if model.source.startswith("embedded:"):
        return 2**23
    folder = models_dir / model.set / f"{model.name}@{model.version}"
    if not folder.is_dir():
        return 2**32
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
