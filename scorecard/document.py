"""The shape of models.yaml: every key with its type, default and meaning; checked by pydantic.

docs/models-yaml.md and docs/models.schema.json say the same and are kept true by a test.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from scorecard.fields import (
    Name,
    SetName,
    Sha256,
    Shapes,
    Source,
    Tasks,
    Text,
    Variable,
    Version,
)
from scorecard.sections import Calibration, Evaluation, Expect, Gate, Limits, Measure, Section


class Settings(Section):
    """What defaults, models and configs may all set."""

    evaluation: Evaluation = Field(default_factory=Evaluation, description="how cases are scored")
    calibration: Calibration | None = Field(
        default=None, description="calibration text that all backends share"
    )
    measure: Measure = Field(default_factory=Measure, description="how latency is measured")
    limits: Limits = Field(default_factory=Limits, description="the most that a stage may take")
    gate: Gate = Field(default_factory=Gate, description="what a case must reach")


class Config(Settings):
    model_config = ConfigDict(extra="allow")

    runner: Text = Field(description="the backend: a file of runners/")
    recipe_args: dict[Variable, Any] = Field(
        default_factory=dict, description="values of the `$variables` in this config's options"
    )
    expect: Expect | None = Field(
        default=None, description="the declared failure of this config, on every model"
    )


class Use(Section):
    config: Text = Field(description="a name of `configs`")
    as_: Name | None = Field(default=None, alias="as", description="the config's name in this case's id")
    recipe_args: dict[Variable, Any] = Field(
        default_factory=dict, description="values that add to or replace the config's own"
    )


def _use(value: Any) -> Any:
    return {"config": value} if isinstance(value, str) else value


Uses = Annotated[
    list[Annotated[Use, BeforeValidator(_use, json_schema_input_type=Name | Use)]], Field(min_length=1)
]


class Model(Settings):
    set: SetName = Field(description="the group of models it belongs to; first part of its id")
    name: Name = Field(description="second part of its id")
    version: Version = Field(description="third part of its id")
    source: Source = Field(description="where its files come from, see [Sources](#sources)")
    sha256: Sha256 | None = Field(
        default=None, description="what the fetched files must hash to; null: not checked"
    )
    configs: Uses | None = Field(default=None, description="configs to run; null: those of `defaults`")
    tasks: Tasks | None = Field(default=None, description="short for `evaluation: {tasks: …}`")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(
        default=False, description="accept `.bin` and `.pt` weights, which can run code when read"
    )
    expect: dict[Text, Expect] = Field(
        default_factory=dict, description="declared failures: config name to expectation"
    )
    shapes: Shapes = Field(
        default_factory=dict, description="tensor name to dimensions, see [Shapes](#shapes)"
    )
    tuning_steps: int | None = Field(
        default=None, ge=0, description="tuning steps before a Relax model runs; null: none"
    )
    requires_toposort: bool = Field(
        default=False, alias="requires-toposort", description="sort an ONNX graph topologically after loading"
    )
    cuda_sm: int | None = Field(
        default=None,
        alias="cuda-sm",
        ge=30,
        le=200,
        description="CUDA compute capability for the Relax target, such as 90",
    )

    @model_validator(mode="after")
    def _downloads_are_verified(self) -> Self:
        if self.source.startswith("http") and self.sha256 is None:
            raise ValueError(
                "a download needs 'sha256'; write 'sha256: …' (the 64 digits that sha256sum prints)"
            )
        return self


class Defaults(Settings):
    configs: Uses | None = Field(
        default=None, description="configs of models that list none; null: all of them"
    )


class Document(Section):
    models: list[Model] = Field(min_length=1, description="what is compressed")
    configs: dict[Name, Config] = Field(
        default_factory=dict, description="how it is compressed: a name to a runner and its options"
    )
    defaults: Defaults = Field(
        default_factory=Defaults, description="settings of every case that says nothing else"
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of models.yaml, for editors."""
    schema = Document.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "models.yaml"}
