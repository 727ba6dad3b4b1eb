"""`$variables`: a pure function, so properties rather than examples where that is possible."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scorecard.errors import SpecError
from scorecard.variables import substitute

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.text(st.sampled_from("ab_0 \n-:.$){"), max_size=12)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [escaped(part) for part in value]
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    return value


@given(VALUES)
def test_escaped_values_come_back_unchanged(value: Any) -> None:
    assert substitute(escaped(value), {}, "here") == (value, frozenset())


@given(NAMES, VALUES)
def test_a_whole_string_gets_the_value_with_its_type(name: str, value: Any) -> None:
    for written in (f"${name}", f"${{{name}}}", f"${{{name}:-9}}"):
        found, used = substitute([written], {name: value}, "here")
        assert found == [value]
        assert type(found[0]) is type(value)
        assert used == {name}


@given(NAMES, NAMES, SCALARS, SCALARS)
def test_a_name_is_never_replaced_inside_a_longer_one(name: str, tail: str, short: Any, long: Any) -> None:
    text = f"a: ${name}\nb: ${name}{tail}\nc: ${{{name}}}{tail}\n"
    found, used = substitute(text, {name: short, name + tail: long}, "here")
    a, b, c = found.splitlines()
    assert a == f"a: {json_or_yaml(short)}"
    assert b == f"b: {json_or_yaml(long)}"
    assert c == f"c: {json_or_yaml(short)}{tail}"
    assert used == {name, name + tail}


def json_or_yaml(value: Any) -> str:
    return substitute("x$v", {"v": value}, "here")[0][1:]


@given(st.dictionaries(NAMES, SCALARS | st.lists(SCALARS | st.just("$x: y"), max_size=3), max_size=4))
def test_inside_text_a_value_is_what_any_yaml_reader_reads_back(variables: dict[str, Any]) -> None:
    text = "".join(f"{name}: ${name}  # set\n" for name in variables)
    found, used = substitute({"recipe": "# text\n" + text}, variables, "here")
    assert used == set(variables)
    keys = {yaml.safe_load(name) if isinstance(yaml.safe_load(name), str) else None for name in variables}
    if keys == set(variables):  # not names such as `y` or `no`, which are no text in YAML 1.1
        assert (yaml.safe_load(found["recipe"]) or {}) == variables


@given(NAMES, st.dictionaries(NAMES, SCALARS, max_size=2))
def test_an_unset_variable_is_named_with_its_place(name: str, others: dict[str, Any]) -> None:
    others.pop(name, None)
    with pytest.raises(
        SpecError, match=rf"^here\.stage\[1\]\.bits: variable '\${name}' is not set; "
    ) as error:
        substitute({"stage": [1, {"bits": f"W${name}"}]}, others, "here")
    assert "\n" not in str(error.value)


DEFAULTS = {"4": 4, "0.01": 0.01, "1e-3": 0.001, "true": True, "": None, "null": None, "no": "no", "W4": "W4"}


@pytest.mark.parametrize(("default", "value"), DEFAULTS.items())
def test_defaults_are_typed_like_yaml(default: str, value: Any) -> None:
    found, used = substitute(f"${{bits:-{default}}}", {}, "here")
    assert (found, type(found), used) == (value, type(value), {"bits"})
    assert substitute(f"a${{bits:-{default}}}b", {}, "here")[0] == f"a{default}b"
    assert substitute(f"${{bits:-{default}}}", {"bits": None}, "here")[0] is None


def test_a_dollar_before_anything_else_stays() -> None:
    assert substitute("re:.*(up|down)_proj$", {}, "here")[0] == "re:.*(up|down)_proj$"
    assert substitute("5$ $) $", {}, "here")[0] == "5$ $) $"


@pytest.mark.parametrize("text", ["${", "${}", "a ${9} b", "${a b}", "${bits", "${bits:4}", "${a:-{}}"])
def test_a_broken_reference_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"here: a '\$\{' that is not '\$\{name\}'"):
        substitute(text, {"a": 1, "bits": 4}, "here")


def test_values_are_not_searched_again() -> None:
    assert substitute(["$a", "x$a"], {"a": "$b $$"}, "here") == (["$b $$", "x$b $$"], {"a"})


def test_keys_are_replaced_too_and_may_not_collide() -> None:
    found, used = substitute({"layer.$i": "$i"}, {"i": 3}, "here")
    assert (found, used) == ({"layer.3": 3}, {"i"})
    with pytest.raises(SpecError, match="key 'a' is there twice after replacement"):
        substitute({"$x": 1, "$y": 2}, {"x": "a", "y": "a"}, "here")


def test_nested_values_are_written_on_one_line() -> None:
    value = {"targets": ["re:.*proj$", 1e-05], "ok": True}
    text = substitute("m: $value", {"value": value}, "here")[0]
    assert text == 'm: {"targets": ["re:.*proj$", 1.0e-05], "ok": true}'
    assert yaml.safe_load(text) == {"m": value}
    assert json.loads(text[3:].replace("1.0e-05", "1e-05")) == value
