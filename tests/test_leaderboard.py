"""Many submissions in one table: shared ranks, refused ones with their line, nothing unescaped."""

from __future__ import annotations

import dataclasses
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_frozen

from scorecard import leaderboard, leaderboard_command, leaderboard_html, sandbox
from scorecard.__main__ import main
from scorecard.claims import GIB, Verdict
from scorecard.errors import SpecError, SubmissionError
from scorecard.leaderboard import Entry, as_json, ranked, text
from scorecard.machine import ROOT
from scorecard.pairs import Column
from scorecard.verified import Report, VerifyOptions

DOCUMENTS = 400
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;</td></table>"


def entry(file: str, right: int, size: int = 1000, holds: bool | None = True, **changes: Any) -> Entry:
    """A submission that answers the first ``right`` of DOCUMENTS documents."""
    values = (np.arange(DOCUMENTS) < right).astype(float)
    places = np.arange(DOCUMENTS)
    mean = right / DOCUMENTS
    measured = {"size_bytes": size, "code_bytes": 10, "mean_accuracy": mean, "mean_accuracy_stderr": 0.01}
    report = Report(
        file=file,
        sha256="0" * 64,
        case="set.model@1-config",
        model="set.model@1",
        original_sha256="1" * 64,
        isolated=True,
        verdicts=(Verdict("size", True, f"{size:,} bytes"), Verdict("accuracy", holds, f"{mean:.4f}")),
        measured={**measured, "score": mean / (size / GIB), "tasks": {"task": mean}},
        documents={"task": Column(values, places, places)},
        settings={"tasks": ["task"], "limit": None},
    )
    return Entry(file, dataclasses.replace(report, **changes))


def ranks(entries: list[Entry]) -> dict[str, int | None]:
    return {e.file: e.rank for e in ranked(entries)}


# -- ranks -------------------------------------------------------------------------------------------


def test_what_cannot_be_told_apart_shares_a_rank() -> None:
    found = ranked([entry("c", 200), entry("b", 320), entry("a", 321)])
    assert [(e.file, e.rank, e.shared) for e in found] == [("a", 1, True), ("b", 1, True), ("c", 3, False)]


def test_sizes_are_exact() -> None:
    """Equal answers, a quarter of the size: told apart without any doubt."""
    assert ranks([entry("large", 320, 4000), entry("small", 320, 1000)]) == {"small": 1, "large": 2}


def test_the_order_of_the_files_does_not_matter() -> None:
    entries = [entry("a", 320), entry("b", 200), entry("c", 318), entry("d", 100)]
    assert ranks(entries) == ranks(entries[::-1]) == {"a": 1, "c": 1, "b": 3, "d": 4}


def test_a_false_claim_is_not_ranked_and_an_open_one_is() -> None:
    found = ranked([entry("false", 400, holds=False), entry("open", 300, holds=None), entry("true", 200)])
    assert [(e.file, e.rank, e.state) for e in found] == [
        ("open", 1, "undecided"),
        ("true", 2, "verified"),
        ("false", None, "false"),
    ]
    assert found[2].lines == ["accuracy ✗ 1.0000"]


def test_what_was_measured_otherwise_is_ranked_apart() -> None:
    others = [entry("limit", 400, settings={"tasks": ["task"], "limit": 10})]
    others += [entry("model", 400, original_sha256="2" * 64)]
    found = ranked([*others, entry("a", 100), entry("b", 10)])
    assert [(e.file, e.group, e.rank) for e in found][:2] == [("a", 1, 1), ("b", 1, 2)]
    assert {e.rank for e in found[2:]} == {1}
    assert len({e.group for e in found}) == 3


def test_other_documents_are_told_apart() -> None:
    less = Column(np.ones(10), np.arange(10), np.arange(10))
    assert ranks([entry("a", 320), entry("b", 319, documents={"task": less})]) == {"a": 1, "b": 2}


# -- what is written ---------------------------------------------------------------------------------


def test_the_table() -> None:
    shown = text(ranked([entry("b.zip", 320), entry("a.zip", 321), Entry("c.zip", refused="is broken")]))
    rows = [line.split() for line in shown.splitlines()]
    assert rows[1][:4] == ["1=", "a.zip", "✓", "verified"]
    assert rows[3][:4] == ["–", "c.zip", "✗", "refused"]
    assert "80.25 ± 1.00" in shown
    assert shown.splitlines()[-1] == "c.zip: is broken"


def test_every_key_is_described() -> None:
    page = (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8").partition("## Leaderboard")[2]
    told = as_json(ranked([entry("a", 320)]))
    assert json.loads(json.dumps(told)) == told
    for key in (*told, *told["entries"][0]):
        assert f"`{key}`" in page, key
    assert told["entries"][0]["score"] == pytest.approx(0.8 / (1000 / GIB))


class Page(HTMLParser):
    """Tags, attributes and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_escaped_and_loads_nothing() -> None:
    """File, case, model, settings, verdicts, details, notes and refusals are all of strangers."""
    verdict = Verdict(HOSTILE, False, HOSTILE, (HOSTILE,))
    changes = {"case": HOSTILE, "model": HOSTILE, "verdicts": (verdict,), "notes": (HOSTILE,)}
    settings = {"tasks": [HOSTILE], "limit": None}
    entries = [entry(HOSTILE, 1, settings=settings, **changes), Entry(HOSTILE, refused=HOSTILE)]
    html = leaderboard_html.render(ranked([*entries, entry("a", 2)]), title=HOSTILE)
    page, harmless = Page(html), Page(leaderboard_html.render(ranked([entry("a", 2), entry("b", 2)])))
    assert {"script", "img", "link", "iframe"} & set(page.tags) == set()
    assert set(page.tags) <= {*harmless.tags, "pre", "details", "summary"}
    assert page.tags.count("table") == 1
    assert page.text.count(HOSTILE) >= 8
    assert {name for name, _ in page.attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "colspan",
    }
    assert "default-src 'none'" in html
    assert "http:" not in html
    assert "https:" not in html


def test_a_name_that_a_terminal_obeys_is_shown_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a\x1b[2J\u202e.zip").write_bytes(b"no zip")
    monkeypatch.setattr(sandbox, "why_not", lambda: None)  # refused before a box is made
    found = leaderboard.leaderboard(tmp_path, VerifyOptions())
    assert text(found).replace("\n", "").isprintable()


# -- the command -------------------------------------------------------------------------------------


@pytest.mark.backend
@pytest.mark.usefixtures("box")
def test_a_refused_zip_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zips, original = tmp_path / "zips", small_frozen.write_original(tmp_path / "original")
    zips.mkdir()
    folder = small_frozen.write_frozen(tmp_path / "user", original, limit=20, tasks=("tiny_pairs",))
    small_frozen.pack(folder, zips / "honest.zip")

    def more(folder: Path, manifest: dict[str, Any]) -> None:
        manifest["claims"]["mean_accuracy"] += 0.01

    small_frozen.pack(small_frozen.changed(folder, tmp_path / "more", more), zips / "a-liar.zip")
    (zips / "broken.zip").write_bytes(b"no zip")
    (zips / "readme.txt").write_text("no zip")
    arguments = [str(zips), "--output", str(tmp_path / "out"), "--python", sys.executable, "--title", "A & B"]
    assert main(["leaderboard", *arguments]) == 0
    told = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    states = {e["file"]: (e["rank"], e["state"]) for e in told["entries"]}
    assert states == {
        "honest.zip": (1, "verified"),
        "a-liar.zip": (None, "false"),
        "broken.zip": (None, "refused"),
    }
    printed = capsys.readouterr().out
    assert "broken.zip: broken.zip: is broken" in printed
    assert "a-liar.zip: accuracy ✗ claimed" in printed
    page = Page((tmp_path / "out" / "leaderboard.html").read_text())
    assert "A & B" in page.text
    assert "its own tasks give" in page.text


def test_options_of_verify_are_passed_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[VerifyOptions] = []

    def caught(folder: Path, options: VerifyOptions) -> list[Entry]:
        given.append(options)
        return ranked([entry("a", 1)])

    monkeypatch.setattr(leaderboard_command.leaderboard, "leaderboard", caught)
    options = ["--unsafe", "--memory", "2", "--max-files", "9", "--tasks", "mine", "--time", "7"]
    assert main(["leaderboard", str(tmp_path), "--output", str(tmp_path), "--json", *options]) == 0
    assert given[0].unsafe
    assert given[0].box.memory_bytes == 2 * GIB
    assert given[0].box.wall_seconds == 7
    assert given[0].unpack.files == 9
    assert given[0].task_paths == ("embedded:tasks", "mine")


def test_a_folder_without_zips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"holds no \.zip file"):
        leaderboard.leaderboard(tmp_path, VerifyOptions())


def test_nothing_runs_where_nothing_isolates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    monkeypatch.setattr(sandbox, "why_not", lambda: "the kernel says no")
    with pytest.raises(SpecError, match="cannot isolate"):
        leaderboard.leaderboard(tmp_path, VerifyOptions())
