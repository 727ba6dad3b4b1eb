"""Calibration data of every kind: the same documents and the same tokens for every backend."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_case, write_model

import runners._calibration as calibration
from runners._calibration_source import resolve
from runners._documents import rows, table
from runners._functions import function
from runners._hf import load_tokenizer
from scorecard.calibration_sets import KNOWN
from scorecard.errors import DataUnavailable, SpecError
from scorecard.load import load
from scorecard.spec import CalibrationSpec

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"}]
PIXEL = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = load_tokenizer(write_model(tmp_path_factory.mktemp("models") / "tiny"), make_case("rtn"))
    found.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    return found


def spec(data: Path | str, **settings: Any) -> CalibrationSpec:
    return CalibrationSpec(str(data), **{"samples": 2, "max_length": 16, **settings})


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def found_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- sequences of tokens --------------------------------------------------------------------------


def test_every_kind_of_row_becomes_tokens(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "abc"}, {"messages": CHAT}, {"input_ids": [5, 6, 7]})
    found = calibration.token_lists(spec(path, samples=3, concatenate=False, shuffle=False), tokenizer)
    chat = "<s>user: Hello</s><s>assistant: World</s>"
    assert found[0] == tokenizer("abc")["input_ids"]
    assert found[1] == tokenizer(chat, add_special_tokens=False)["input_ids"][:16]
    assert found[2] == [5, 6, 7]


def test_documents_in_their_order_without_shuffling(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", *({"input_ids": [2 + i] * 7} for i in range(20)))
    packed = calibration.token_lists(spec(path, shuffle=False), tokenizer)
    end = tokenizer.eos_token_id
    assert packed == [[2] * 7 + [end] + [3] * 7 + [end], [4] * 7 + [end] + [5] * 7 + [end]]
    alone = calibration.token_lists(spec(path, shuffle=False, concatenate=False), tokenizer)
    assert alone == [[2] * 7, [3] * 7]
    mixed = calibration.token_lists(spec(path, samples=20, concatenate=False), tokenizer)
    assert sorted(mixed) == [[2 + i] * 7 for i in range(20)] != mixed


def test_too_few_documents(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "abc"}, {"text": ""})
    with pytest.raises(SpecError, match="holds 1 sequences of at most 16 tokens, not 2; write samples: 1 or"):
        calibration.token_lists(spec(path, concatenate=False), tokenizer)
    with pytest.raises(SpecError, match="holds 0 sequences of 16 tokens, not 2; give more text"):
        calibration.token_lists(spec(path), tokenizer)


def test_chat_without_a_template_says_what_to_write(tmp_path: Path, tokenizer: Any) -> None:
    plain = load_tokenizer(Path(tokenizer.name_or_path), make_case("rtn"))
    with pytest.raises(SpecError, match="the model has no chat template; write data with a text column"):
        calibration.token_lists(spec(write(tmp_path / "a.jsonl", {"messages": CHAT})), plain)


@pytest.mark.parametrize(
    "row", ['{"txt": "a"}', '{"text": 3}', "[1]", '{"text": "a", "input_ids": [1]}', "{"]
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n\n{row}\n')
    with pytest.raises(SpecError, match=r"calibration.data: a.jsonl:3 is no JSON object with a text; write"):
        rows(tmp_path / "a.jsonl")


def test_a_collator_makes_the_sequences(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", *({"input_ids": [2 + i] * 7} for i in range(4)))
    code = tmp_path / "collate.py"
    code.write_text(
        "def first(documents, samples, max_length):\n    return [d[:2] for d in documents[:samples]]\n"
    )
    asked = spec(path, shuffle=False, collator=f"{code}:first")
    assert calibration.token_lists(asked, tokenizer) == [[2, 2], [3, 3]]
    before = calibration.inputs(asked)
    code.write_text(code.read_text() + "\n")
    assert calibration.inputs(asked)["collator"] != before["collator"]
    assert calibration.inputs(asked)["sha256"] == before["sha256"]
    code.write_text("def none(documents, samples, max_length):\n    return []\n")
    other = tmp_path / "other.py"
    other.write_text(code.read_text())
    with pytest.raises(SpecError, match="gave 0 sequences; return 2 lists of 1 to 16 token ids"):
        calibration.token_lists(spec(path, collator=f"{other}:none"), tokenizer)
    with pytest.raises(SpecError, match=r"other\.py has no function 'non'; did you mean 'none'"):
        function(f"{other}:non", "calibration.collator")


# -- data of other kinds ---------------------------------------------------------------------------


def test_plain_text_is_its_own_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"})
    assert resolve(spec(path), tmp_path / "cache") == path
    assert resolve(spec("embedded:calibration"), tmp_path / "cache").is_file()
    assert not (tmp_path / "cache").exists()


def test_columns_of_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [{"question": "Q1", "answer": "A1"}, {"question": "Q2", "answer": "A2"}]
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1))
    write(tmp_path / "c.json", *records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    (tmp_path / "e.json.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert list(table(tmp_path / "e.json.gz")) == records
    paths = {
        resolve(spec(tmp_path / name, text_column="{question}: {answer}", shuffle=False), tmp_path / "cache")
        for name in ("a.jsonl", "b.json", "c.json", "d.parquet")
    }
    (path,) = paths  # the same bytes under the same name
    assert found_in(path) == [{"text": "Q1: A1"}, {"text": "Q2: A2"}]
    assert json.loads(path.with_suffix(".origin.json").read_text())["documents"] == 2
    answers = resolve(spec(tmp_path / "b.json", text_column="answer", shuffle=False), tmp_path / "cache")
    assert found_in(answers) == [{"text": "A1"}, {"text": "A2"}]


def test_chats_of_both_layouts(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "World"}]
    write(tmp_path / "a.jsonl", {"talk": CHAT}, {"talk": shared})
    path = resolve(spec(tmp_path / "a.jsonl", messages_column="talk"), tmp_path / "cache")
    assert found_in(path) == [{"messages": CHAT}] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_column": "txt"}, "has no column 'txt'; write one of question"),
        ({}, "has the columns question; write text_column: one of them"),
        ({"text_column": "a", "messages_column": "b"}, "messages_column is set too; keep one of them"),
        (
            {"messages_column": "question"},
            "no chat messages; write a column of lists with 'role' and 'content'",
        ),
    ],
)
def test_a_wrong_column_is_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"question": "Q1"}]')
    with pytest.raises(SpecError, match=message):
        resolve(spec(path, **settings), tmp_path / "cache")


def test_no_more_is_kept_than_can_be_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": f"{i} " + "x" * 100} for i in range(1000)]))
    first = found_in(resolve(spec(path), tmp_path / "cache"))
    assert 4 <= len(first) < 20
    assert found_in(resolve(spec(path), tmp_path / "cache")) == first
    assert found_in(resolve(spec(path, seed=3), tmp_path / "cache")) != first


LOADER = """
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"}]
def every(samples, seed):
    yield f"text {samples} {seed}"
    yield CHAT
    yield [1, 2, 3]
    yield {"text": "mapping"}
def wrong(**anything):
    return [3.5]
"""


def test_a_loader_gives_texts_messages_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(LOADER)
    path = resolve(spec(f"{tmp_path}/load.py:every", shuffle=False, seed=9), tmp_path / "cache")
    expected = [{"text": "text 2 9"}, {"messages": CHAT}, {"input_ids": [1, 2, 3]}, {"text": "mapping"}]
    assert found_in(path) == expected
    with pytest.raises(SpecError, match="gave a float; give texts, lists of messages or lists of token ids"):
        resolve(spec(f"{tmp_path}/load.py:wrong"), tmp_path / "cache")
    before = calibration.fingerprint(f"{tmp_path}/load.py:every")
    (tmp_path / "load.py").write_text(LOADER + "\n")
    assert calibration.fingerprint(f"{tmp_path}/load.py:every") != before


def test_pictures_are_kept_beside_their_texts(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(PIXEL)
    path = tmp_path / "a.jsonl"
    records = [{"text": f"t{i}", "images": ["p.png"]} for i in range(3)]
    write(path, *records, {"text": "no picture"})
    asked = spec(path, vision_samples=2)
    resolved = dataclasses.replace(asked, data=str(resolve(asked, tmp_path / "cache")))
    found = calibration.vision_rows(resolved)
    (tmp_path / "p.png").write_bytes(PIXEL + b".")
    assert resolve(asked, tmp_path / "cache") != Path(resolved.data)  # other pictures are other data
    assert [Path(p).read_bytes() for row in found for p in row["images"]] == [PIXEL] * 2
    with pytest.raises(
        DataUnavailable, match="holds 2 documents with pictures, not 5; write vision_samples: 2"
    ):
        calibration.vision_rows(dataclasses.replace(resolved, vision_samples=5))


# -- the hub -----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of ``datasets`` in its own layout that holds ``openai/gsm8k``, and no hub."""
    import datasets

    commit = "c" * 40
    home = tmp_path / "datasets"
    made = datasets.Dataset.from_list([{"question": f"Q{i}", "answer": f"A{i}"} for i in range(9)])
    folder = home / "openai___gsm8k" / "main" / "0.0.0" / commit
    made.save_to_disk(tmp_path / "made")
    folder.mkdir(parents=True)
    next((tmp_path / "made").glob("*.arrow")).replace(folder / "gsm8k-train.arrow")
    split = {"name": "train", "num_examples": 9, "num_bytes": 1, "dataset_name": "gsm8k"}
    info = {"dataset_name": "gsm8k", "config_name": "main", "splits": {"train": split}, "version": "0.0.0"}
    kinds = {name: {"dtype": "string", "_type": "Value"} for name in ("question", "answer")}
    (folder / "dataset_info.json").write_text(json.dumps({**info, "builder_name": "x", "features": kinds}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    return home


@pytest.mark.parametrize("data", ["gsm8k", "hf:openai/gsm8k"])
def test_a_hub_set_comes_from_the_cache(cache: Path, tmp_path: Path, data: str) -> None:
    named = (
        {} if data == "gsm8k" else {"config": "main", "text_column": "Question: {question}\nAnswer: {answer}"}
    )
    path = resolve(spec(data, **named), tmp_path / "out", offline=True)
    found = found_in(path)
    assert sorted(row["text"] for row in found) == [f"Question: Q{i}\nAnswer: A{i}" for i in range(9)]
    origin = json.loads(path.with_suffix(".origin.json").read_text())
    assert origin == {"data": data, "revision": "c" * 40, "documents": 9}
    assert calibration._origin(str(path)) == f"{data}@{'c' * 40}"


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ("wikitext", {}),
        ("c4", {}),
        ("gsm8k", {"split": "nowhere"}),
        ("gsm8k", {"config": "other"}),
        ("gsm8k", {"revision": "d" * 40}),
    ],
)
def test_what_the_cache_lacks_is_one_line_with_a_cure(
    cache: Path, tmp_path: Path, data: str, settings: dict[str, Any]
) -> None:
    message = rf"calibration.data: {KNOWN[data].repository} cannot be had: .*; run once with the network on, "
    with pytest.raises(DataUnavailable, match=message) as error:
        resolve(spec(data, **settings), tmp_path / "out", offline=True)
    assert "\n" not in str(error.value)


def test_hub_data_have_no_fingerprint_before_they_are_files() -> None:
    with pytest.raises(DataUnavailable):
        calibration.fingerprint("gsm8k")


# -- in models.yaml ----------------------------------------------------------------------------------


def calibrated(tmp_path: Path, text: str) -> CalibrationSpec:
    (tmp_path / "models.yaml").write_text(
        "models: [{set: s, name: m, version: 1, source: 'path:x', tasks: [piqa]}]\n"
        f"configs: {{a: {{runner: fake}}}}\ndefaults: {{calibration: {text}}}\n"
    )
    found = load(tmp_path / "models.yaml").cases[0].calibration
    assert found is not None
    return found


@pytest.mark.parametrize("data", ["embedded:calibration", "hf:org/name", *KNOWN])
def test_names_stay_what_they_are(tmp_path: Path, data: str) -> None:
    assert calibrated(tmp_path, f"{{data: '{data}'}}").data == data


@pytest.mark.parametrize("data", ["a.jsonl", "b/c.txt", "d.parquet", "e.json", "load.py:texts"])
def test_files_are_relative_to_models_yaml(tmp_path: Path, data: str) -> None:
    found = calibrated(tmp_path, f"{{data: '{data}', collator: 'c.py:collate'}}")
    assert found.data == str(tmp_path / data)
    assert found.collator == f"{tmp_path}/c.py:collate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{data: org/name}", "'org/name' is not a file; write 'hf:org/name' for the hub, else a .jsonl file"),
        (
            "{data: ultrachat}",
            "'ultrachat' is no calibration data; write embedded:calibration, .*ultrachat_200k",
        ),
        ("{data: a.txt, collator: c.py}", "'c.py' is not possible; write FILE.py:FUNCTION"),
        ("{data: a.txt, vision_samples: -1}", "-1 is out of range; write a number of at least 0"),
    ],
)
def test_wrong_data_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        calibrated(tmp_path, text)
