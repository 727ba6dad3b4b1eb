"""models.yaml to cases: what a good file gives, and the one line that a bad one gets."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import models_yaml_docs as docs
import pytest
import yaml

from scorecard import document, sections, spec
from scorecard.errors import SpecError
from scorecard.load import Suite, load

MODELS_YAML = docs.ROOT / "models.yaml"
SCHEMA = docs.ROOT / "docs" / "models.schema.json"
Load = Callable[..., Suite]

HEAD = """\
models:
  - set: s
    name: m
    version: 1
    source: path:there
    tasks: [piqa]
"""
CONFIGS = """\
configs:
  a: {runner: fake, bits: 4}
  b: {runner: fake}
"""


@pytest.fixture
def read(tmp_path: Path) -> Load:
    """Load a text (or bytes) as models.yaml."""

    def load_text(text: str | bytes, **overrides: Any) -> Suite:
        path = tmp_path / "models.yaml"
        path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
        return load(path, **overrides)

    return load_text


def refused(read: Load, text: str | bytes) -> str:
    with pytest.raises(SpecError) as error:
        read(text)
    message = str(error.value)
    assert "\n" not in message
    return message


# -- the shipped file --------------------------------------------------------------------------------------


def test_the_shipped_file_gives_the_advertised_cases() -> None:
    suite = load(MODELS_YAML)
    names = " ".join(case.config.name for case in suite.cases)
    assert names == (
        "baseline rtn-w4-g128 rtn-w3-g128 rtn-w2-g128 custom bnb-nf4 bnb-fp4 "
        "gptq-w4-g128 gptq-w3-g128 gptq-w4-g128-head awq-w4-g128 hqq-w4-g64 hqq-w3-g64 quanto-int8 "
        "quanto-int4 torchao-w4-g64 modelopt-awq-w4-g128 autoround-w4-g128 autoround-w3-g128 llmc-rtn-w8 "
        "llmc-gptq-w4 llmc-gptq-w4-head rdq-b4 rdq-b3 rdq-b2"
    )
    assert {case.model.id for case in suite.cases} == {"embedded.tiny-llama@1"}
    first = suite.cases[0]
    assert first.evaluation.tasks == ("tiny_pairs", "tiny_cloze", "tiny_facts", "tiny_generate", "tiny_text")
    assert first.evaluation.task_paths == ("embedded:tasks",)
    assert first.evaluation.heldout == "embedded:heldout"
    assert first.calibration is not None
    assert first.calibration.data == "embedded:calibration"


def test_every_commented_model_of_the_shipped_file_loads_when_uncommented(read: Load) -> None:
    lines = MODELS_YAML.read_text(encoding="utf-8").splitlines()
    entries = [
        line.replace("  # ", "  ", 1) if line.startswith(("  # - ", "  #   ")) else line for line in lines
    ]
    models = {case.model.set: case.model for case in read("\n".join(entries)).cases}
    assert list(models) == ["embedded", "meta-llama", "mine"]
    assert models["meta-llama"].id == "meta-llama.Llama-3.1-8B@1"


# -- levels ------------------------------------------------------------------------------------------------


def test_levels_are_merged_key_by_key_and_the_last_wins(read: Load) -> None:
    suite = read(
        HEAD
        + """\
    evaluation: {limit: 20, seed: 3}
    limits: {compress: {time: 1h30m}, measure: {time: 5}}
    calibration: {samples: 8}
configs:
  a: {runner: fake, evaluation: {limit: 30}, limits: {compress: {memory: 512MiB}, measure: null}}
  b: {runner: fake, calibration: null}
defaults:
  evaluation: {limit: 10, batch_size: 2, num_fewshot: 5}
  calibration: {data: embedded:calibration, max_length: 64}
  limits: {compress: {time: 10, memory: 8}, audit: {memory: 8GB}}
""",
        evaluation={"num_fewshot": 0, "tasks": ("arc_easy", "own.yaml")},
    )
    a, b = suite.cases
    assert a.evaluation == spec.EvalSpec(
        ("arc_easy", str(Path.cwd() / "own.yaml")), ("embedded:tasks",), 0, limit=30, batch_size=2, seed=3
    )
    assert b.evaluation.limit == 20
    assert a.calibration == spec.CalibrationSpec("embedded:calibration", samples=8, max_length=64)
    assert b.calibration is None
    assert a.limits["compress"] == spec.Limit(5400, 0.5)
    assert "measure" not in a.limits
    assert b.limits["measure"] == spec.Limit(5, None)
    assert b.limits["audit"].memory_gib == pytest.approx(8e9 / 2**30)


def test_configs_come_from_the_model_else_from_defaults_else_all(read: Load) -> None:
    def names(text: str) -> list[str]:
        return [case.config.name for case in read(text).cases]

    assert names(HEAD + "    configs: [b, baseline]\n" + CONFIGS) == ["b", "baseline"]
    assert names(HEAD + CONFIGS + "defaults: {configs: [b]}") == ["b"]
    assert names(HEAD + CONFIGS) == ["a", "b"]
    assert names(HEAD) == ["baseline"]


def test_every_case_has_a_baseline_under_its_own_settings(read: Load) -> None:
    suite = read(HEAD + CONFIGS.replace("b: {", "b: {evaluation: {limit: 7}, measure: {repeats: 3}, "))
    a, b = suite.cases
    baseline = suite.baseline_of(a)
    assert (baseline.id, baseline.config) == ("s.m@1-baseline", spec.ConfigSpec("baseline", "baseline"))
    assert baseline.evaluation == a.evaluation
    assert suite.baseline_of(b).evaluation == b.evaluation
    assert suite.baseline_of(b).measure == b.measure
    changed = dataclasses.replace(a, evaluation=dataclasses.replace(a.evaluation, limit=3))
    assert suite.baseline_of(changed).evaluation.limit == 3


def test_a_listed_baseline_is_its_own_baseline(read: Load) -> None:
    suite = read(
        HEAD + "    configs: [baseline]\nconfigs: {baseline: {runner: baseline, limits: {audit: {time: 3}}}}"
    )
    assert suite.baseline_of(suite.cases[0]) == suite.cases[0]


def test_variables_of_a_config_and_of_its_use(read: Load) -> None:
    suite = read(
        HEAD
        + """\
    configs: [q, {config: q, recipe_args: {bits: 3}, as: q-w3}]
configs:
  q: {runner: fake, recipe_args: {bits: 4, damp: 0.01}, bits: $bits, recipe: "a: $damp\\nb: W${bits}"}
"""
    )
    assert [case.id for case in suite.cases] == ["s.m@1-q", "s.m@1-q-w3"]
    assert suite.cases[0].config.options == {"bits": 4, "recipe": "a: 0.01\nb: W4"}
    assert suite.cases[1].config.options == {"bits": 3, "recipe": "a: 0.01\nb: W3"}


def test_expectations_of_configs_and_models(read: Load) -> None:
    suite = read(
        HEAD
        + "    expect: {b: {fails: evaluate, match: slow.*}}\n"
        + CONFIGS.replace("fake", "fake, expect: {fails: compress, match: x, reason: y}")
    )
    assert suite.cases[0].expect == spec.Expect("compress", "x", "y")
    assert suite.cases[1].expect == spec.Expect("evaluate", "slow.*", "")


def test_the_keys_of_the_relax_scorecard_are_carried(read: Load) -> None:
    shapes = "    shapes: {$axes: {batch: 2}, ids: [batch, 128], mask: [batch, 1]}\n"
    suite = read(HEAD + shapes + "    tuning_steps: 0\n    requires-toposort: true\n    cuda-sm: 80\n")
    model = suite.cases[0].model
    assert model.shapes == {"$axes": {"batch": 2}, "ids": [2, 128], "mask": [2, 1]}
    assert (model.tuning_steps, model.requires_toposort, model.cuda_sm) == (0, True, 80)
    alone = read(HEAD + "    shapes: {$axes: {batch: 2}}")
    assert alone.cases[0].model.shapes == {"$axes": {"batch": 2}}


def test_relative_paths_start_at_the_folder_of_the_file(read: Load, tmp_path: Path) -> None:
    suite = read(
        HEAD.replace("[piqa]", "[piqa, own/t.yaml]")
        + "    evaluation: {task_paths: [own, embedded:tasks], heldout: h.txt}\n"
        + "    calibration: {data: /c.jsonl}\n"
    )
    (case,) = suite.cases
    assert case.model.source == f"path:{tmp_path}/there"
    assert case.evaluation.tasks == ("piqa", f"{tmp_path}/own/t.yaml")
    assert case.evaluation.task_paths == (f"{tmp_path}/own", "embedded:tasks")
    assert case.evaluation.heldout == f"{tmp_path}/h.txt"
    assert case.calibration is not None
    assert case.calibration.data == "/c.jsonl"


def test_text_numbers_and_anchors_are_those_of_yaml_1_2(read: Load) -> None:
    options = read(
        HEAD + "configs:\n  a: &a {runner: fake, off: no, t: 1:30, d: 2024-07-23, e: 1e-3, x: 0x10, o: 010}\n"
        "  b: {<<: *a, off: true, n: ~}\n"
    )
    expected = {"off": "no", "t": "1:30", "d": "2024-07-23", "e": 0.001, "x": 16, "o": 10}
    assert options.cases[0].config.options == expected
    assert options.cases[1].config.options == {**expected, "off": True, "n": None}


@pytest.mark.parametrize(
    ("written", "version"), [("7", "7"), ("'1.10'", "1.10"), ("2024-07-23", "2024-07-23")]
)
def test_versions_keep_what_was_written(read: Load, written: str, version: str) -> None:
    assert read(HEAD.replace("version: 1", f"version: {written}")).cases[0].model.version == version


# -- what is refused ---------------------------------------------------------------------------------------

PROBLEMS = re.findall(
    r"^(?!#)(\S.*)\n    (.*)$", Path(__file__).with_name("models_yaml_problems.txt").read_text("utf-8"), re.M
)


@pytest.mark.parametrize(("change", "problem"), PROBLEMS, ids=[change for change, _ in PROBLEMS])
def test_a_mistake_is_answered_with_one_line(read: Load, change: str, problem: str) -> None:
    old, arrow, new = change.partition(" ->")
    if arrow:
        assert old in HEAD + CONFIGS
        text = (HEAD + CONFIGS).replace(old, new.removeprefix(" "), 1)
    else:
        text = f"{HEAD}    {change}\n{CONFIGS}"
    assert refused(read, text) == f"models.yaml: {problem}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty; write 'models:'"),
        (b"# nothing\n", "is empty; write 'models:'"),
        (b"models: ~\n", "models: null is of the wrong type; write a list"),
        (b"- a\n", "['a'] is of the wrong type; write a mapping"),
        (b"models: []\n", "models: is empty; write something"),
        (b"models:\n  - \xff\n", "byte 12 is not UTF-8; save the file as UTF-8"),
        (
            b"a: 1\n---\nb: 2\n",
            "line 2, column 1: expected a single document in the stream, but found another document; mend it",
        ),
        (b"a: \x07\n", "line 1: a control character; write plain text"),
        (b'a: "\\UFFFFFFFF"\n', "an escape that is no character; write the character itself"),
        (
            b"a:\n\t- b\n",
            "line 2, column 1: while scanning for the next token, found character '\\t'",
        ),
        (b"[" * 100_000, "line 1, column 48: nested more than 48 levels deep; write it flatter"),
        (b"a: " + b"x" * (2 << 20), "more than 1 MiB; a models.yaml is a few kilobytes of text"),
    ],
)
def test_what_is_no_models_yaml_at_all(read: Load, data: bytes, problem: str) -> None:
    assert refused(read, data).startswith(f"models.yaml: {problem}")


def test_an_alias_bomb_is_refused_at_once(read: Load) -> None:
    rungs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rungs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    merges = ["m0: &m0 {k: v}"] + [
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 30)
    ]
    begin = time.perf_counter()
    for bomb in (rungs, merges):
        assert "more than 20000 values with all aliases written out" in refused(read, "\n".join(bomb))
    assert time.perf_counter() - begin < 5


def test_the_same_model_twice(read: Load) -> None:
    text = HEAD + HEAD.removeprefix("models:\n")
    assert refused(read, text) == (
        "models.yaml: models[1]: model 's.m@1' is there already, as models[0]; change its version"
    )


def test_two_models_may_not_share_a_case_id(read: Load) -> None:
    second = HEAD.removeprefix("models:\n").replace("version: 1", "version: 1-a")
    text = (
        HEAD
        + "    configs: [a-b]\n"
        + second
        + "    configs: [b]\nconfigs: {a-b: {runner: x}, b: {runner: x}}"
    )
    assert "models[1].configs[0]: case 's.m@1-a-b' is there already, from models[0].configs[0]" in refused(
        read, text
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(SpecError, match=r"cannot be read \(.+\); write the path of a models.yaml"):
            load(path)


def test_overrides_of_the_command_line_are_checked_too(read: Load) -> None:
    with pytest.raises(
        SpecError, match=r"^command line: batch_size: 0 is out of range; write a number of at least 1$"
    ):
        read(HEAD, evaluation={"batch_size": 0})
    assert read(HEAD.replace("    tasks: [piqa]\n", ""), evaluation={"tasks": ("a",)}).cases[
        0
    ].evaluation.tasks == ("a",)


# -- the documentation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", docs.SECTIONS)
def test_the_page_documents_every_key_and_no_other(heading: str) -> None:
    assert docs.documented_rows()[heading] == docs.expected_rows(docs.SECTIONS[heading])


def test_every_section_is_documented() -> None:
    assert set(docs.documented_rows()) == set(docs.SECTIONS)
    known = {
        cls
        for cls in [*vars(document).values(), *vars(sections).values()]
        if isinstance(cls, type) and issubclass(cls, sections.Section)
    }
    assert known - {sections.Section, document.Settings} == set(docs.SECTIONS.values())


@pytest.mark.parametrize("example", docs.examples())
def test_every_example_loads_and_agrees_with_the_schema(read: Load, example: str) -> None:
    assert read(example).cases
    jsonschema.validate(yaml.safe_load(example), document.json_schema())


def test_defaults_and_stages_are_those_of_the_specs() -> None:
    assert tuple(sections.Limits.model_fields) == spec.STAGES
    pairs: dict[type[sections.Section], type] = {
        sections.Evaluation: spec.EvalSpec,
        sections.Calibration: spec.CalibrationSpec,
        sections.Measure: spec.MeasureSpec,
    }
    for section, cls in pairs.items():
        defaults = {
            f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
        }
        assert set(section.model_fields) == {f.name for f in dataclasses.fields(cls)}
        given = {name: field.default for name, field in section.model_fields.items() if name in defaults}
        assert given == defaults | ({"task_paths": ["embedded:tasks"]} if cls is spec.EvalSpec else {})


def test_the_exported_schema_is_current_and_holds_for_the_shipped_file() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert schema == document.json_schema(), "write json.dumps(document.json_schema(), indent=2) to it"
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(MODELS_YAML.read_text(encoding="utf-8")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"models": [{"set": "a"}]}, schema)
