"""Whatever stands in models.yaml, loading it gives cases or one line: never a traceback, never a hang."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorecard import document
from scorecard.errors import SpecError
from scorecard.load import load

SHIPPED = (Path(__file__).parents[1] / "models.yaml").read_bytes()
RICH = b"""\
models:
  - &m {set: s, name: m, version: 1, source: path:x, tasks: [piqa], configs: [a, {config: b, as: c}],
     expect: {a: {fails: compress, match: x}}, shapes: {$axes: {n: 2}, x: [n, 3]}, tuning_steps: 3,
     requires-toposort: true, cuda-sm: 80, evaluation: {limit: 3}, calibration: {data: x.txt}}
  - {<<: *m, version: "2", sha256: null, measure: {repeats: 2}, limits: {audit: {time: 3m, memory: 1GB}}}
configs:
  a: {runner: r, recipe_args: {bits: 4, f: 0.1}, o: [$bits, "x ${f} y"], p: {q: "${z:-3}"}}
  b: {runner: r, recipe: "bits: $$", expect: {fails: audit, match: "a.*b"}}
defaults: {configs: [a], evaluation: {heldout: x.jsonl, seed: 7}, limits: {measure: {time: 10}}}
"""
WORDS = [b"&a ", b"*a", b"<<: ", b"!!set ", b"!x ", b"$", b"${", b"$$", b": ", b"- ", b"? ", b"| ", b"> "]
BYTES = [b"\t", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x85", b"---\n"]
ESCAPES = [b'"\\ud800"', b'"\\U99999999"', b'"\\x00"', b"%YAML 9.9\n", b"%TAG ! !\n", b"...\n"]
LARGE = [b"[" * 60, b"{a: " * 60, b".inf", b"1e999", b"9" * 30, b"9" * 5000, b"0x"]
FRAGMENTS = WORDS + BYTES + ESCAPES + LARGE
SECTIONS = [c for c in vars(document).values() if isinstance(c, type) and issubclass(c, document.Section)]
KEYS = sorted({field.alias or name for cls in SECTIONS for name, field in cls.model_fields.items()})
TEXTS = [
    "$x",
    "${bits:-4}",
    "$$",
    "path:~/x",
    "hf:a",
    "s3://",
    "baseline",
    "1h",
    "8GiB",
    "(",
    "a{9999999999}",
]
NAMES = st.text(max_size=4) | st.sampled_from(KEYS)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated_texts(draw: st.DrawFn) -> bytes:
    """Bytes cut out, repeated, swapped for others, or put in; the end cut off."""
    data = draw(st.sampled_from([SHIPPED, RICH]))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 40)))
        middle = draw(
            st.sampled_from([b"", data[begin:end] * 2, *FRAGMENTS]) | st.text(max_size=4).map(str.encode)
        )
        data = data[:begin] + middle + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 7)) == 0 else data


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    return [place for key in keys for place in [(node, key), *places(node[key])]]


def mutate(draw: st.DrawFn, tree: Any) -> Any:
    container, key = draw(st.sampled_from(places(tree)))
    action = draw(st.sampled_from(["delete", "rename", "replace", "wrap", "repeat", "deepen"]))
    if action == "delete":
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        container[draw(st.sampled_from(KEYS) | st.text(max_size=6) | st.just(f"{key}s"))] = container.pop(key)
    elif action == "wrap":
        container[key] = draw(st.sampled_from([[container[key]], {"x": container[key]}, str(container[key])]))
    elif action == "repeat" and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif action == "deepen":
        for _ in range(draw(st.integers(1, 100))):
            container[key] = [container[key]]
    else:
        container[key] = draw(JUNK)
    return tree


@st.composite
def mutated_trees(draw: st.DrawFn) -> bytes:
    """Keys deleted, renamed, given values of other types, repeated, nested deeply."""
    tree = yaml.safe_load(draw(st.sampled_from([SHIPPED, RICH])))
    for _ in range(draw(st.integers(1, 3))):
        if places(tree):
            tree = mutate(draw, tree)
    return yaml.safe_dump(tree, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "models.yaml"


QUIET = settings(deadline=20_000, suppress_health_check=[HealthCheck.too_slow])
MUTATED = mutated_texts() | mutated_trees() | st.binary(max_size=60)


@settings(QUIET, max_examples=120)
@given(data=MUTATED)
def test_a_mutated_file_gives_cases_or_one_line(path: Path, data: bytes) -> None:
    cases_or_one_line(path, data)


@pytest.mark.slow
@settings(QUIET, max_examples=2000)
@given(data=MUTATED)
def test_any_of_two_thousand_mutated_files_gives_cases_or_one_line(path: Path, data: bytes) -> None:
    cases_or_one_line(path, data)


def cases_or_one_line(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        suite = load(path)
    except SpecError as error:
        message = str(error)
        assert message.startswith("models.yaml: ")
        assert message.isprintable()
    else:
        assert suite.cases
        assert all(suite.baseline_of(case).config.runner == "baseline" for case in suite.cases)


def test_the_files_that_are_mutated_are_good(path: Path) -> None:
    for data in (SHIPPED, RICH):
        path.write_bytes(data)
        assert load(path).cases
