"""The pytest side: options, one test per case and stage, work begun early, the table at the end.

Stages run in workers of a ``Bench``; tests only wait for their records, so that ``-k``, ``-x``, ``--lf``,
``-n`` and JUnit work as ever. The table is built in the controlling process from the store's records.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scorecard import machine, results, verdict
from scorecard.errors import ScorecardError
from scorecard.run import Run, add_options, from_arguments
from scorecard.spec import Case, Expect, GateSpec, Record, Stage

BENCH_FILE = Path(__file__).with_name("test_scorecard.py")
_STAGE_OF: dict[str, Stage] = {
    "test_compress": "compress",
    "test_size": "audit",
    "test_audit": "audit",
    "test_evaluate": "evaluate",
    "test_latency": "measure",
}
_LAST = {"test_latency": 1, "test_gate": 2}  # a timing waits until nothing else runs, a gate for everything
_CASE = "scorecard_case"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("scorecard", "the scorecard for LLM compression")
    add_options(group.addoption)
    verdict.add_option(group.addoption)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Read models.yaml before anything is collected: a mistake in it is one line and exit code 4."""
    config = session.config
    _check_root(config)
    if not _benches(config):
        return
    try:
        options = from_arguments(lambda name: config.getoption(name, default=None))
        bench = BenchSession(Run(options, exclusive=not _parallel(config)), config)
    except ScorecardError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(bench, BenchSession.NAME)


def _check_root(config: pytest.Config) -> None:
    """pytest looks for its settings before it knows our options: the FILE of ``--models-yaml FILE`` counts as
    a test to run then, and its folder as the root. ``--models-yaml=FILE`` has no such trouble."""
    if config.rootpath != machine.ROOT == config.invocation_params.dir:
        joined = next((a for a in config.invocation_params.args if a.startswith("--")), "--option")
        raise pytest.UsageError(
            f"pytest takes {config.rootpath} for its root; write options with '=', as in {joined}=VALUE"
        )


def _benches(config: pytest.Config) -> bool:
    """Whether the bench's file is among what was asked for."""
    asked = [config.invocation_params.dir / str(a).partition("::")[0] for a in config.args]
    return any(BENCH_FILE.is_relative_to(path.resolve()) for path in asked)


def _parallel(config: pytest.Config) -> bool:
    return bool(getattr(config.option, "numprocesses", None)) or hasattr(config, "workerinput")


class BenchSession:
    """One pytest process's part in a run; ``-n`` makes one in each worker and one in the controller."""

    NAME = "scorecard-session"

    def __init__(self, run: Run, config: pytest.Config) -> None:
        self.run, self.config = run, config
        self.parallel = _parallel(config)
        self.seen: dict[str, Case] = {}
        self.inconclusive = str(config.getoption("gate_inconclusive"))
        self.undecided_code = verdict.exit_code(self.inconclusive)
        self.undecided = False
        self.summary: results.Summary | None = None

    def pytest_report_header(self) -> list[str]:
        return self.run.notices()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if metafunc.definition.path == BENCH_FILE and "case" in metafunc.fixturenames:
            gates = metafunc.definition.originalname == "test_gate"
            cases = [case for case in self.run.cases if case.gate or not gates]
            metafunc.parametrize("case", cases, ids=lambda case: case.id, scope="module")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Timings and gates last; no test of a gate where models.yaml has none."""
        if not any(case.gate for case in self.run.cases):
            items[:] = [item for item in items if getattr(item, "originalname", "") != "test_gate"]
        items.sort(key=lambda item: _LAST.get(getattr(item, "originalname", ""), 0))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begin all selected work at once; under ``-n`` each worker does its own, when its turn comes."""
        _drop_hypothesis(session.config)
        if not session.config.option.collectonly and not self.parallel:
            self.run.submit(_wanted(session.items))

    def finished(self, node: pytest.Item, case: Case, stage: Stage) -> Record:
        """Wait for a stage; the test fails, skips or is an expected failure as the stage did."""
        node.user_properties.append((_CASE, case.id))
        if stage == "measure" and self.parallel:
            pytest.skip("timings need the machine to themselves: run without -n")
        self.run.submit([(case, stage)])
        record = self.run.bench.record(case, stage)
        node.user_properties.extend(_properties(record))
        _judge(case, stage, record)
        return record

    def judged(self, node: pytest.Item, case: Case) -> str:
        """Wait for what the gate of a case is about; the test fails, passes or is skipped as it comes out."""
        node.user_properties.append((_CASE, case.id))
        assert case.gate
        wanted = [s for s in verdict.stages(case.gate) if s != "measure" or not self.parallel]
        self.run.submit([(case, stage) for stage in wanted])
        for stage in wanted:
            record = self.run.bench.record(case, stage)
            if record.status != "ok":
                pytest.skip(f"{stage} {record.status}: {record.reason}")
        self.run.wait()
        return verdict.judge(self.run, node, case, self.inconclusive)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called in the controller too, with what its workers reported."""
        for name, value in report.user_properties:
            if name == _CASE:
                self.seen.setdefault(str(value), self.run.case(str(value)))
            self.undecided |= (name, value) == (verdict.PROPERTY, "inconclusive")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """End the work, then build the rows here rather than in the summary, where an error would hide."""
        if exitstatus == pytest.ExitCode.OK and self.undecided and self.undecided_code:
            session.exitstatus = self.undecided_code
        interrupted = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not (interrupted or session.shouldstop or session.shouldfail):
            self.run.wait()
        self.run.close()
        if self.seen and not hasattr(session.config, "workerinput"):
            order = [case for case in self.run.cases if case.id in self.seen]
            self.summary = results.summarise(self.run, order)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.summary:
            terminalreporter.section("scorecard")
            terminalreporter.write_line(self.summary.text(shutil.get_terminal_size((120, 24)).columns))


def _drop_hypothesis(config: pytest.Config) -> None:
    """Where no test uses Hypothesis its plugin still imports all of it, 0.7 s, to print that it has nothing
    to say."""
    plugin = config.pluginmanager.get_plugin("hypothesispytest")
    if plugin and "hypothesis" not in sys.modules:
        config.pluginmanager.unregister(plugin)


def _wanted(items: Iterable[Any]) -> list[tuple[Case, Stage]]:
    bench = [(i.originalname, i.callspec.params["case"]) for i in items if i.path == BENCH_FILE]
    pairs = [(case, _STAGE_OF[name]) for name, case in bench if name in _STAGE_OF]
    pairs += [(case, stage) for name, case in bench if case.gate for stage in _gate_stages(name, case.gate)]
    return list({(case.id, stage): (case, stage) for case, stage in pairs}.values())


def _gate_stages(name: str, gate: GateSpec) -> list[Stage]:
    return verdict.stages(gate) if name == "test_gate" else []


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Callable[[Case], str]:
    """``judged(case)`` is the outcome of the case's gate, once all that it is about is measured."""
    session: Any = request.config.pluginmanager.get_plugin(BenchSession.NAME)
    return lambda case: str(session.judged(request.node, case))


@pytest.fixture
def finished(request: pytest.FixtureRequest) -> Callable[[Case, Stage], Record]:
    """``finished(case, stage)`` waits for a stage and gives its record. A callable rather than a value, so
    that a failed stage is a failed test and not an error in its setup."""
    session: Any = request.config.pluginmanager.get_plugin(BenchSession.NAME)

    def wait(case: Case, stage: Stage) -> Record:
        record: Record = session.finished(request.node, case, stage)
        return record

    return wait


def _judge(case: Case, stage: Stage, record: Record) -> None:
    expect = case.expect if case.expect and case.expect.fails == stage else None
    if record.status == "failed":
        _failed(case, record, expect)
    if record.status == "skipped":
        pytest.skip(record.reason or "")
    if expect:
        pytest.fail(f"{case.id}: {stage} was declared to fail ({expect.match}) and did not", pytrace=False)


def _failed(case: Case, record: Record, expect: Expect | None) -> None:
    if expect and re.search(expect.match, record.reason or ""):
        pytest.xfail(f"declared in models.yaml: {expect.reason or record.reason}")
    message = f"{case.id}: {record.stage} failed: {record.reason}"
    pytest.fail("\n".join([message, *record.log_tail]), pytrace=False)


def _properties(record: Record) -> Iterator[tuple[str, object]]:
    """The plain numbers of a record, for JUnit."""
    yield "stage_key", record.key
    yield "stage_seconds", round(record.seconds, 3)
    yield from _flat(record.result)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}", value
