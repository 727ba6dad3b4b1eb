"""Cases scored under different conditions are told apart, and the difference is named."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Cases, usual

from scorecard import results, score
from scorecard.comparable import conditions, differences, grouped
from scorecard.records import CaseRecords
from scorecard.report import markdown, terminal
from scorecard.row import Table
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec


def changed(case: CaseRecords, **parts: Any) -> CaseRecords:
    """The case with parts of its evaluate result replaced, mappings key by key."""
    record = case.records["evaluate"]
    result = {
        **record.result,
        **{k: {**record.result[k], **v} if isinstance(v, dict) else v for k, v in parts.items()},
    }
    evaluated = dataclasses.replace(record, result=result)
    return dataclasses.replace(case, records={**case.records, "evaluate": evaluated})


TASK = usual().all[0].records["evaluate"].result["tasks"]["cloze"]
CHANGES: dict[str, dict[str, Any]] = {
    "chat template: yes, not no": {"settings": {"apply_chat_template": True}},
    "BOS token: yes, not none": {"settings": {"add_bos_token": True}},
    "begins with BOS: no, not yes": {"conditions": {"adds_bos": False}},
    "text of the chat template: ffffffff, not eeeeeeee": {"conditions": {"chat_template_sha256": "f" * 64}},
    "tokenizer: 11111111, not 00000000": {"conditions": {"tokenizer_sha256": "1" * 64}},
    "limit: 100, not none": {"settings": {"limit": 100}},
    "dtype: float32, not bfloat16": {"settings": {"dtype": "float32"}},
    "shots of cloze: 5, not 0": {"tasks": {"cloze": {**TASK, "num_fewshot": 5}}},
    "version of cloze: 2.0, not 1.0": {"tasks": {"cloze": {**TASK, "version": 2.0}}},
    "lm-eval: 0.4.14, not 0.4.13": {"lm_eval_version": "0.4.14"},
    "tasks: cloze, more, pairs, text, not cloze, pairs, text": {"tasks": {"more": TASK}},
}


def plain() -> Cases:
    """The usual cases with every setting known."""
    cases = usual()
    settings = {"apply_chat_template": False, "add_bos_token": None}
    known = {"settings": settings, "conditions": {"chat_template_sha256": "e" * 64}}
    cases.all = [changed(case, **known) if "evaluate" in case.records else case for case in cases.all]
    return cases


@pytest.mark.parametrize("difference", CHANGES)
def test_a_changed_condition_is_a_group_of_its_own(difference: str) -> None:
    cases = plain()
    cases.all[2] = changed(cases.all[2], **CHANGES[difference])
    rows = {row.config: row for row in score.rows(cases.all, read=cases.read)}
    odd = rows["gptq-w4"]
    assert (odd.group, odd.differs) == (2, (difference,))
    assert (odd.rank, odd.recovery, odd.delta_accuracy) == (None, None, None)
    assert odd.mean_accuracy is not None
    assert {row.group for row in rows.values() if row.config.startswith("rtn")} == {1}
    assert rows["rtn-w4"].rank == 1


def test_a_group_without_the_baseline_is_ranked_by_itself() -> None:
    cases = plain()
    for place in (1, 2):
        cases.all[place] = changed(cases.all[place], settings={"dtype": "float32"})
    rows = score.rows(cases.all, read=cases.read, ranking="raw")
    second = [row for row in rows if row.group == 2]
    assert [(row.config, row.rank) for row in second] == [("gptq-w4", 1), ("rtn-w8", 2)]
    assert [row.config for row in rows][-2:] == ["gptq-w4", "rtn-w8"]


def test_what_is_not_known_separates_nothing() -> None:
    cases = plain()
    cases.all[2] = changed(cases.all[2], conditions={"tokenizer_sha256": None, "adds_bos": None})
    rows = {row.config: row for row in score.rows(cases.all, read=cases.read)}
    assert rows["gptq-w4"].group == 1
    assert rows["awq-w4"].group is None


def test_the_definition_of_a_task_counts_where_it_is_known() -> None:
    case = plain().all[0]
    inputs = {"tasks": {"tasks": {"cloze": {"config_sha256": "a" * 64, "documents_sha256": "b" * 64}}}}
    record = dataclasses.replace(case.records["evaluate"], inputs=inputs)
    known = conditions(dataclasses.replace(case, records={"evaluate": record}))
    assert known["definition of cloze"] == "a" * 64
    assert differences(conditions(case), known) == ()
    assert differences({**known, "definition of cloze": "c" * 64}, known) == (
        "definition of cloze: cccccccc, not aaaaaaaa",
    )


def test_groups_are_blocks_of_their_own_in_every_table() -> None:
    cases = plain()
    cases.all[2] = changed(cases.all[2], settings={"dtype": "float32"})
    table = Table(tuple(score.rows(cases.all, read=cases.read, ranking="raw")), {"ranking": "raw"})
    lines = terminal.render(table, 100).splitlines()
    place = lines.index("scored otherwise: dtype: float32, not bfloat16")
    assert lines[place - 1].split()[1] == "(lossless)"
    assert lines[place + 1].split()[:2] == ["1", "gptq-w4"]
    assert [line.split()[0] for line in lines if " rtn-w2 " in line] == ["1"]
    text = markdown.render(table)
    assert text.count("| # | config |") == 2
    assert "scored otherwise: dtype: float32, not bfloat16" in text


def test_a_case_with_conditions_of_its_own_is_compared_with_a_baseline_of_its_own() -> None:
    model, spec = ModelSpec("s", "m", "1", "path:x"), EvalSpec(("piqa",))
    baseline = Case(model, ConfigSpec("baseline", "baseline"), spec)
    specs = {"a": spec, "b": EvalSpec(("piqa",), batch_size=1), "c": EvalSpec(("piqa",), dtype="float32")}
    asked = [Case(model, ConfigSpec(name, "rtn"), chosen) for name, chosen in specs.items()]

    def baseline_of(case: Case) -> Case:
        return dataclasses.replace(baseline, evaluation=case.evaluation)

    found = results._with_baselines(SimpleNamespace(baseline_of=baseline_of), [baseline, *asked])
    assert set(found) == {"s.m@1-baseline", "s.m@1-a", "s.m@1-b", "s.m@1-c", "s.m@1-baseline#2"}
    assert found["s.m@1-baseline#2"].evaluation == specs["c"]
    alone = results._with_baselines(SimpleNamespace(baseline_of=baseline_of), asked[2:])
    assert alone["s.m@1-baseline"].evaluation == specs["c"]


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 3), max_size=9), st.randoms())
def test_groups_agree_and_do_not_depend_on_the_order(values: dict[str, int], shuffler: Any) -> None:
    cases = {case: {"dtype": value} for case, value in values.items()}
    groups = grouped(cases)
    assert sorted(case for group in groups for case in group) == sorted(cases)
    assert all(len({values[case] for case in group}) == 1 for group in groups)
    assert len(groups) == len(set(values.values()))
    order = list(cases)
    shuffler.shuffle(order)
    assert grouped({case: cases[case] for case in order}) == groups
