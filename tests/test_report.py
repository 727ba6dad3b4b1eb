"""Every report format: what it shows, that it fits, and that nothing is lost on the way."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from synthetic import MODEL, TASKS, Cases, compression, evaluation, frame, ledger, measurement, usual

from scorecard import score
from scorecard.audit import audit
from scorecard.errors import ScorecardError
from scorecard.latency import percentiles
from scorecard.ledger import weigh
from scorecard.report import csv_report, json_report, markdown, summary, terminal
from scorecard.report.columns import columns
from scorecard.row import SCORES, GateCheck, Row, Table, TaskScore
from scorecard.spec import Record

DOCS = Path(__file__).parents[1] / "docs"
GOLDEN = Path(__file__).parent / "golden"


def table_of(cases: Cases, ranking: str = "floor-95") -> Table:
    made = score.rows(cases.all, read=cases.read, ranking=ranking, lossless_bytes={MODEL: 5_000_000})
    return Table(tuple(made), score.settings(cases.all, ranking), {"cpu": "made up", "cores": 2})


@pytest.fixture(scope="module")
def table() -> Table:
    return table_of(usual())


@pytest.mark.parametrize("width", [80, 120, 200])
def test_terminal_is_as_agreed(table: Table, width: int) -> None:
    """To see a wanted change: write the text that this test shows into tests/golden/."""
    assert terminal.render(table, width) + "\n" == (GOLDEN / f"terminal-{width}.txt").read_text()


@pytest.mark.parametrize("ranking", SCORES)
def test_no_line_is_longer_than_the_terminal(ranking: str) -> None:
    cases = usual()
    cases.add("a-config-with-a-name-longer-than-most-" * 2, 3_000_000)
    made = table_of(cases, ranking)
    for width in (20, 40, 60, 79, 80, 81, 100, 133, 160, 200, 400):
        text = terminal.render(made, width)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text


def test_wider_shows_more_and_loses_nothing(table: Table) -> None:
    shown = []
    for width in (60, 80, 120, 160, 200, 400):
        head = terminal.render(table, width).splitlines()
        place = next(i for i, line in enumerate(head) if line.startswith("#"))
        shown.append(len(head[place].split()))
    assert shown == sorted(shown)
    everything = terminal.render(table, 400)
    for column in columns(table):
        assert column.title in everything


def test_80_columns_hold_what_is_always_shown(table: Table) -> None:
    text = terminal.render(table, 80)
    for wanted in ("config", "size", "accuracy", "floor-95", "raw", "recovery", "KL", "±", "lm-eval 0.4.13"):
        assert wanted in text
    assert "n = 850 documents" in text.replace("\n", " ")


def test_every_accuracy_has_its_uncertainty(table: Table) -> None:
    for column in columns(table):
        if column.title in ("accuracy", *TASKS, "text"):
            for row in table.rows:
                cell = column.cell(row)
                assert "±" in cell or cell in ("–", "failed", "skipped", "xfailed")


def test_unknown_uncertainty_is_a_question_mark() -> None:
    row = Row("m-c", "m", "c", "rtn", "ok", mean_accuracy=0.5)
    assert "50.0 ± ?" in terminal.render(Table((row,)), 80)


def test_reasons_findings_and_notes_are_below(table: Table) -> None:
    text = terminal.render(table, 200)
    assert "failed awq-w4: compress: no module named 'gptqmodel'; install it with" in text
    assert "skipped bnb-nf4: compress: bnb: needs a GPU" in text
    assert "xfailed odd: does not divide the hidden size" in text
    assert "audit warning: lm_head is not compressed (rtn-w2)" in text


def test_equal_notes_are_told_once() -> None:
    rows = [Row(f"m-{c}", "m", c, "rtn", "ok", notes=("speed: no clock",)) for c in "abc"]
    assert summary.problems(Table(tuple(rows))) == ["note speed: no clock (a, b, c)"]


@pytest.mark.parametrize("ranking", SCORES)
def test_notes_are_at_most_four_short_lines(ranking: str) -> None:
    lines = summary.notes(Table((), {"ranking": ranking}))
    assert len(lines) <= 4
    assert all(len(line) <= 80 for line in lines)


def test_models_get_a_line_each_when_there_are_several() -> None:
    one, other = usual(), Cases("set.other@2")
    other.add("baseline", 7_000_000, runner="baseline", seed=0)
    frames = {**one.frames, **other.frames}
    both = Table(tuple(score.rows(one.all + other.all, read=frames.__getitem__)))
    text = terminal.render(both, 120)
    assert f"\n{MODEL}\n" in text
    assert "\nset.other@2\n" in text
    assert f"failed {MODEL}-awq-w4:" in text


def test_color_changes_nothing_but_color(table: Table) -> None:
    import re

    colored = terminal.render(table, 120, color=True)
    assert "\x1b[32m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == terminal.render(table, 120)


def test_empty_table() -> None:
    assert "no cases" in terminal.render(Table(()), 80)
    assert markdown.render(Table(()))
    assert json_report.read(json_report.render(Table(()))) == Table(())
    assert csv_report.render(Table(())).strip() == ""


def test_large_models_are_in_gib() -> None:
    cases = Cases()
    cases.add("baseline", 16 * 10**9, runner="baseline", seed=0)
    text = terminal.render(table_of(cases), 80)
    assert "GiB" in text
    assert "14.90" in text


def test_markdown_is_a_github_table(table: Table) -> None:
    text = markdown.render(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    few = [line for line in markdown.render(table, 8).splitlines() if line.startswith("|")]
    assert few[0].count("|") == 9
    assert "accuracy %" in few[0]


def test_markdown_escapes_what_users_write() -> None:
    row = Row("m-c", "m", "a|b*c_d<e>`f`", "rtn", "failed", "first\nsecond | third")
    text = markdown.render(Table((row,)))
    assert "a\\|b\\*c\\_d&lt;e>\\`f\\`" in text
    assert "first second \\| third" in text


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=8
)
FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
INTS = st.none() | st.integers(0, 2**60)
FLOAT_KEYS = [f.name for f in dataclasses.fields(Row) if "float" in str(f.type)]
INT_KEYS = [f.name for f in dataclasses.fields(Row) if "Annotated[int" in str(f.type)]


@st.composite
def made_rows(draw: st.DrawFn) -> Row:
    numbers = draw(st.dictionaries(st.sampled_from(FLOAT_KEYS), FLOATS, max_size=5))
    counts = draw(st.dictionaries(st.sampled_from(INT_KEYS), INTS, max_size=3))
    task = st.builds(
        TaskScore, NAMES, FLOATS, FLOATS, st.integers(0, 9), FLOATS, st.booleans(), st.booleans(), INTS
    )
    outcomes = st.sampled_from(["pass", "fail", "inconclusive"])
    check = st.builds(GateCheck, outcomes, st.floats(-9, 9), FLOATS, FLOATS, FLOATS, INTS)
    nested = {
        "gate": draw(st.none() | outcomes),
        "gate_checks": draw(st.dictionaries(st.sampled_from(["kl", "recovery"]), check, max_size=2)),
        "differs": tuple(draw(st.lists(NAMES, max_size=2))),
        "tasks": draw(st.dictionaries(NAMES, task, max_size=1)),
        "stages": draw(st.dictionaries(NAMES, NAMES, max_size=1)),
        "notes": tuple(draw(st.lists(TEXTS, max_size=2))),
        "pareto": draw(st.none() | st.booleans()),
    }
    status = draw(st.sampled_from(["ok", "failed", "skipped", "expected failure"]))
    return Row(
        "s.m@1-c",
        "s.m@1",
        *draw(st.tuples(NAMES, NAMES)),
        status,
        draw(st.none() | TEXTS),
        **numbers,
        **counts,
        **nested,
    )


@given(st.lists(made_rows(), max_size=3))
@settings(max_examples=30, deadline=None)
def test_json_round_trip(rows: list[Row]) -> None:
    made = Table(tuple(rows), {"ranking": "raw"}, {"cores": 2})
    text = json_report.render(made)
    assert json_report.read(text) == made
    jsonschema.validate(json.loads(text), json_report.json_schema())


@given(st.lists(made_rows(), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_csv_round_trip(rows: list[Row]) -> None:
    text = csv_report.render(Table(tuple(rows)))
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(read) == len(rows) == len(text.split("\n")) - 2
    for row, cells in zip(rows, read, strict=True):
        for name, value in row.flat().items():
            if not value and isinstance(value, str | None):
                assert cells[name] == ""
            elif isinstance(value, float):
                assert float(cells[name]) == value
            else:
                assert cells[name] == " ".join(str(value).splitlines())


@given(st.lists(made_rows(), max_size=4), st.integers(20, 200))
@settings(max_examples=30, deadline=None)
def test_terminal_and_markdown_take_any_row(rows: list[Row], width: int) -> None:
    made = Table(tuple(rows))
    assert all(len(line) <= width for line in terminal.render(made, width).split("\n"))
    assert markdown.render(made)


def test_csv_for_pandas(table: Table) -> None:
    read = pd.read_csv(io.StringIO(csv_report.render(table)))
    by_config = read.set_index("config")
    row = next(row for row in table.rows if row.config == "gptq-w4")
    assert by_config.loc["gptq-w4", "tasks.pairs.value"] == row.tasks["pairs"].value
    assert by_config.loc["gptq-w4", "size_bytes"] == 2_000_000
    assert math.isnan(by_config.loc["awq-w4", "mean_accuracy"])
    assert "8000000," in csv_report.render(table)


def test_json_is_strict_and_complete(table: Table) -> None:
    text = json_report.render(table)
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert set(document) == {"schema", "machine", "settings", "rows"}
    assert document["schema"] == 1
    assert document["machine"]["cores"] == 2
    jsonschema.validate(document, json_report.json_schema())
    failed = next(row for row in document["rows"] if row["config"] == "awq-w4")
    assert failed["size_bytes"] is None
    assert json_report.read(text) == table


@pytest.mark.parametrize("change", [{"rows": [{}]}, {"schema": 2}, {"extra": 1}, {"machine": None}])
def test_schema_refuses(table: Table, change: dict) -> None:
    document = {**json.loads(json_report.render(table)), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_report.json_schema())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "rows": [{"x": 1}]}', "null"]
)
def test_what_is_no_table_is_one_line(text: str) -> None:
    with pytest.raises(ScorecardError, match=r"results.json: .*write it again") as caught:
        json_report.read(text)
    assert "\n" not in str(caught.value)


def test_schema_file_is_current() -> None:
    """To renew: json.dumps(json_report.json_schema(), indent=1) into docs/results.schema.json."""
    schema = json.loads((DOCS / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json_report.json_schema()


@pytest.mark.parametrize("cls", [Row, TaskScore, GateCheck])
def test_docs_describe_every_key_of_a_row(cls: type) -> None:
    """To renew: print(json_report.key_table(cls)) into docs/results.md."""
    assert json_report.key_table(cls) in (DOCS / "results.md").read_text()


def test_docs_describe_settings(table: Table) -> None:
    assert documented("settings") == set(table.settings)


def documented(section: str) -> set[str]:
    """Keys in the first column of the table under a heading of docs/results.md."""
    text = (DOCS / "results.md").read_text()
    part = text.split(f"\n### `{section}`\n", 1)[1].split("\n#", 1)[0]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {key.strip().strip("`") for cell in rows for key in cell.split(",")}


def keys_of(value: object, prefix: str = "") -> set[str]:
    """Paths of a result as the docs write them: NAME for what a user named, [] for list items."""
    if isinstance(value, dict) and "samples_seconds" not in value:
        named = prefix in ("tasks", "tasks.NAME.metrics", "calibration_overlap")
        found: set[str] = set()
        for key, inner in value.items():
            path = f"{prefix}.{'NAME' if named else key}".lstrip(".")
            found |= {path} if key in ("settings", "host_memory") else keys_of(inner, path)
        return found
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_of(item, f"{prefix}[]") for item in value))
    return {prefix}


LAYER = {
    "module": "m",
    "kind": "linear",
    "original_bytes": 2,
    "stored_bytes": 1,
    "bits_per_weight": 4.0,
    "dtypes": [],
    "format": "rtn",
    "bits": 4,
    "group_size": 128,
    "symmetric": True,
    "relative_error": 0.1,
    "rounding_difference": 0.0,
    "zeros": 0.1,
}
AUDIT = {"layers": [LAYER], "findings": [{"level": "warning", "what": "w"}]}
RESULTS = {
    "compress": compression(),
    "audit": {"ledger": ledger(10_000), "audit": AUDIT, "lossless_bytes": 5000},
    "evaluate": evaluation(frame(), 0.1),
    "measure": measurement(1.0),
}


def test_docs_describe_every_record() -> None:
    assert documented("record.json") == {f.name for f in dataclasses.fields(Record)}


@pytest.mark.parametrize("stage", RESULTS)
def test_docs_describe_every_result(stage: str) -> None:
    assert documented(stage) == keys_of(RESULTS[stage])


def test_docs_describe_samples() -> None:
    assert documented("SAMPLES") == set(percentiles([1.0, 2.0]) or {})


def test_made_up_results_have_the_keys_of_real_ones(tmp_path: Path) -> None:
    """What weighs and audits a real folder agrees with the results that these tests are made of."""
    weights = {f"model.layers.{i}.mlp.up_proj.weight": np.ones((8, 8), np.float32) for i in range(2)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "generation_config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    weighed, inspected = weigh(tmp_path, tmp_path), audit(tmp_path, tmp_path, {"runner": "rtn", "bits": 4})
    real = keys_of({"ledger": weighed, "audit": inspected}) | {"lossless_bytes"}
    assert real == documented("audit")
