"""The embedded model, its language and its tasks: what is committed is what the scripts write."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
sys.path.insert(0, str(EMBEDDED))

import language  # noqa: E402
import lexicon  # noqa: E402
import make_tasks  # noqa: E402
import narrative  # noqa: E402
import tokenizer  # noqa: E402

MODEL = EMBEDDED / "tiny-llama"
CHOICE_FILES = ("tiny_pairs", "tiny_cloze", "tiny_facts")
# Of the first 200 documents of Dice(1). Change it only together with the committed data and the model.
DOCUMENTS_SHA256 = "ad4ddef4208b3a96f75c1b7e329d10fa06f27e483d0746fb132de825b310a7a5"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EMBEDDED / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def training_text() -> str:
    dice = language.Dice(1)
    return "\n".join(narrative.document(dice) for _ in range(4000))


def test_language_is_the_same_everywhere() -> None:
    dice = language.Dice(1)
    text = "\n".join(narrative.document(dice) for _ in range(200))
    assert hashlib.sha256(text.encode()).hexdigest() == DOCUMENTS_SHA256


@pytest.mark.parametrize("name", make_tasks.FILES)
def test_committed_data_is_what_make_tasks_writes(name: str) -> None:
    assert (EMBEDDED / name).read_text(encoding="utf-8") == make_tasks.contents(name)


def test_make_tasks_writes_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_tasks, "FILES", {"tasks/tiny_facts.jsonl": make_tasks.facts})
    make_tasks.main(["--out", str(tmp_path)])
    written = (tmp_path / "tasks/tiny_facts.jsonl").read_bytes()
    assert written == (EMBEDDED / "tasks/tiny_facts.jsonl").read_bytes()


def test_shares_of_documents_add_up() -> None:
    assert sum(share for share, _ in narrative.KINDS.values()) == 100


# -- held out means held out ------------------------------------------------------------------------------


def test_training_never_shows_what_is_evaluated(training_text: str) -> None:
    evaluated = [row["good"] for row in rows("tasks/tiny_pairs.jsonl")]
    evaluated += [row["context"] for row in rows("tasks/tiny_cloze.jsonl")]
    evaluated += [row["prompt"] for row in rows("tasks/tiny_generate.jsonl") if "plus" not in row["prompt"]]
    evaluated += [row["question"] for row in rows("tasks/tiny_facts.jsonl")]
    sentences = set(training_text.replace(". ", ".\n").splitlines())
    assert not sentences.intersection(evaluated)
    assert not [text for text in evaluated if text.count(".") > 1 and text in training_text]


def test_questions_in_training_are_never_about_the_persons_of_the_task(training_text: str) -> None:
    asked = {line for line in training_text.splitlines() if line.startswith("Question:")}
    unasked = language.world().persons[language.FIRST_UNASKED_PERSON :]
    assert len(asked) > 1000
    assert not [line for line in asked if any(person in line for person in unasked)]


def test_calibration_and_held_out_text_share_nothing_with_the_tasks() -> None:
    calibration = " ".join(row["text"] for row in rows("calibration.jsonl"))
    for row in rows("tasks/tiny_pairs.jsonl"):
        assert f" {row['good']}" not in calibration
    for row in rows("tasks/tiny_cloze.jsonl"):
        assert row["context"] not in calibration
    for row in rows("tasks/tiny_facts.jsonl"):
        assert row["question"] not in calibration
    texts = [row["text"] for row in rows("heldout.jsonl") + rows("tasks/tiny_text.jsonl")]
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if text in calibration]


# -- the tasks --------------------------------------------------------------------------------------------


def test_every_choice_task_has_a_thousand_different_documents() -> None:
    for name in CHOICE_FILES:
        lines = (EMBEDDED / f"tasks/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(set(lines)) == len(lines) >= 1000


def test_pairs_differ_in_one_word() -> None:
    for row in rows("tasks/tiny_pairs.jsonl"):
        good, bad = row["good"].split(), row["bad"].split()
        assert len(good) == len(bad)
        assert sum(a != b for a, b in zip(good, bad, strict=True)) == 1


def test_cloze_endings_are_of_equal_length_and_differ() -> None:
    for row in rows("tasks/tiny_cloze.jsonl"):
        assert len(set(row["endings"])) == 4
        assert len({len(ending.split()) for ending in row["endings"]}) == 1


def test_fact_answers_are_facts_of_the_world() -> None:
    known = {
        language.fact_question(person, attribute): language.world().values[person][attribute]
        for person in range(language.NUM_PERSONS)
        for attribute in range(len(language.ATTRIBUTES))
    }
    for row in rows("tasks/tiny_facts.jsonl") + rows("tasks/tiny_facts_fewshot.jsonl"):
        assert row["options"][row["answer"]] == known[row["question"]]
        assert row["options"].count(known[row["question"]]) == 1


@pytest.mark.parametrize("name", ["tiny_cloze", "tiny_facts"])
def test_labels_are_balanced(name: str) -> None:
    key = "label" if name == "tiny_cloze" else "answer"
    labels = [row[key] for row in rows(f"tasks/{name}.jsonl")]
    assert all(220 < labels.count(label) < 320 for label in range(4))


def test_task_files_hold_no_absolute_path_and_a_version() -> None:
    for path in (EMBEDDED / "tasks").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "version:" in text
        settings_lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert not [line for line in settings_lines if "/" in line]


def test_tasks_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(EMBEDDED / "tasks"), include_defaults=False)
    names = [*CHOICE_FILES, "tiny_generate", "tiny_text"]
    tasks = manager.load(names)["tasks"]
    assert sorted(tasks) == sorted(names)
    assert all(len(tasks[name].test_docs()) >= 1000 for name in CHOICE_FILES)
    facts = tasks["tiny_facts"]
    document = facts.test_docs()[0]
    expected = language.multiple_choice(document["question"], document["options"])
    assert facts.doc_to_text(document) == expected


# -- the tokenizer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_every_word_is_one_token(loaded: Any) -> None:
    assert len(loaded) == tokenizer.VOCAB_SIZE
    assert [word for word in lexicon.words() if len(loaded.encode(word)) != 1] == []


def test_committed_tokenizer_is_the_built_one() -> None:
    built = json.loads(tokenizer.build().backend_tokenizer.to_str())
    assert json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8")) == built


def test_a_leading_space_makes_no_difference(loaded: Any) -> None:
    assert loaded.encode(" the dog sleeps.") == loaded.encode("the dog sleeps.")


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), held_out=st.booleans())
def test_documents_survive_the_tokenizer(seed: int, held_out: bool) -> None:
    text = narrative.document(language.Dice(seed), held_out)
    built = _built()
    ids = built.encode(text)
    assert built.unk_token_id not in ids
    assert built.decode(ids) == text


@settings(deadline=None)
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126) | st.sampled_from(" \n"), min_size=1))
def test_plain_text_survives_the_tokenizer(text: str) -> None:
    built = _built()
    expected = text.removeprefix(" ")
    assert built.decode(built.encode(text)) == expected


@pytest.mark.parametrize("k", [0, 1, 5])
def test_sample_takes_different_positions(k: int) -> None:
    assert len(set(language.Dice(7).sample(range(5), k))) == k


_cache: list[Any] = []


def _built() -> Any:
    if not _cache:
        _cache.append(tokenizer.build())
    return _cache[0]


# -- the model --------------------------------------------------------------------------------------------


def shapes() -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(str(MODEL / "model.safetensors"), framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        assert {piece.get_dtype() for piece in slices.values()} == {"BF16"}
        return {name: tuple(piece.get_shape()) for name, piece in slices.items()}


def test_model_is_small_and_every_backend_can_pack_it() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == config["vocab_size"] % 64 == 0
    assert config["max_position_embeddings"] >= 512
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 8e6
    found = shapes()
    assert 1e6 <= sum(_product(shape) for shape in found.values()) <= 4e6
    linear = [s for n, s in found.items() if len(s) == 2 and "embed" not in n]
    assert all(out % 32 == 0 and width % 128 == 0 for out, width in linear)


def test_model_folder_holds_nothing_else() -> None:
    names = {path.name for path in MODEL.iterdir()}
    files = ("config", "generation_config", "tokenizer", "tokenizer_config")
    assert names == {"model.safetensors", *(f"{name}.json" for name in files)}


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


@pytest.mark.backend
def test_training_is_deterministic_and_learns() -> None:
    import torch
    import train

    losses: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = [
            train.train(
                3,
                2 * train.TOKENS_PER_STEP,
                minutes=10,
                compiled=False,
                bf16=True,
                watch=lambda *state: losses.append(state[-1]),
            )
            for _ in range(2)
        ]
    finally:
        torch.set_num_threads(threads)
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses[0] == losses[1] > 5


def test_a_training_cut_short_gets_to_the_long_sequences_too() -> None:
    import train

    gone = iter((0.0, 0.5, 0.8, 0.9, 0.95, 1.0))
    shapes = [tuple(batch.shape) for batch in train.batches(1, 10**9, 512, lambda: next(gone))]
    assert shapes == [(4, 128), (4, 128), (2, 256), (2, 256)]


def test_a_model_of_another_shape_is_trained_and_saved(tmp_path: Path) -> None:
    import train
    from transformers import AutoModelForCausalLM

    shape = ["--layers", "1", "--width", "32", "--mlp", "48", "--heads", "2", "--kv-heads", "1"]
    few = ["--tokens", "1200", "--step", "256", "--threads", "1", "--no-compile", "--no-bf16"]
    train.main(["--out", str(tmp_path), *shape, *few, "--checkpoint-minutes", "1e-9"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    layer = model.model.layers[0]
    assert len(model.model.layers) == 1
    assert (layer.mlp.up_proj.in_features, layer.mlp.up_proj.out_features) == (32, 48)
    assert layer.self_attn.k_proj.out_features == 16
    assert (tmp_path / "tokenizer.json").is_file()


def test_unequal_channels_compute_the_same() -> None:
    import outliers
    import torch
    import train

    model = train.new_model(0).to(torch.bfloat16).eval()
    ids = torch.arange(64).view(2, 32)
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        logits, before = model(input_ids=ids).logits, weight.clone()
        outliers.scale_channels(model)
        assert not torch.equal(weight, before)
        assert torch.equal(model(input_ids=ids).logits, logits)
