"""https sources against a real server on loopback, from where plain http is taken."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sources_servers import Behaviour, fetch_here, safetensors_bytes, serve, spec

from scorecard.errors import SourceError, SpecError, VerificationError
from scorecard.sources import fetch, transfer
from scorecard.spec import ModelSpec

BIG = 3 * 2**20


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    behaviour = Behaviour(files={"m/model.safetensors": safetensors_bytes(BIG)})
    with serve(behaviour) as url:
        yield Server(behaviour, url)


class Server:
    def __init__(self, behaviour: Behaviour, url: str) -> None:
        self.behaviour, self.url = behaviour, url

    def model(self, name: str = "m/model.safetensors", **other: Any) -> ModelSpec:
        data = self.behaviour.files.get(name, b"")
        return spec(f"{self.url}/{name}", **{"sha256": hashlib.sha256(data).hexdigest(), **other})


def test_one_file(server: Server, tmp_path: Path) -> None:
    fetched = fetch(server.model(), tmp_path)
    assert (fetched.path / "model.safetensors").read_bytes() == safetensors_bytes(BIG)
    assert fetched.origin is None
    asked = len(server.behaviour.asked)
    fetch(server.model(), tmp_path, offline=True)
    assert len(server.behaviour.asked) == asked


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", [True, False])
def test_cut_replies_are_continued(server: Server, tmp_path: Path, ranges: bool, etag: bool) -> None:
    server.behaviour.cut, server.behaviour.ranges, server.behaviour.etag = [100_000, 200_000], ranges, etag
    fetched = fetch(server.model(), tmp_path)
    assert (fetched.path / "model.safetensors").read_bytes() == safetensors_bytes(BIG)
    assert len(server.behaviour.asked) == 3
    if ranges:
        assert server.behaviour.asked[2].endswith("bytes=200000-")


def test_a_server_that_always_stops_and_bytes_are_kept(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut = [1000] + [0] * 10
    with pytest.raises(SourceError, match=r"stops after 1000 bytes .*run again, it goes on from there"):
        fetch(server.model(), tmp_path)
    server.behaviour.cut, server.behaviour.sent_bytes = [], 0
    fetch(server.model(), tmp_path)
    assert server.behaviour.sent_bytes == len(safetensors_bytes(BIG)) - 1000


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.behaviour.status = [503, 429]
    assert fetch(server.model(), tmp_path).path.is_dir()


@pytest.mark.parametrize("etag", [True, False])
def test_a_part_of_an_older_file_is_not_used(server: Server, tmp_path: Path, etag: bool) -> None:
    server.behaviour.etag = etag
    old, server.behaviour.cut = server.model(), [1000] + [0] * 10
    with pytest.raises(SourceError):
        fetch(old, tmp_path)
    server.behaviour.cut = []
    server.behaviour.files["m/model.safetensors"] = safetensors_bytes(BIG, fill=3)
    fetched = fetch(server.model(), tmp_path)
    assert (fetched.path / "model.safetensors").read_bytes() == safetensors_bytes(BIG, fill=3)


def test_a_finished_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    data = server.behaviour.files["m/model.safetensors"]
    server.behaviour.cut = [1000] + [0] * 10
    with pytest.raises(SourceError):
        fetch(server.model(), tmp_path)
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(data)
    server.behaviour.sent_bytes = 0
    fetch(server.model(), tmp_path)
    assert server.behaviour.sent_bytes == 0


def test_wrong_hash_publishes_nothing_and_keeps_no_bad_bytes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"the download has sha256 .* the entry says 000"):
        fetch(server.model(sha256="0" * 64), tmp_path)
    assert not (tmp_path / "tiny").exists()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert fetch(server.model(), tmp_path).path.is_dir()


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "refuses it .403.*public"), (404, "no such file .404.*address"), (400, "answers 400")],
)
def test_refusals_are_one_line(server: Server, tmp_path: Path, status: int, message: str) -> None:
    server.behaviour.status = [status]
    with pytest.raises(SourceError, match=message) as caught:
        fetch(server.model(), tmp_path)
    assert "\n" not in str(caught.value)
    assert len(server.behaviour.asked) == 1


def test_a_signature_in_the_query_is_never_shown_or_stored(server: Server, tmp_path: Path) -> None:
    model = spec(f"{server.url}/m/model.safetensors?sig=SECRET", sha256="0" * 64)
    with pytest.raises(VerificationError) as caught:
        fetch(model, tmp_path)
    assert "SECRET" not in str(caught.value)
    fetch(spec(model.source, sha256=server.model().sha256), tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]


@pytest.mark.parametrize(
    ("source", "sha256", "message"),
    [
        ("https://host.invalid/model.safetensors", None, "needs 'sha256"),
        ("http://example.com/model.safetensors", "0" * 64, "write https://"),
        ("https://me:pw@host.invalid/model.safetensors", "0" * 64, "no user or password"),
        ("https://host.invalid/", "0" * 64, "names no file"),
    ],
)
def test_urls_that_are_not_taken(tmp_path: Path, source: str, sha256: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        fetch(spec(source, sha256=sha256), tmp_path)
    assert "pw" not in str(caught.value)


def test_a_pickle_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="only pickles"):
        fetch(server.model("m/pytorch_model.bin"), tmp_path)
    assert not server.behaviour.asked


def test_no_dns_no_server_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{reserved.getsockname()[1]}/model.safetensors"
        with pytest.raises(SourceError, match=r"cannot be reached .*check the network"):
            fetch(spec(dead, sha256="0" * 64), tmp_path)
    unknown = spec("https://no-such-host.invalid/model.safetensors", sha256="0" * 64)
    with pytest.raises(SourceError, match="is not known here; check the network and DNS"):
        fetch(unknown, tmp_path)
    with pytest.raises(SourceError, match="offline, and not fetched yet"):
        fetch(unknown, tmp_path, offline=True)


def test_redirects_are_followed_but_not_out_of_https(server: Server, tmp_path: Path) -> None:
    target = f"{server.url}/m/model.safetensors"
    with serve(Behaviour(redirect=target)) as url:
        assert fetch(spec(f"{url}/a.safetensors", sha256=server.model().sha256), tmp_path).path.is_dir()
    with serve(Behaviour(redirect="http://example.com/a.safetensors")) as url:
        model = spec(f"{url}/a.safetensors", sha256="1" * 64)
        with pytest.raises(SourceError, match="redirects to an address that is not https"):
            fetch(model, tmp_path / "other")


def test_a_disk_without_room_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = transfer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(SourceError, match="has 1000 free; free some space"):
        fetch(server.model(), tmp_path)


def test_an_archive_whose_entry_and_file_changed(server: Server, tmp_path: Path) -> None:
    broken = io.BytesIO()
    with zipfile.ZipFile(broken, "w") as zipped:
        zipped.writestr("config.json", "{}")
    server.behaviour.files["m.zip"] = broken.getvalue()
    with pytest.raises(VerificationError, match="holds no weights"):
        fetch(server.model("m.zip"), tmp_path)
    with zipfile.ZipFile(broken, "a") as zipped:
        zipped.writestr("model.safetensors", safetensors_bytes())
    server.behaviour.files["m.zip"] = broken.getvalue()
    assert set(fetch(server.model("m.zip"), tmp_path).files) == {"config.json", "model.safetensors"}


def test_kill_in_the_middle_then_the_rest_only(server: Server, tmp_path: Path) -> None:
    server.behaviour.chunk_pause_seconds = 0.02
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=fetch_here, args=(server.model(), tmp_path))
    process.start()
    give_up = time.monotonic() + 30
    while server.behaviour.sent_bytes < 2**20 and time.monotonic() < give_up:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not (tmp_path / "tiny").exists()
    (part,) = tmp_path.rglob("*.part")
    arrived = part.stat().st_size
    assert arrived > 256 * 1024
    server.behaviour.chunk_pause_seconds = 0.0
    time.sleep(0.05)  # the server notices that its first client is gone
    server.behaviour.sent_bytes = 0
    fetch(server.model(), tmp_path)
    assert server.behaviour.sent_bytes <= len(safetensors_bytes(BIG)) - arrived + 64 * 1024


def test_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.behaviour.chunk_pause_seconds = 0.01
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fetch_here, args=(server.model(), tmp_path)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    assert server.behaviour.asked == ["m/model.safetensors"]
