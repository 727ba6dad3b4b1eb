"""Packages of this project that stand by themselves, and the files of one that some code needs.

Code of ours is cut out into the programs of a frozen folder (``scorecard.extract``); such a package is no
part of that: a frozen folder has its files beside the programs, as they are.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scorecard.errors import ScorecardError
from scorecard.source_modules import ROOT

NAMES = frozenset({"rdq"})


@dataclass(frozen=True)
class Library:
    """One package: ``files`` by their path from the folder that holds the package (``rdq/coding.py``), and
    the top-level names of what they import from elsewhere, the standard library not counted."""

    name: str
    files: Mapping[str, bytes]
    imports: frozenset[str]


def needed(programs: Iterable[str], root: Path = ROOT) -> list[Library]:
    """What the source texts ``programs`` import of our packages in ``root``, with all that those files import
    of their own package. Imports in functions count, those for type checkers alone do not.

    Raises ScorecardError for a module that is not there.
    """
    found: dict[str, Path] = {}
    others: dict[str, set[str]] = {}
    todo = [name for text in programs for name in _imported(text, root)]
    while todo:
        name = todo.pop()
        package = name.partition(".")[0]
        if package not in NAMES or name in found:
            continue
        path = _file(name, root)
        if path is None:
            raise ScorecardError(f"{name}: there is no such file in {root}; correct the import")
        found[name] = path
        others.setdefault(package, set())
        parent = name.rpartition(".")[0]
        inside = list(_imported(path.read_text(encoding="utf-8"), root))
        others[package] |= {one.partition(".")[0] for one in inside}
        todo += [*inside, *([parent] if parent else [])]
    return [_library(name, found, others[name], root) for name in sorted(others)]


def _library(name: str, modules: Mapping[str, Path], imported: set[str], root: Path) -> Library:
    own = [path for module, path in modules.items() if module.partition(".")[0] == name]
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(own)}
    return Library(name, files, frozenset(imported - sys.stdlib_module_names - NAMES))


def _file(module: str, root: Path) -> Path | None:
    stem = root / module.replace(".", "/")
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def _imported(text: str, root: Path) -> Iterator[str]:
    """The modules that a source text imports, each in full; a submodule by ``from package import`` too."""
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module.partition(".")[0] in NAMES:
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in inner if _file(name, root))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (inner for other in node.orelse for inner in (other, *_statements(other)))
        else:
            yield node
            yield from _statements(node)
