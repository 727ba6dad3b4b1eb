"""Code cut out of ours: what comes along, under which name, and that it runs alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scorecard import extract, source_modules
from scorecard.errors import ScorecardError
from scorecard.source_modules import OURS
from scorecard.source_names import names_in

PROGRAM = '''"""A program."""

from __future__ import annotations

from runners.one import Worker, made
from runners import two

def main() -> None:
    worker = Worker()
    print(made(3), two.made(3), worker.used(), two.LATER)

if __name__ == "__main__":
    main()
'''
ONE = '''"""Not part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runners.two import Base, FACTOR

if TYPE_CHECKING:
    from scorecard.spec import Case
    from pathlib import PurePath

UNUSED = math.pi


# Why it is made.
def made(value: int, case: Case | None = None) -> int:
    """FACTOR times the value."""
    FACTOR_of_its_own = [FACTOR for FACTOR in (1,)]
    return value * FACTOR * FACTOR_of_its_own[0]


class Worker(Base):
    """Works."""

    def used(self, path: PurePath | None = None) -> float:
        from runners.two import within

        return self._inner() + within(1)

    def _inner(self) -> float:
        return math.floor(self.start)

    def unused(self) -> Mapping[str, int]:
        return UNUSED
'''
TWO = '''"""Nor is this."""

FACTOR = 2
FACTOR += 5
LATER = {"made": FACTOR}
LATER["no definition"] = 1


class Base:
    start = 1.5


def made(value):
    return -value


def within(value):
    return value + 0.25


def unused():
    return nowhere
'''


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "runners").mkdir()
    for name, text in (("one", ONE), ("two", TWO)):
        (tmp_path / "runners" / f"{name}.py").write_text(text)
    (tmp_path / "scorecard").mkdir()
    (tmp_path / "scorecard" / "spec.py").write_text("class Case:\n    pass\n")
    monkeypatch.setattr(source_modules, "ROOT", tmp_path)
    source_modules.read.cache_clear()
    yield tmp_path
    source_modules.read.cache_clear()


def run(text: str, folder: Path) -> str:
    path = folder / "alone.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", str(path)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_runs_without_our_modules(modules: Path) -> None:
    text = extract.extract(PROGRAM, {}, {})
    assert "runners" not in text
    assert run(text, modules) == "21 -3 2.25 {'made': 7, 'no definition': 1}\n"


def test_only_what_is_reached_comes_along(modules: Path) -> None:
    text = extract.extract(PROGRAM, {}, {})
    assert "unused" not in text.lower()
    assert "# Why it is made.\ndef made(value: int, case: Any | None = None)" in text
    assert "from pathlib import PurePath" in text.partition("TYPE_CHECKING:")[2]
    assert text.startswith('"""A program."""')


def test_two_definitions_of_one_name_are_told_apart(modules: Path) -> None:
    text = extract.extract(PROGRAM, {}, {})
    assert text.count("def made(") == 1
    assert "def two_made(value):" in text
    assert "two_made(3)" in text


def test_a_name_can_be_moved_and_given_a_value(modules: Path) -> None:
    moved = {("runners.one", "made"): ("runners.two", "within")}
    text = extract.extract(PROGRAM, moved, {("runners.two", "LATER"): {"": "'frozen'"}})
    assert run(text, modules).split() == ["3.25", "-3", "2.25", "frozen"]


def test_a_name_that_is_nowhere_is_an_error(modules: Path) -> None:
    with pytest.raises(ScorecardError, match=r"runners\.two: 'nowhere' is defined nowhere"):
        extract.extract("from runners.two import unused\nunused()\nif 1:\n    unused()\n", {}, {})


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a, *b, c=d, **e):\n    return a, b, c, e, g", {"d", "g"}),
        ("def f():\n    x = 1\n    def h(): return x, y\n    return h", {"y"}),
        ("def f():\n    import json\n    return json, [i for i in z]", {"z"}),
        ("def f(v):\n    match v:\n        case [first, *rest]: return first, rest, w", {"w"}),
        ("def f():\n    try: a()\n    except E as error: return error", {"a", "E"}),
        ("def f():\n    with a() as b, c as (d, e): return b, d, e", {"a", "c"}),
        ("@deco(1)\nclass C(B):\n    def m(self): return self.x, C", {"deco", "B", "C"}),
        ("x = lambda q: q + r", {"x", "r"}),
    ],
)
def test_names_follow_the_rules_of_scope(source: str, names: set[str]) -> None:
    assert {node.id for node in names_in(ast.parse(source).body, OURS).names} == names
