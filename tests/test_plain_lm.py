"""The same numbers, document by document, from lm-eval's HFLM and from its twin, in process and served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runners._hf import load_causal_lm, load_tokenizer, to_lm
from runners._plain_lm import PlainLM, Request, rolling_windows
from scorecard.documents import REPOSITORY
from scorecard.heldout import heldout
from scorecard.lm_client import serve
from scorecard.lm_server import Served
from scorecard.spec import Case, ConfigSpec, EvalSpec, ModelSpec

MODEL = REPOSITORY / "embedded" / "tiny-llama"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT
HIDE_LM_EVAL = "import sys\nsys.modules['lm_eval'] = None\n"

PAIRS = [
    ("The cat sat on the", " mat."),
    ("The cat sat on the ", "mat."),  # a space that ends the context
    ("The cat sat on the  ", " dog"),
    ("", "The cat"),
    ("", "<s>The cat"),
    ("<s>The cat", " sat"),
    *[("Which one is it? A, B or C:", f" {letter}") for letter in "ABC"],  # one input, three last tokens
    ("Which one is it? A, B or C: A", " B"),
    ("a", " b c d e f g"),
    ("a b", " c d e f g"),  # the same text, cut elsewhere
    ("na\u00efve \U0001f600", " caf\u00e9"),
    ("word " * 700, "the end of it"),  # more than the model takes
]
TEXTS = ["A short one.", "", "x", "one two three four. " * 400, "<s>The cat"]
GREEDY = {"until": ["\n"], "max_gen_toks": 12}
GENERATIONS: list[tuple[str, dict[str, Any]]] = [
    *[(text, GREEDY) for text in ("The cat", "A dog and", "", "One day, a very long time ago,", "<s>The")],
    ("The cat", {"until": ".", "max_new_tokens": 20, "do_sample": False, "temperature": 0.0}),
    ("The cat", {"until": [" "], "max_gen_toks": 20}),
    ("word " * 700, {"max_gen_toks": 5}),
    *[(text, {"do_sample": True, "temperature": 0.9, "max_gen_toks": 10}) for text in ("The", "A big")],
]


def a_case(**settings: Any) -> Case:
    spec = EvalSpec(
        ("some",), batch_size=3, heldout="embedded:heldout", heldout_documents=3, heldout_tokens=64
    )
    return Case(
        ModelSpec("embedded", "tiny-llama", "1", "embedded:tiny-llama"),
        ConfigSpec("baseline", "baseline"),
        dataclasses.replace(spec, **{"lm": "hf", **settings}),
    )


def served(rows: list[tuple[Any, ...]]) -> list[Request]:
    return [Served(row) for row in rows]


def answers(lm: Any, case: Case) -> dict[str, Any]:
    """Everything that an evaluation asks of an LM."""
    import torch

    torch.manual_seed(case.evaluation.seed)
    text = heldout(lm, case.evaluation, reference=None, write_reference=None)
    return {
        "generate_until": lm.generate_until(served(GENERATIONS)),
        "loglikelihood": lm.loglikelihood(served(PAIRS)),
        "loglikelihood_rolling": lm.loglikelihood_rolling(served([(text,) for text in TEXTS])),
        "heldout": (text.summary, text.rows),
        "facts": (lm.max_length, lm.eot_token_id, lm.prefix_token_id, lm.tokenizer_name),
    }


def plain(case: Case) -> PlainLM:
    spec = case.evaluation
    return PlainLM(
        load_causal_lm(MODEL, case),
        load_tokenizer(MODEL, case),
        batch_size=spec.batch_size,
        max_length=spec.max_length,
        add_bos_token=spec.add_bos_token,
    )


def own(case: Case) -> Any:
    """What a runner's ``load()`` gives here: HFLM for ``lm: hf``."""
    return to_lm(load_causal_lm(MODEL, case), load_tokenizer(MODEL, case), case)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return answers(own(a_case()), a_case())


@pytest.fixture
def without_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers started from here do not find lm-eval."""
    (tmp_path / "sitecustomize.py").write_text(HIDE_LM_EVAL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return iter(())


@pytest.mark.backend
@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("max_length", [None, 48])
def test_every_request_gets_the_number_of_lm_eval(add_bos_token: bool | None, max_length: int | None) -> None:
    case = a_case(add_bos_token=add_bos_token, max_length=max_length, heldout_documents=1)
    ours, theirs = answers(plain(case), case), answers(own(case), case)
    assert ours == theirs


@pytest.mark.backend
def test_served_by_lm_eval_the_numbers_are_the_same(expected: dict[str, Any]) -> None:
    import sys

    with serve(Path(sys.executable), a_case(), MODEL) as lm:
        assert answers(lm, a_case()) == expected


@pytest.mark.backend
@pytest.mark.usefixtures("without_lm_eval")
def test_served_without_lm_eval_the_numbers_are_the_same(expected: dict[str, Any]) -> None:
    import sys

    with serve(Path(sys.executable), a_case(), MODEL) as lm:
        assert answers(lm, a_case()) == expected


@pytest.mark.backend
@pytest.mark.usefixtures("without_lm_eval")
def test_the_shared_lm_is_served_with_the_numbers_that_it_has_here() -> None:
    import sys

    case = a_case(lm="shared")
    with serve(Path(sys.executable), case, MODEL) as lm:
        assert answers(lm, case) == answers(own(case), case)


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("environment", ["autoawq", "autogptq"])
def test_served_by_transformers_4_the_numbers_are_the_same(
    environment: str, expected: dict[str, Any]
) -> None:
    from in_environment import python

    with serve(python(environment), a_case(), MODEL) as lm:
        found = answers(lm, a_case())
    for name in ("loglikelihood", "loglikelihood_rolling", "heldout", "facts"):
        assert found[name] == expected[name], name
    greedy = [place for place, (_, settings) in enumerate(GENERATIONS) if not settings.get("do_sample")]
    assert [found["generate_until"][p] for p in greedy] == [expected["generate_until"][p] for p in greedy]


@pytest.mark.backend
@pytest.mark.usefixtures("without_lm_eval")
def test_an_evaluation_gives_the_same_scores(tmp_path: Path) -> None:
    import sys

    from scorecard.evaluate import evaluate

    tasks = ("tiny_pairs", "tiny_generate", "tiny_text")
    case = a_case(tasks=tasks, task_paths=("embedded:tasks",), limit=4)
    with serve(Path(sys.executable), case, MODEL) as lm:
        results = [
            evaluate(each, case.evaluation, reference=None, write_reference=reference, documents=documents)
            for each, reference, documents in (
                (lm, tmp_path / "served.safetensors", tmp_path / "served.parquet"),
                (own(case), tmp_path / "own.safetensors", tmp_path / "own.parquet"),
            )
        ]
    assert results[0]["heldout"]["kl"] == 0.0
    for key in ("tasks", "heldout", "mean_accuracy"):
        assert results[0][key] == results[1][key], key
    for kind in ("safetensors", "parquet"):
        assert (tmp_path / f"served.{kind}").read_bytes() == (tmp_path / f"own.{kind}").read_bytes()


@pytest.mark.backend
@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM])
def test_chats_are_written_as_lm_eval_writes_them(template: str) -> None:
    case = a_case()
    chat = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")]
    ours, theirs = plain(case), own(case)
    ours.tokenizer.chat_template = theirs.tokenizer.chat_template = template
    for prompt in (True, False):
        assert ours.apply_chat_template(chat, prompt) == theirs.apply_chat_template(chat, prompt)
    for name in (True, False, "other"):
        assert ours.chat_template(name) == theirs.chat_template(name)


def test_windows_predict_every_token_once() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in (0, 1, 4, 5, 9, 12):
        tokens = list(range(length))
        theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, -1, 4, 1))
        assert list(rolling_windows(tokens, -1, 4)) == list(theirs)
