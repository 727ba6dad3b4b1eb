"""The shape of models.yaml: every key with its type, default and meaning; checked by pydantic.

docs/models-yaml.md and docs/models.schema.json say the same and are kept true by a test.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from scorecard.errors import nearest
from scorecard.fields import (
    CalibrationData,
    Count,
    DataFile,
    FunctionOfFile,
    Memory,
    Name,
    Regex,
    Seed,
    SetName,
    Sha256,
    Shapes,
    Source,
    Tasks,
    Text,
    Time,
    Variable,
    Version,
)
from scorecard.spec import CalibrationSpec, EarlyStop, EvalSpec, MeasureSpec, Stage
from scorecard.yaml_text import show


class Section(BaseModel):
    """A mapping with known keys only; an unknown one is answered with the nearest."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            for key in data:
                if key not in known:
                    raise ValueError(f"unknown key {show(key)}; {nearest(key, known)}")
        return data

    def given(self) -> dict[str, Any]:
        """The keys that the file sets, null included; the others leave what an earlier level says."""
        return {name: value for name, value in self if name in self.model_fields_set}


class EarlyStopping(Section):
    alpha: float = Field(
        default=EarlyStop.alpha, gt=0, lt=1, description="how often, at most, a task may be decided wrongly"
    )
    margin: float | None = Field(
        default=None, gt=0, lt=1, description="also stop when accuracies differ by less; null: do not"
    )
    every: Count = Field(default=EarlyStop.every, description="documents between two looks at the test")


class Evaluation(Section):
    tasks: Tasks | None = Field(default=None, description="lm-eval task names, or paths of task YAML files")
    task_paths: list[Text] = Field(
        default=["embedded:tasks"], description="folders that hold further task files"
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before each document; null: the task's own"
    )
    limit: int | None = Field(
        default=None, ge=1, description="score only the first documents of each task; null: all"
    )
    batch_size: Count = Field(default=EvalSpec.batch_size, description="sequences in one forward pass")
    max_length: int | None = Field(default=None, ge=1, description="tokens of context; null: the model's own")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type to load weights in"
    )
    apply_chat_template: bool = Field(
        default=False, description="wrap prompts in the tokenizer's chat template"
    )
    fewshot_as_multiturn: bool = Field(default=False, description="few-shot examples as turns of the chat")
    system_instruction: str | None = Field(default=None, description="system message of the chat")
    add_bos_token: bool | None = Field(
        default=None, description="begin with the BOS token; null: as the tokenizer does"
    )
    seed: Seed = Field(default=EvalSpec.seed, description="seed of few-shot choice and bootstrap")
    bootstrap_iters: int = Field(
        default=EvalSpec.bootstrap_iters,
        ge=0,
        description="resamples for metrics whose standard error has no formula",
    )
    heldout: DataFile | None = Field(
        default=None,
        description="text for KL divergence and perplexity: `embedded:heldout`, a .jsonl or a .txt file",
    )
    heldout_documents: Count = Field(default=EvalSpec.heldout_documents, description="documents of that text")
    heldout_tokens: int = Field(default=EvalSpec.heldout_tokens, ge=2, description="tokens of each document")
    early_stop: EarlyStopping | None = Field(
        default=None, description="end a task once it is decided against the baseline; null: score all of it"
    )
    shuffle: Seed | None = Field(
        default=None,
        description="seed of a random order of requests, to see what rounding does; null: the tasks' order",
    )
    lm: Literal["shared", "hf"] = Field(
        default="shared",
        description="`shared` computes once what requests have in common; `hf` is lm-eval's own model class",
    )


class Calibration(Section):
    data: CalibrationData | None = Field(
        default=None,
        description="`embedded:calibration`, a file, a data set of the hub, or a function, "
        "see [Calibration data](#calibration-data)",
    )
    samples: Count = Field(default=CalibrationSpec.samples, description="sequences of text")
    max_length: Count = Field(default=CalibrationSpec.max_length, description="tokens of each sequence")
    seed: Seed = Field(default=CalibrationSpec.seed, description="seed of the choice of sequences")
    shuffle: bool = Field(default=True, description="documents in an order that the seed gives")
    concatenate: bool = Field(
        default=True,
        description="documents one after the other, cut at exactly `max_length`; false: one document, "
        "cut short, for each sequence",
    )
    vision_samples: int = Field(
        default=0, ge=0, description="sequences with pictures, for backends that calibrate on pictures"
    )
    config: Text | None = Field(default=None, description="configuration of a hub data set")
    split: Text | None = Field(default=None, description="split of a hub data set; null: `train`")
    revision: Text | None = Field(default=None, description="commit of a hub data set; null: the newest")
    file: Text | None = Field(default=None, description="one file of a hub data set, read instead of a split")
    text_column: Text | None = Field(
        default=None, description="column of the text, or a pattern such as `{question} {answer}`"
    )
    messages_column: Text | None = Field(
        default=None, description="column of chat messages, written out by the tokenizer's chat template"
    )
    images_column: Text | None = Field(default=None, description="column of the pictures")
    collator: FunctionOfFile | None = Field(
        default=None, description="`file.py:function` that makes the sequences from tokenized documents"
    )


class Measure(Section):
    batch_size: Count = Field(default=MeasureSpec.batch_size, description="sequences at once")
    prompt_tokens: Count = Field(
        default=MeasureSpec.prompt_tokens, description="tokens of the prompt (prefill)"
    )
    decode_tokens: Count = Field(
        default=MeasureSpec.decode_tokens, description="tokens written after it (decode)"
    )
    warmup: int = Field(default=MeasureSpec.warmup, ge=0, description="rounds before timing begins")
    repeats: Count = Field(default=MeasureSpec.repeats, description="timed rounds")
    interleave: bool = Field(default=True, description="time the baseline in turn with the candidate")
    threads: Count | None = Field(default=None, description="CPU threads; one per core where not said")


class Limit(Section):
    time: Time | None = Field(default=None, description="`90` (seconds), `90s`, `30m`, `1h30m`, `2d`")
    memory: Memory | None = Field(default=None, description="`8` (GiB), `8GiB`, `512MiB`, `8GB`")


class Limits(Section):
    prepare: Limit | None = Field(default=None, description="the most that fetching task data may take")
    compress: Limit | None = Field(default=None, description="the most that compression may take")
    audit: Limit | None = Field(default=None, description="the most that weighing the artifact may take")
    evaluate: Limit | None = Field(default=None, description="the most that scoring may take")
    measure: Limit | None = Field(default=None, description="the most that timing may take")


class Expect(Section):
    fails: Stage = Field(description="the stage that must fail")
    match: Regex = Field(description="regular expression that must be found in the failure's message")
    reason: str = Field(default="", description="why, for the table")


class Gate(Section):
    recovery: float | None = Field(default=None, ge=0, description="at least: accuracy / the baseline's")
    delta_accuracy: float | None = Field(
        default=None, ge=-1, le=1, description="at least: accuracy - the baseline's, as a share"
    )
    kl: float | None = Field(default=None, ge=0, description="at most: KL divergence, nats per token")
    size: Memory | None = Field(
        default=None, description="at most: `8` (GiB), `8GiB`, `512MiB`, `8GB` of all files"
    )
    size_ratio: float | None = Field(default=None, gt=0, description="at most: size / the baseline's")
    prefill_speedup: float | None = Field(
        default=None, gt=0, description="at least: speed of prefill / the baseline's"
    )
    decode_speedup: float | None = Field(
        default=None, gt=0, description="at least: speed of decode / the baseline's"
    )


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
