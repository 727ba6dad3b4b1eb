"""Token ids kept for the cases that follow: the same as tokenizing again, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from tiny_model import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from runners._scoring import encodings
from runners._scoring.encodings import Encodings
from runners._scoring.lm import make_lm

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.sampled_from([None, True, False]))
def test_what_is_read_is_what_was_added(tmp_path: Path, tokenizer, texts, special):
    path = tmp_path / "encodings.safetensors"
    path.unlink(missing_ok=True)
    ids = [list(range(len(text))) for text in texts]
    kept = Encodings(tokenizer, path)
    kept.add(texts, special, ids)
    kept.write()
    again = Encodings(tokenizer, path)
    if not any(ids):
        assert not path.exists()
        return
    assert [again.get(text, special) for text in texts] == ids
    other = {None: True, True: False, False: None}[special]
    assert again.get(texts[0], other) is None
    assert again.get(f"{texts[0]} and more", special) is None


def test_another_tokenizer_finds_nothing(tmp_path: Path, tokenizer):
    path = tmp_path / "encodings.safetensors"
    kept = Encodings(tokenizer, path)
    kept.add(["a text"], None, [[1, 2]])
    kept.write()
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    assert Encodings(other, path).get("a text", None) == [1, 2]
    other.add_tokens(["zebra"])
    assert Encodings(other, path).get("a text", None) is None


def test_too_much_is_not_written(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encodings, "LIMIT_BYTES", 8)
    path = tmp_path / "encodings.safetensors"
    kept = Encodings(tokenizer, path)
    kept.add(["a"], None, [[1, 2, 3]])
    kept.write()
    assert not path.exists()


def test_a_later_case_tokenizes_nothing_and_scores_the_same(tmp_path: Path, tokenizer, monkeypatch):
    folder, path = Path(tokenizer.name_or_path), tmp_path / "encodings.safetensors"
    requests = [Instance("loglikelihood", {}, (f"the cat {i} ", f"sat on {i % 3}"), i) for i in range(12)]
    calls, tokenized = [], type(tokenizer).__call__
    for case in range(3):
        lm = make_lm(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, batch_size=4)
        lm.encodings = Encodings(tokenizer, path) if case else None
        asked: list[str] = []

        def counted(self, texts, asked=asked, **options):
            asked += texts
            return tokenized(self, texts, **options)

        with monkeypatch.context() as patched:
            patched.setattr(type(tokenizer), "__call__", counted)
            calls.append((lm.loglikelihood(requests), len(asked)))
        if case == 1:
            lm.encodings.write()
    (plain, first), (writing, second), (reading, third) = calls
    assert plain == writing == reading
    assert first == second > 0
    assert third == 0
