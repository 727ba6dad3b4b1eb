"""YAML text to plain Python values, strictly: one line names what is wrong and where.

Scalars follow the core schema of YAML 1.2, so ``no``, ``12:30`` and ``2024-07-23`` are text and ``1e-3`` is
a number. Refused, because each of them hides a mistake: keys that are there twice, keys that are not text,
numbers that are not finite or pass 64 bits, control characters, tags, anchors that contain themselves.
Anchors, aliases and merge keys (``<<``) work; what they expand to is bounded.
"""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any

import yaml

from scorecard.errors import SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 48
MAX_NODES = 20_000
_TAG = "tag:yaml.org,2002:"
_WORDS = {"true": True, "false": False}
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class _Refused(yaml.MarkedYAMLError):
    """Proper YAML that is not taken here; its problem says what to write."""


class _Composer(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer,
                yaml.resolver.BaseResolver):  # fmt: skip
    """PyYAML up to the node graph, with the scalars of YAML 1.2 and a bound on the depth."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = parent.start_mark if parent else None
            problem = f"nested more than {MAX_DEPTH} levels deep; write it flatter"
            raise _Refused(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):  # fmt: skip
    _Composer.add_implicit_resolver(_TAG + _tag, re.compile(rf"^(?:{_pattern})\Z"), _first)


def parse(text: str, where: str) -> Any:
    """The value that ``text`` describes: dicts with text keys, lists, str, int, float, bool, None.

    Raises SpecError with the line and column, prefixed by ``where``.
    """
    try:
        node = _Composer(text).get_single_node()
        return None if node is None else _Builder().build(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{where}: line {line}: a control character; write plain text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        mend = "" if isinstance(error, _Refused) else "; mend it"
        raise SpecError(one_line(f"{where}: {at}{problem}{mend}")) from None
    except (ValueError, OverflowError):  # PyYAML's scanner on "\UFFFFFFFF"
        raise SpecError(f"{where}: an escape that is no character; write the character itself") from None


def scalar(text: str) -> Any:
    """The value of one plain scalar: ``scalar("4")`` is 4, ``scalar("four")`` is text. Raises ValueError."""
    composer: Any = _Composer("")
    tag = composer.resolve(yaml.ScalarNode, text, (True, False))
    return _scalar(str(tag).removeprefix(_TAG), text)


def show(value: object) -> str:
    """``value`` as messages quote it: bounded in length, on one line, ``null`` and ``true`` as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(_REPR.repr(value))


def one_line(text: str) -> str:
    """``text`` with every line break and unprintable character escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Builder:
    """Values from a node graph; an aliased node is built once and shared."""

    def __init__(self) -> None:
        self.built: dict[int, tuple[Any, int]] = {}
        self.open: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        return self._build(node)[0]

    def _build(self, node: yaml.Node) -> tuple[Any, int]:
        """The value, and how many nodes it would be with every alias written out."""
        if id(node) in self.built:
            return self.built[id(node)]
        if id(node) in self.open:
            raise _error(node, "an anchor that contains itself; write it out")
        self.open.add(id(node))
        value, size = self._fresh(node)
        if size > MAX_NODES:
            raise _error(node, f"more than {MAX_NODES} values with all aliases written out; write less")
        self.open.remove(id(node))
        self.built[id(node)] = value, size
        return value, size

    def _fresh(self, node: yaml.Node) -> tuple[Any, int]:
        tag = str(node.tag).removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            parts = [self._build(child) for child in node.value]
            return [value for value, _ in parts], 1 + sum(size for _, size in parts)
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(tag, node.value), 1
            except ValueError as error:
                raise _error(node, str(error)) from None
        raise _error(node, f"tag {show(node.tag)} is not supported; leave it out")

    def _mapping(self, node: yaml.MappingNode) -> tuple[dict[str, Any], int]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        total = 1
        for key_node, value_node in node.value:
            value, size = self._build(value_node)
            total += 1 + size
            if key_node.tag == _TAG + "merge":
                merged = {**_merge(value_node, value), **merged}
                continue
            key = self._build(key_node)[0]
            if not isinstance(key, str):
                raise _error(key_node, f"key {show(key)} is not text; put it in quotes")
            if key in own:
                raise _error(key_node, f"key {show(key)} is there twice; keep one of them")
            own[key] = value
        return {**merged, **own}, total


def _merge(node: yaml.Node, value: Any) -> dict[str, Any]:
    sources = value if isinstance(value, list) else [value]
    if not all(isinstance(source, dict) for source in sources):
        raise _error(node, "'<<' takes a mapping or a list of mappings; write '<<: *anchor'")
    return {key: source[key] for source in reversed(sources) for key in source}


def _scalar(tag: str, text: str) -> Any:
    if tag == "str":
        return _text(text)
    if tag == "null":
        return None
    if tag == "bool" and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if tag == "int":
        return _integer(text)
    if tag == "float":
        return _finite(text)
    if tag == "merge":  # `<<` as a value is only text
        return text
    raise ValueError(f"tag {show(tag)} is not supported; leave it out")


def _text(text: str) -> str:
    if found := _UNPRINTABLE.search(text):
        raise ValueError(f"text with the control character {show(found.group())}; leave it out")
    return text


def _integer(text: str) -> int:
    digits = text.lower()
    if len(digits) > 20:
        raise ValueError(f"{show(text)} is too large; write an integer of at most 64 bits")
    value = int(digits, {"0x": 16, "0o": 8}.get(digits[:2], 10))
    if abs(value) >= 1 << 63:
        raise ValueError(f"{value} is too large; write an integer of at most 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise ValueError(f"{show(text)} is not a finite number; write one that is")
    return value


def _error(node: yaml.Node, problem: str) -> _Refused:
    return _Refused(problem=problem, problem_mark=node.start_mark)
