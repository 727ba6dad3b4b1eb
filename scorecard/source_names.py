"""Which names outside of itself a piece of Python source reads: what ``scorecard.extract`` follows.

The rules of scope are Python's own (https://docs.python.org/3/reference/executionmodel.html), as far as code
without ``exec``, ``import *`` and class attributes read by bare name needs them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
Import: TypeAlias = ast.Import | ast.ImportFrom


@dataclass
class Names:
    """What a piece of source reads.

    ``names`` are names of the module, ``attributes`` (name that it is read from, or "", and attribute); the
    ``notes`` are the same of annotations. ``imports`` are the import statements of our own modules in
    functions.
    """

    names: list[ast.Name] = field(default_factory=list)
    notes: list[ast.Name] = field(default_factory=list)
    attributes: list[tuple[str, ast.Attribute]] = field(default_factory=list)
    note_attributes: list[tuple[str, ast.Attribute]] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)


def names_in(nodes: Iterable[ast.AST], ours: frozenset[str]) -> Names:
    """The names that ``nodes``, parts of a module, read from it. ``ours`` are the packages whose imports
    inside of functions count as imports of the module."""
    reader = _Reader(ours)
    for node in nodes:
        reader.visit(node)
    return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self, ours: frozenset[str]) -> None:
        self.found, self.ours = Names(), ours
        self.scopes: list[set[str]] = []

    def _local(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def _note(self, annotation: ast.AST | None) -> None:
        for node in ast.walk(annotation) if annotation else ():
            if isinstance(node, ast.Name) and not self._local(node.id):
                self.found.notes.append(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                self.found.note_attributes.append((node.value.id, node))

    def visit_Name(self, node: ast.Name) -> None:
        if not self._local(node.id):
            self.found.names.append(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        base = node.value.id if isinstance(node.value, ast.Name) else ""
        self.found.attributes.append((base, node))
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._note(node.annotation)
        for part in (node.target, node.value):
            if part is not None:
                self.visit(part)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if is_of(node, self.ours):
            self.found.imports.append(node)

    def _function(self, node: Function) -> None:
        for outer in (*getattr(node, "decorator_list", ()), *node.args.defaults, *node.args.kw_defaults):
            if outer is not None:
                self.visit(outer)
        arguments = _arguments(node)
        for argument in arguments:
            self._note(argument.annotation)
        self._note(getattr(node, "returns", None))
        body = node.body if isinstance(node.body, list) else [node.body]
        self.scopes.append({argument.arg for argument in arguments} | set(_bound(body, self.ours)))
        for part in body:
            self.visit(part)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords, *node.body):
            self.visit(part)

    def _comprehension(self, node: ast.AST) -> None:
        made = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        self.scopes.append(set(made))
        self.generic_visit(node)
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815


def is_of(node: Import, packages: frozenset[str]) -> bool:
    """Whether an import statement is of one of ``packages``."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    return any(name.partition(".")[0] in packages for name in names)


def _arguments(node: Function) -> list[ast.arg]:
    a = node.args
    rest = [argument for argument in (a.vararg, a.kwarg) if argument]
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *rest]


def _bound(body: Iterable[ast.AST], ours: frozenset[str]) -> Iterator[str]:
    """The names that statements bind in their own scope."""
    for node in body:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
            continue
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom) and not is_of(node, ours):
            yield from (a.asname or a.name.partition(".")[0] for a in node.names)
        if not isinstance(node, Scope):
            yield from _bound(ast.iter_child_nodes(node), ours)
