"""Code that stands alone, cut out of ours: a program and, of our modules, the definitions that it reaches.

What a frozen folder runs is so the very code that made the case's numbers, function by function, without a
second copy that could differ and without our packages. The program imports our modules as always; the result
has their definitions in their place, in the order in which Python needs them.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator, Mapping

from scorecard.errors import ScorecardError
from scorecard.source_modules import OURS, Change, Definition, Source, parsed, read, written
from scorecard.source_names import Names, names_in

PROGRAM = "__main__"
UNNAMED = ast.Attribute(ast.Constant(None), "_", ast.Store())  # in place of a name that is no module's
Key = tuple[str, str]  # module, and name in it
# Of a class only what is used is taken; what Python itself calls always is, but for checks made long ago.
CHECKS = ("__post_init__",)


def extract(program: str, moved: Mapping[Key, Key], values: Mapping[Key, Mapping[str, str]]) -> str:
    """``program`` and all that it reaches in our modules as one text that imports none of them.

    ``moved``: names in whose place others are taken; ``values``: source of the defaults that the fields of a
    dataclass get, or under ``""`` of any other name's value. Raises ScorecardError for a name that is defined
    nowhere.
    """
    reach = Reach(parsed(PROGRAM, program), moved, values)
    return Text(reach).text()


def is_runner(node: ast.ClassDef) -> bool:
    """Whether a class is a backend's ``Runner``: what it says of itself to the bench has no use alone."""
    return any(isinstance(base, ast.Name) and base.id == "BaseRunner" for base in node.bases)


class Reach:
    """What a program reaches: ``keys`` of definitions, import statements, ``hints`` for type checkers."""

    def __init__(
        self, program: Source, moved: Mapping[Key, Key], values: Mapping[Key, Mapping[str, str]]
    ) -> None:
        self.program, self.moved, self.values = program, moved, values
        self.keys: set[Key] = {(PROGRAM, name) for name in program.definitions} | set(values)
        self.imports: set[str] = set()
        self.hints: set[str] = set()
        self._attributes: set[str] = set()  # that are read of something other than self
        self._of_runner: set[str] = set()  # that are read of a backend's Runner
        self._own: set[tuple[Key, str]] = set()  # that a class reads of itself
        self._note_values()
        before = None
        while before != (before := self._found()):
            self._note(program, names_in(program.rest, OURS), None)
            for key in sorted(self.keys):
                for node in self._parts(key):
                    self._note(self.source(key), names_in([node], OURS), key)

    def _found(self) -> tuple[int, ...]:
        return len(self.keys), len(self._attributes), len(self._of_runner), len(self._own)

    def _note_values(self) -> None:
        """The defaults of fields are read where their class is."""
        for key, texts in self.values.items():
            trees = [ast.parse(text) for field, text in texts.items() if field]
            self._note(self.source(key), names_in(trees, OURS), None)

    def module(self, name: str) -> Source:
        return self.program if name == PROGRAM else read(name)

    def source(self, key: Key) -> Source:
        return self.module(key[0])

    def nodes(self, key: Key) -> list[Definition]:
        found = self.source(key).definitions.get(key[1])
        if found is None:
            raise ScorecardError(f"{key[0]}: has no '{key[1]}' to be cut out; define it in that file")
        return found

    def _parts(self, key: Key) -> Iterator[ast.AST]:
        """What is taken of a definition: all of it, or of a class the header and what is used."""
        for node in self.nodes(key):
            if isinstance(node, ast.ClassDef):
                yield from (*node.decorator_list, *node.bases)
                for member in self.members(key, node):
                    if isinstance(member, ast.AnnAssign):
                        value = None if key in self.values else member.value
                        yield ast.AnnAssign(UNNAMED, member.annotation, value, 0)
                    else:
                        yield member.value if isinstance(member, ast.Assign) else member
            else:
                yield node

    def members(self, key: Key, node: ast.ClassDef) -> list[ast.stmt]:
        """The members of a class that are used."""
        return [member for member in node.body if self._is_used(key, node, member)]

    def _is_used(self, key: Key, node: ast.ClassDef, member: ast.stmt) -> bool:
        if not isinstance(member, ast.FunctionDef):
            return not is_runner(node) or isinstance(member, ast.Expr)
        name, others = member.name, self._of_runner if is_runner(node) else self._attributes
        special = name.startswith("__") and name not in CHECKS
        return special or name in others or (key, name) in self._own

    def _note(self, source: Source, names: Names, key: Key | None) -> None:
        inside = source.inside(names.imports)
        for node in names.names:
            self._reach(inside, node.id)
        for node in names.notes:
            self._hint(inside, node.id)
        for base, attribute in names.attributes:
            module = inside.ours.get(base)
            if module and module[1] is None:
                self.keys.add(self.final(module[0], attribute.attr))
            elif base == "self" and key:
                self._own.add((key, attribute.attr))
            elif base not in source.theirs:
                self._attributes.add(attribute.attr)
                if base == "runner":
                    self._of_runner.add(attribute.attr)

    def _reach(self, source: Source, name: str) -> None:
        if key := self.key(source, name):
            self.keys.add(key)
        elif name in source.theirs:
            self.imports.add(source.theirs[name])
        elif name not in source.ours and not hasattr(builtins, name) and name != "__file__":
            raise ScorecardError(f"{source.name}: '{name}' is defined nowhere; it cannot be cut out")

    def _hint(self, source: Source, name: str) -> None:
        """An annotation's name: a type alias of ours comes along, an import for type checkers alone too."""
        key = self.key(source, name)
        nodes = self.source(key).definitions.get(key[1], []) if key else []
        if key and nodes and not isinstance(nodes[0], ast.ClassDef | ast.FunctionDef):
            self.keys.add(key)
        elif name in source.theirs:
            self.hints.add(source.theirs[name])

    def key(self, source: Source, name: str) -> Key | None:
        """The definition that ``name`` stands for in ``source``, ``None`` where it is none of ours."""
        if name in source.definitions:
            return self.final(source.name, name)
        module, attribute = source.ours.get(name, ("", None))
        return self.final(module, attribute) if attribute else None

    def final(self, module: str, name: str) -> Key:
        """The definition itself, where ``module`` only passes it on or another one takes its place."""
        if (module, name) in self.moved:
            return self.moved[module, name]
        source = self.module(module)
        further = source.ours.get(name)
        if further and further[1] and name not in source.definitions:
            return self.final(further[0], further[1])
        return module, name


class Text:
    """What is reached, as one file."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.order = self._ordered()
        self.names = self._named()
        self.done: set[int] = set()

    def text(self) -> str:
        program = self.reach.program
        parts = [self._written(key) for key in self.order]
        parts += [written(program, node, self._changes(program, node)) for node in program.rest]
        head = ast.get_docstring(ast.parse(program.text), clean=False)
        body = _spaced(parts)
        imports = self.reach.imports | ({"from typing import Any"} if "Any" in body else set())
        hints = sorted(self.reach.hints - imports)
        if hints:
            imports.add("from typing import TYPE_CHECKING")
        opening = [f'"""{head}"""', "from __future__ import annotations", *_import_blocks(imports)]
        if hints:
            opening.append("if TYPE_CHECKING:\n" + "\n".join(f"    {line}" for line in merged(hints)))
        return "\n\n".join(opening) + "\n\n\n" + body + "\n"

    def _ordered(self) -> list[Key]:
        """Modules after those that they import, definitions as in their module."""
        order: list[str] = []
        modules = {key[0] for key in self.reach.keys}

        def place(module: str) -> None:
            if module in visited:
                return
            visited.add(module)
            for key in [key for key in self.reach.keys if key[0] == module]:
                for other in self._needed(key):
                    place(other)
            order.append(module)

        visited: set[str] = set()
        last = {key[0] for key, texts in self.reach.values.items() if "" in texts}  # may name all others
        for module in (*sorted(modules - last - {PROGRAM}), *sorted(last)):
            place(module)
        places = {name: place for place, name in enumerate([*order, PROGRAM])}
        return sorted(
            self.reach.keys, key=lambda key: (places[key[0]], self.reach.nodes(key)[0].lineno, key[1])
        )

    def _needed(self, key: Key) -> Iterator[str]:
        """The modules that ``key``'s module names, those that were moved by where they are now."""
        source = self.reach.source(key)
        for module, name in source.ours.values():
            target = self.reach.final(module, name)[0] if name else module
            if any(k[0] == target for k in self.reach.keys) and target != key[0]:
                yield target

    def _named(self) -> dict[Key, str]:
        """What each definition is called in the one namespace: its own name where that is free."""
        taken: dict[str, Key] = {}
        for key in self.order[::-1]:  # the program's own names go first
            name = key[1]
            if name in taken:
                name = f"{key[0].rpartition('.')[2].strip('_')}_{name.lstrip('_')}"
            taken[name] = key
        return {key: name for name, key in taken.items()}

    def _written(self, key: Key) -> str:
        """A definition, ``""`` for one that a statement before it has made as well."""
        found = []
        for node in self.reach.nodes(key):
            if id(node) not in self.done:
                self.done.add(id(node))
                found.append(self._definition(key, node))
        return "\n".join(found)

    def _definition(self, key: Key, node: Definition) -> str:
        source, values = self.reach.source(key), self.reach.values.get(key, {})
        changes, new = self._changes(source, node), self.names[key]
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and new != node.name:
            column = source.lines[node.lineno - 1].index(f" {node.name}") + 1
            changes.append((node.lineno, column, node.name, new))
        if "" in values:
            return f"{new} = {values['']}"
        if not isinstance(node, ast.ClassDef):
            return written(source, node, changes)
        members = self.reach.members(key, node)
        texts = [_member(source, member, changes, values) for member in members]
        header = written(source, node, changes, end=node.body[0].lineno - 1)
        apart = "\n\n" if any(isinstance(m, ast.FunctionDef) for m in members) else "\n"
        return header.rstrip() + "\n" + apart.join(texts or ["    pass"])

    def _changes(self, source: Source, node: ast.AST) -> list[Change]:
        """Where ``node`` calls one of our definitions by another name than the one that it has here."""
        found = names_in([node], OURS)
        inside = source.inside(found.imports)
        changes: list[Change] = [(statement.lineno, -1, "", "") for statement in found.imports]
        for name in found.names:
            key = self.reach.key(inside, name.id)
            if key in self.names:
                changes.append((name.lineno, name.col_offset, name.id, self.names[key]))
        for name in found.notes:
            if key := self.reach.key(inside, name.id):
                changes.append((name.lineno, name.col_offset, name.id, self.names.get(key, "Any")))
        for base, attribute in (*found.attributes, *found.note_attributes):
            module = inside.ours.get(base)
            if module and module[1] is None:
                new = self.names.get(self.reach.final(module[0], attribute.attr), "Any")
                old = f"{base}.{attribute.attr}"
                changes.append((attribute.lineno, attribute.col_offset, old, new))
        return changes


def _member(source: Source, member: ast.stmt, changes: Iterable[Change], values: Mapping[str, str]) -> str:
    """A member of a class; a field with a value of its own as ``name: type = value``."""
    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
        name = member.target.id
        if name in values:
            return f"    {name}: {ast.unparse(member.annotation)} = {values[name]}"
    return written(source, member, changes)


def _spaced(parts: Iterable[str]) -> str:
    """Definitions two lines apart, constants of one line together."""
    text, was_single = "", False
    for part in filter(None, parts):
        single = "\n" not in part
        gap = "\n" if single and was_single else "\n\n\n"
        text += (gap if text else "") + part
        was_single = single
    return text


def _import_blocks(statements: Iterable[str]) -> list[str]:
    """Import statements as blocks: those of the standard library, and the others."""
    standard = {s for s in statements if s.split()[1].partition(".")[0] in sys.stdlib_module_names}
    blocks = (sorted(standard), sorted(set(statements) - standard))
    return ["\n".join(merged(block)) for block in blocks if block]


def merged(statements: Iterable[str]) -> list[str]:
    """``from a import b`` and ``from a import c`` as one line."""
    plain = [s for s in statements if s.startswith("import ")]
    names: dict[str, list[str]] = {}
    for statement in statements:
        if statement.startswith("from "):
            module, _, name = statement[5:].partition(" import ")
            names.setdefault(module, []).append(name)
    return [*plain, *(f"from {module} import {', '.join(sorted(n))}" for module, n in sorted(names.items()))]
