"""Run one backend on one model: what pytest runs, without pytest.

python runners/cli.py --executor bnb --model embedded.tiny-llama@1 --config bnb-nf4
python runners/cli.py --executor custom
python runners/cli.py --executor rtn --option bits=3 --option group_size=64
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where `import gguf` would find runners/gguf.py.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scorecard.handover import hand_over

    hand_over([__file__, *sys.argv[1:]])

from runners import base
from scorecard import results
from scorecard.errors import EXIT_FAILED, EXIT_USAGE, ScorecardError, SpecError, nearest
from scorecard.run import BENCH_STAGES, Run, add_options, check_options, from_arguments
from scorecard.spec import Case, ConfigSpec, Record, Stage
from scorecard.store import now


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="runners/cli.py", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--executor", required=True, metavar="RUNNER", help=f"one of {', '.join(base.names())}")
    made.add_argument("--model", metavar="SET.NAME@VERSION", help="[the first model of models.yaml]")
    made.add_argument("--config", metavar="NAME", help="[the executor's only config, else its defaults]")
    made.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="set an option")
    made.add_argument("--random-inputs", action="store_true", help="time on random prompts; score nothing")
    add_options(made.add_argument)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every stage is ok, 1 when one failed, 4 for a mistake or a backend not to be had."""
    given = parser().parse_args(arguments)
    run = None
    try:
        run = Run(from_arguments(lambda name: getattr(given, name)))
        case = select(run, given.executor, given.model, given.config, given.option)
        stages = BENCH_STAGES if not given.random_inputs else ("compress", "audit", "measure")
        return _work(run, case, stages)
    except ScorecardError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if run:
            run.close()


def select(run: Run, executor: str, model: str | None, config: str | None, options: Sequence[str]) -> Case:
    """The case that the command line names. Raises SpecError naming the nearest valid model or config."""
    base.get(executor)
    runner = base.ALIASES.get(executor, executor)
    if runner != executor:
        print(f"--executor: '{executor}' is no longer maintained; '{runner}', its successor, does the work")
    models = {case.model.id: case for case in run.cases}
    if model is not None and model not in models:
        raise SpecError(f"--model: there is no model '{model}'; {nearest(model, models)}")
    some = models[model] if model else run.cases[0]
    names = (runner, executor)
    mine = {c.config.name: c for c in run.cases if c.model.id == some.model.id and c.config.runner in names}
    if config is not None and config not in mine:
        raise SpecError(
            f"--config: {some.model.id} has no config '{config}' of '{runner}'; {_hint(config, mine)}"
        )
    if config is None and len(mine) > 1 and not options:
        raise SpecError(f"--config: '{runner}' has several; write one of {', '.join(mine)}")
    if config is None and len(mine) == 1:
        config = next(iter(mine))
    case = (
        mine[config] if config else dataclasses.replace(some, config=ConfigSpec(runner, runner), expect=None)
    )
    case = _with_options(case, options)
    check_options(case, "--option")
    return case


def _hint(config: str, mine: dict[str, Case]) -> str:
    return nearest(config, mine) if mine else "leave --config out to use the defaults"


def _with_options(case: Case, options: Sequence[str]) -> Case:
    if not options:
        return case
    values = dict(_parse(option) for option in options)
    name = "+".join([case.config.name, *options])
    config = ConfigSpec(name, case.config.runner, {**case.config.options, **values})
    return dataclasses.replace(case, config=config, expect=None)


def _parse(option: str) -> tuple[str, Any]:
    import yaml

    key, equals, text = option.partition("=")
    if not key or not equals:
        raise SpecError(f"--option: '{option}' is not KEY=VALUE; write for example bits=4")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f"--option: the value of '{key}' is not YAML: {text!r}; quote it") from None


def _work(run: Run, case: Case, stages: Sequence[Stage]) -> int:
    begun = now()
    run.submit((case, stage) for stage in stages)
    for stage in stages:
        record = _say(run.bench.record(case, stage), begun)
        if record.status != "ok":  # what the others would say is not worth waiting for
            return EXIT_FAILED if record.status == "failed" else EXIT_USAGE
    run.wait()
    print(results.summarise(run, [case], write=False).text())
    return 0


def _say(record: Record, begun: str) -> Record:
    note = record.reason or ("" if record.started_at >= begun else "(from the store)")
    print(f"{record.stage:<9} {record.status:<8} {record.seconds:7.1f} s  {note}".rstrip())
    if record.status == "failed":
        print(*record.log_tail, sep="\n", file=sys.stderr)
    return record


if __name__ == "__main__":
    sys.exit(main())
