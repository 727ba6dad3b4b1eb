"""Specs travel between processes as JSON: what arrives equals what was sent."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecard import spec

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, made from its annotation, so that new fields are tested too."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    plain = {str: TEXT, int: st.integers(), bool: st.booleans(), Any: JSON, type(None): st.none()}
    if hint is float:
        return st.floats(allow_nan=False)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, values(args[1]), max_size=3)
    return plain[hint]


def instances(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", [spec.Case, spec.Record], ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_a_round_trip_through_json_text_changes_nothing(cls: Any, data: st.DataObject) -> None:
    sent = data.draw(instances(cls))
    assert spec.from_json(cls, json.loads(json.dumps(spec.to_json(sent)))) == sent


@given(instances(spec.Case))
def test_the_json_of_a_spec_is_plain_and_stable(case: spec.Case) -> None:
    first = spec.to_json(case)
    assert spec.to_json(spec.from_json(spec.Case, first)) == first
    assert set(first) == {field.name for field in dataclasses.fields(spec.Case)}


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError, match="bitz"):
        spec.from_json(spec.Limit, {"bitz": 4})


def test_left_out_keys_get_their_defaults() -> None:
    assert spec.from_json(spec.EvalSpec, {"tasks": ["a"]}) == spec.EvalSpec(tasks=("a",))


def test_ids() -> None:
    model = spec.ModelSpec("meta-llama", "Llama-3.1-8B", "1", "hf:meta-llama/Llama-3.1-8B")
    case = spec.Case(model, spec.ConfigSpec("nf4", "bnb"), spec.EvalSpec(("piqa",)))
    assert model.id == "meta-llama.Llama-3.1-8B@1"
    assert case.id == "meta-llama.Llama-3.1-8B@1-nf4"
