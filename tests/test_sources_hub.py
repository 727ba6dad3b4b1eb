"""hf: sources: the real huggingface_hub client against a small hub on loopback."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources_servers import COMMIT, Behaviour, HubHandler, model_files, serve, spec

from scorecard.errors import SourceError, VerificationError
from scorecard.sources import fetch

TOKEN = "hf_not_to_be_seen"
MODEL = spec("hf:org/tiny@main")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    behaviour = Behaviour(files={**model_files(), "README.md": b"hi", "pytorch_model.bin": b"pickle"})
    with serve(behaviour, HubHandler) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield behaviour


def test_a_branch_is_fetched_with_its_commit(hub: Behaviour, cache: Path, tmp_path: Path) -> None:
    fetched = fetch(MODEL, tmp_path / "models")
    assert {p.name: p.read_bytes() for p in fetched.path.iterdir()} == model_files()
    assert fetched.revision == COMMIT
    assert fetched.origin == cache / "models--org--tiny"
    assert f"Bearer {TOKEN}" in hub.token_seen
    assert not [path for path in hub.asked if path.endswith((".bin", ".md"))]
    asked = len(hub.asked)
    assert fetch(MODEL, tmp_path / "models").revision == COMMIT
    assert len(hub.asked) == asked


def test_offline_a_filled_cache_is_enough(hub: Behaviour, tmp_path: Path) -> None:
    fetch(MODEL, tmp_path / "models")
    asked = len(hub.asked)
    fetched = fetch(MODEL, tmp_path / "other", offline=True)
    assert {p.name for p in fetched.path.iterdir()} == set(model_files())
    assert fetched.revision == COMMIT
    assert len(hub.asked) == asked


def test_offline_with_an_empty_cache(hub: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="org/tiny@main is not in the hub's cache; run once without"):
        fetch(MODEL, tmp_path, offline=True)
    assert not hub.asked


def test_a_hub_that_is_switched_off_by_the_environment(
    hub: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="is not in the hub's cache"):
        fetch(MODEL, tmp_path)


def test_gated_says_where_to_accept_and_never_the_token(hub: Behaviour, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(SourceError, match=r"is gated: accept its licence on .* and set HF_TOKEN") as caught:
        fetch(MODEL, tmp_path)
    line, chain = str(caught.value), caught.value.__context__
    assert TOKEN not in line
    assert "\n" not in line
    assert chain is None  # an HTTP error in the chain would carry the request, and the token with it


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:org/absent", "org/absent is not there, or private: .* set HF_TOKEN"),
        ("hf:org/tiny@v9", "org/tiny has no revision 'v9'; see .*/org/tiny/commits/main"),
        ("hf:org/ti ny", "'org/ti ny' is not a name of the hub"),
    ],
)
def test_wrong_names_are_one_line(hub: Behaviour, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        fetch(spec(source), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (400, "answers 400")]
)
def test_refusals_are_one_line(hub: Behaviour, tmp_path: Path, status: int, message: str) -> None:
    hub.status = [status] * 9
    with pytest.raises(SourceError, match=message) as caught:
        fetch(MODEL, tmp_path)
    assert "\n" not in str(caught.value)


def test_no_server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(SourceError, match="check the network, DNS and HF_ENDPOINT"):
            fetch(MODEL, tmp_path)


def test_only_pickles_needs_allow_pickle(hub: Behaviour, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(VerificationError, match="holds no weights"):
        fetch(MODEL, tmp_path)
    assert not [path for path in hub.asked if path.endswith(".bin")]
    fetched = fetch(dataclasses.replace(MODEL, allow_pickle=True), tmp_path)
    assert "pytorch_model.bin" in fetched.files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_cache_is_found(hub: Behaviour, cache: Path, tmp_path: Path, name: str) -> None:
    fetch(MODEL, tmp_path / "models")
    (link,) = cache.rglob(f"snapshots/*/{name}")
    blob = link.resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError, match=f"{name}: damaged in the hub's cache; delete {blob}"):
        fetch(MODEL, tmp_path / "other", offline=True)
    blob.unlink()
    assert fetch(MODEL, tmp_path / "other").path.is_dir()


def test_a_cut_transfer_is_continued(hub: Behaviour, tmp_path: Path) -> None:
    hub.cut = [1] * 3
    assert set(fetch(MODEL, tmp_path).files) == set(model_files())
