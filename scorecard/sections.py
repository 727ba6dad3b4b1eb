"""The sections of models.yaml that may stand on several levels; ``document`` says where. See there."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scorecard.errors import nearest
from scorecard.fields import (
    CalibrationData,
    Count,
    DataFile,
    FunctionOfFile,
    Memory,
    Regex,
    Seed,
    Tasks,
    Text,
    Time,
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
        default="auto",
        description="type to load weights and compute in; auto: that of the files. On a CPU without bfloat16 "
        "float32 is several times as fast",
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
