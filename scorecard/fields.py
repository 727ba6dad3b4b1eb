"""What single values of models.yaml must look like: their types, and the checks behind them.

A check takes whatever the file holds and raises ValueError with what to write. It hands a value of the
wrong type back as it is, for pydantic to refuse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from scorecard.calibration_sets import KNOWN
from scorecard.errors import nearest
from scorecard.variables import NAME as VARIABLE
from scorecard.yaml_text import one_line, show

SOURCES = ("embedded:", "path:", "hf:", "s3://", "https://", "http://")
AXES = "$axes"
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_BYTES = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_NUMBER = r"(?:[0-9]{1,15}(?:\.[0-9]{0,15})?)"
_FUNCTION = r".*\.py:[A-Za-z_]\w*"
_CALIBRATION = rf"embedded:.+|hf:[\w.-]+/[\w.-]+|.*\.(jsonl|json|parquet|txt)|{_FUNCTION}"
_TIME = re.compile("".join(rf"(?:({_NUMBER})\s*{unit}\s*)?" for unit in _SECONDS))
_MEMORY = re.compile(rf"({_NUMBER})\s*({'|'.join(_BYTES)})")


def form(pattern: str, wanted: str) -> Callable[[Any], Any]:
    """A check that text matches the whole of ``pattern``; ``wanted`` says in words what that is."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(f"{show(value)} is not possible; write {wanted}")
        return value

    return check


def version(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"{value} is a number, and 1.10 would be 1.1; put it in quotes")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def source(value: Any) -> Any:
    if isinstance(value, str) and not any(value.startswith(s) and value != s for s in SOURCES):
        looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.@-]+", value, re.ASCII)
        wanted = f"'hf:{one_line(value[:200])}'" if looks_like_hub else f"one of {', '.join(SOURCES)}"
        raise ValueError(f"{show(value)} does not say where the files are; write {wanted}")
    return value


def regex(value: Any) -> Any:
    try:
        re.compile(value if isinstance(value, str) else "")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{show(value)} is not a regular expression ({error}); mend it") from None
    return value


def data_file(value: Any) -> Any:
    if isinstance(value, str) and not re.search(r"\A(embedded:.+|.*\.(jsonl|txt))\Z", value):
        raise ValueError(f"{show(value)} is not a text file; write 'embedded:NAME' or a .jsonl or .txt file")
    return value


def calibration_data(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_CALIBRATION, value) and value not in KNOWN:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", value, re.ASCII):
            raise ValueError(
                f"{show(value)} is not a file; write 'hf:{value}' for the hub, else a .jsonl file"
            )
        raise ValueError(
            f"{show(value)} is no calibration data; write embedded:calibration, a .jsonl, .json, .parquet or "
            f".txt file, hf:ORG/NAME, FILE.py:FUNCTION or a registered name ({', '.join(KNOWN)})"
        )
    return value


def unique(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        seen: set[str] = set()
        for part in value:
            if part in seen:
                raise ValueError(f"{show(part)} is there twice; keep one of them")
            seen.add(part)
    return value


def time_seconds(value: Any) -> Any:
    """Seconds from ``90``, ``"90s"``, ``"1h30m"`` or ``"2d"``."""
    if isinstance(value, str):
        if not (found := _TIME.fullmatch(value)) or not any(found.groups()):
            raise ValueError(
                f"{show(value)} is not a time; write seconds, or a text such as 90s, 30m, 1h30m, 2d"
            )
        pairs = zip(found.groups(), _SECONDS.values(), strict=True)
        value = sum(float(number) * unit for number, unit in pairs if number)
    return _positive(value)


def memory_gib(value: Any) -> Any:
    """GiB from ``8``, ``"8GiB"``, ``"512MiB"`` or ``"8GB"`` (KB to TB are powers of 1000)."""
    if isinstance(value, str):
        if not (found := _MEMORY.fullmatch(value)):
            raise ValueError(f"{show(value)} is not a size; write GiB, or a text such as 8GiB, 512MiB, 8GB")
        value = float(found[1]) * _BYTES[found[2]] / 2**30
    return _positive(value)


def _positive(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{show(value)} is not possible; write a number above 0")
        return float(value)
    return value


def shapes(value: Any) -> Any:
    """Tensor name to list of dimensions; axis names are replaced by their value in ``$axes``.

    With no tensor beside it, ``$axes`` speaks of the axes that the model's own graph names.
    """
    if not isinstance(value, Mapping):
        return value
    axes = value.get(AXES, {})
    if not isinstance(axes, Mapping):
        raise ValueError(f"{AXES}: {show(axes)} is not a mapping; write '{AXES}: {{batch: 1}}'")
    for axis, size in axes.items():
        _dimension(f"{AXES}.{axis}", size)
    tensors = {name: dims for name, dims in value.items() if name != AXES}
    lists = [dims for dims in tensors.values() if isinstance(dims, list)]
    used = {dim for dims in lists for dim in dims if isinstance(dim, str)}
    if tensors and (unused := [axis for axis in axes if axis not in used]):
        raise ValueError(f"{AXES}: axis {show(unused[0])} is never used; use it in a shape or leave it out")
    resolved: dict[str, Any] = {name: _resolved(name, dims, axes) for name, dims in tensors.items()}
    return {**resolved, AXES: dict(axes)} if AXES in value else resolved


def _resolved(name: str, dims: Any, axes: Mapping[str, Any]) -> list[int]:
    if not isinstance(dims, list):
        raise ValueError(f"{one_line(name)}: {show(dims)} is not a list; write '[1, 128]'")
    for dim in dims:
        if isinstance(dim, str) and dim not in axes:
            raise ValueError(f"{one_line(name)}: axis {show(dim)} is not in {AXES}; {nearest(dim, axes)}")
    return [_dimension(name, axes[dim] if isinstance(dim, str) else dim) for dim in dims]


def _dimension(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{one_line(name)}: {show(value)} is not a dimension; write an integer above 0")
    return value


def _form(pattern: str, wanted: str) -> BeforeValidator:
    return BeforeValidator(
        form(pattern, wanted), json_schema_input_type=Annotated[str, Field(pattern=f"^{pattern}$")]
    )


_LETTERS = "letters, digits, '.', '_' and '-', at most 100"
Text = Annotated[str, Field(min_length=1)]
SetName = Annotated[str, _form("[A-Za-z0-9][A-Za-z0-9_-]{0,99}", "letters, digits, '_' and '-', at most 100")]
Name = Annotated[str, _form("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", _LETTERS)]
Version = Annotated[
    str,
    _form("[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", _LETTERS),
    BeforeValidator(version, json_schema_input_type=str | int),
]
Sha256 = Annotated[str, _form("[0-9a-f]{64}", "the 64 lower-case digits that sha256sum prints")]
Variable = Annotated[str, _form(VARIABLE, "a letter or '_', then letters, digits and '_'")]
Source = Annotated[str, BeforeValidator(source, json_schema_input_type=str)]
Regex = Annotated[
    str, Field(min_length=1, max_length=1000), BeforeValidator(regex, json_schema_input_type=str)
]
DataFile = Annotated[str, BeforeValidator(data_file, json_schema_input_type=str)]
CalibrationData = Annotated[str, BeforeValidator(calibration_data, json_schema_input_type=str)]
FunctionOfFile = Annotated[str, _form(_FUNCTION, "FILE.py:FUNCTION")]
_Tasks = Annotated[list[Text], Field(min_length=1)]
Tasks = Annotated[_Tasks, BeforeValidator(unique, json_schema_input_type=_Tasks)]
Time = Annotated[float, BeforeValidator(time_seconds, json_schema_input_type=str | float)]
Memory = Annotated[float, BeforeValidator(memory_gib, json_schema_input_type=str | float)]
_Dimensions = list[Annotated[int, Field(ge=1)] | str]
Shapes = Annotated[
    dict[str, Any], BeforeValidator(shapes, json_schema_input_type=dict[str, _Dimensions | dict[str, int]])
]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Count = Annotated[int, Field(ge=1)]
