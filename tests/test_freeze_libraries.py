"""A backend that is a package of ours: a frozen folder has all of its files that it needs, and uses those."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from tiny_model import make_case

from scorecard import freeze_code, freeze_pins, libraries, locks
from scorecard.errors import ScorecardError
from scorecard.freeze_code import Calibration
from scorecard.libraries import Library
from scorecard.machine import ROOT
from scorecard.spec import CalibrationSpec

CALIBRATION = Calibration("", "0" * 64, 16, 1024, "1" * 64)
CHECK = """
import importlib, pathlib, runpy, sys
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
(library,) = runpy.run_path(program)["LIBRARIES"]
for module in (library, importlib.import_module(f"{library.__name__}.coded")):
    assert pathlib.Path(module.__file__).parent == folder / library.__name__, module.__file__
print(library.__name__)
"""


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    case = dataclasses.replace(
        make_case("rdq", {"bits": 3}), calibration=CalibrationSpec("some.jsonl", samples=16, max_length=64)
    )
    runner = freeze_code.runner_of(case, None)
    return freeze_code.programs(case, runner, CALIBRATION, old_transformers=False)


@pytest.fixture(scope="module")
def library(code: dict[str, str]) -> Library:
    (found,) = libraries.needed(code.values())
    return found


@pytest.fixture(scope="module")
def folder(code: dict[str, str], library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen folder's code."""
    made = tmp_path_factory.mktemp("frozen")
    for name, content in {**{n: text.encode() for n, text in code.items()}, **library.files}.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(content)
    return made


# -- rdq ---------------------------------------------------------------------------------------------


def test_files_are_the_package_s_own_and_no_others_of_ours(library: Library) -> None:
    assert library.name == "rdq"
    assert {"rdq/__init__.py", "rdq/budget.py", "rdq/plugin.py"} <= set(library.files)
    assert "rdq/__main__.py" not in library.files
    for name, content in library.files.items():
        assert content == (ROOT / name).read_bytes()
    assert library.imports == {"numba", "numpy", "safetensors", "torch", "transformers"}


def test_no_import_of_the_frozen_code_leads_to_a_file_that_is_missing(
    folder: Path, library: Library, tmp_path: Path
) -> None:
    """By the compiled code, which the standard library's finder reads; ours reads the source."""
    for path in folder.rglob("*.py"):
        text = path.read_text().replace("if TYPE_CHECKING:", "if False:")
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    finder = ModuleFinder(path=[str(tmp_path)])
    for program in ("compression/compress.py", "user.py"):
        finder.run_script(str(tmp_path / program))
    missing, uncertain = finder.any_missing_maybe()
    assert [name for name in (*missing, *uncertain) if name.partition(".")[0] == "rdq"] == []
    found = {Path(m.__file__).relative_to(tmp_path).as_posix() for m in finder.modules.values() if m.__file__}
    assert {name for name in found if name.startswith("rdq/")} == set(library.files)


def test_the_programs_import_the_package_of_their_folder(folder: Path) -> None:
    """Another one is installed here."""
    program = folder / "compression" / "compress.py"
    command = [sys.executable, "-I", "-c", CHECK, str(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "rdq\n"


def test_pins_hold_what_the_package_imports(library: Library) -> None:
    runner = freeze_code.runner_of(make_case("rdq", {"bits": 3}), None)
    more = freeze_pins.distributions(library.imports)
    text = freeze_pins.requirements(runner, more)
    lock = locks.parse("requirements", text, "requirements.txt")
    assert {"numba", "llvmlite", "numpy", "torch"} <= set(lock.pins)
    assert f"numba=={lock.pins['numba']}" in freeze_pins.direct(runner, text, more)


# -- any package -------------------------------------------------------------------------------------


def test_imports_in_functions_count_and_those_of_type_checkers_do_not(tmp_path: Path) -> None:
    files = {
        "__init__": "def load():\n    from rdq.outer import inner\n    return inner",
        "outer/__init__": "",
        "outer/inner": "import json, scipy.linalg\nimport rdq.deep",
        "deep": "if TYPE_CHECKING:\n    import rdq.types\nelse:\n    import zstd",
        "types": "",
        "unused": "",
    }
    for name, text in files.items():
        path = tmp_path / "rdq" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (found,) = libraries.needed(["def main():\n    import rdq\n    import tokenizers\n"], tmp_path)
    wanted = ["rdq/__init__.py", "rdq/deep.py", "rdq/outer/__init__.py", "rdq/outer/inner.py"]
    assert list(found.files) == wanted
    assert found.imports == {"scipy", "zstd"}
    assert libraries.needed(["import torch\n"], tmp_path) == []
    (tmp_path / "rdq" / "deep.py").unlink()
    with pytest.raises(ScorecardError, match=r"rdq\.deep: there is no such file"):
        libraries.needed(["import rdq\n"], tmp_path)
