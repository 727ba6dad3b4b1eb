"""Our modules as ``scorecard.extract`` sees them: their definitions, and what they import by which name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scorecard.source_names import Import, is_of

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset({"scorecard", "runners"})
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.AugAssign
Change = tuple[int, int, str, str]  # line, column in bytes (-1: the whole line goes), old text, new text


@dataclass
class Source:
    """One module. ``ours`` and ``theirs`` are its imports by the name that they have in it: module of ours
    and name in that (``None``: the module itself), or import statement; ``rest`` are its other statements."""

    name: str
    text: str
    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    ours: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    theirs: dict[str, str] = field(default_factory=dict)
    rest: list[ast.stmt] = field(default_factory=list)

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def inside(self, imports: Iterable[Import]) -> Source:
        """The module as a function with these imports of its own sees it."""
        seen = Source(self.name, self.text, self.definitions, dict(self.ours), self.theirs)
        for statement in imports:
            _take_import(seen, statement)
        return seen


@functools.cache
def read(name: str) -> Source:
    """Our module ``name``."""
    stem = ROOT / name.replace(".", "/")
    path = stem.with_suffix(".py")
    return parsed(name, (path if path.is_file() else stem / "__init__.py").read_text(encoding="utf-8"))


def parsed(name: str, text: str) -> Source:
    """The module that ``text`` is."""
    source = Source(name, text)
    for node in ast.parse(text).body:
        _take(source, node)
    return source


def _take(source: Source, node: ast.stmt) -> None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        _take_import(source, node)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for inner in node.body:
            _take(source, inner)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        source.definitions[node.name] = [node]
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
            source.definitions.setdefault(name, []).append(node)
    elif not isinstance(node, ast.Expr):
        source.rest.append(node)


def _take_import(source: Source, node: Import) -> None:
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        if not is_of(node, OURS):
            source.theirs[name] = ast.unparse(_single(node, alias))
        elif isinstance(node, ast.ImportFrom):
            source.ours[name] = _meant(str(node.module), alias.name)
        else:
            source.ours[name] = (alias.name, None)


def _single(node: Import, alias: ast.alias) -> Import:
    if isinstance(node, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(node.module, [alias], node.level)


def _meant(module: str, name: str) -> tuple[str, str | None]:
    """``from package import name``: a module of the package, or a name of it."""
    inner = ROOT / module.replace(".", "/") / f"{name}.py"
    return (f"{module}.{name}", None) if inner.is_file() else (module, name)


def written(source: Source, node: ast.AST, changes: Iterable[Change], end: int | None = None) -> str:
    """The lines of ``node`` (up to line ``end``) with the comment above them, after ``changes``."""
    lineno = int(getattr(node, "lineno", 1))
    first = min([lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    last = end or getattr(node, "end_lineno", None) or lineno
    lines = {n: source.lines[n - 1].encode() for n in range(first, last + 1)}
    for line, column, old, new in sorted(set(changes), key=lambda change: change[:2], reverse=True):
        if line not in lines:
            continue
        if column < 0:
            del lines[line]
            continue
        text = lines[line]
        if text[column : column + len(old)] == old.encode():
            lines[line] = text[:column] + new.encode() + text[column + len(old) :]
    above = first - 1
    while above and _is_comment(source.lines[above - 1]):
        above -= 1
    return "\n".join([*source.lines[above : first - 1], *(text.decode() for text in lines.values())])


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("# ") and "----" not in line
