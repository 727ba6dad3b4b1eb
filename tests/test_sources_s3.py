"""s3: sources, against moto's real server on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sources_servers import Behaviour, model_files, safetensors_bytes, serve, spec, write_model

from scorecard.errors import SourceError, VerificationError
from scorecard.sources import fetch, manifest_sha256, transfer


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto_server = pytest.importorskip("moto.server")  # seconds: not where tests are only collected
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def settings(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    places = {"AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    for name, value in {**values, **places, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> Any:
    boto3 = pytest.importorskip("boto3")
    name = "b" + str(abs(hash(request.node.name)))
    created = boto3.resource("s3").Bucket(name)
    created.create()
    return created


def put(bucket: Any, prefix: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        bucket.put_object(Key=prefix + name, Body=data)


@pytest.mark.parametrize("slash", ["", "/"])
def test_all_objects_under_a_prefix(bucket: Any, tmp_path: Path, slash: str) -> None:
    put(bucket, "a/llama/", {**model_files(), "README.md": b"x", "sub/": b"", "pytorch_model.bin": b"x"})
    put(bucket, "a/llama-other/", {"other.json": b"{}"})
    fetched = fetch(spec(f"s3://{bucket.name}/a/llama{slash}"), tmp_path / "models")
    assert {p.name: p.read_bytes() for p in fetched.path.iterdir()} == model_files()
    assert fetched.sha256 == manifest_sha256(write_model(tmp_path / "same"))
    assert fetch(spec(f"s3://{bucket.name}/a/llama{slash}"), tmp_path / "models", offline=True).path.is_dir()


@pytest.mark.parametrize("root", ["", "zoo/"])
def test_the_layout_of_a_models_folder(bucket: Any, tmp_path: Path, root: str) -> None:
    put(bucket, f"{root}tiny/llama@1/", model_files())
    put(bucket, f"{root}tiny/llama@2/", {"other.safetensors": safetensors_bytes()})
    assert set(fetch(spec(f"s3://{bucket.name}/{root}"), tmp_path).files) == set(model_files())


def test_one_object(bucket: Any, tmp_path: Path) -> None:
    put(bucket, "a/", {"model.safetensors": safetensors_bytes(), "model.safetensors.old": b"x"})
    fetched = fetch(spec(f"s3://{bucket.name}/a/model.safetensors"), tmp_path)
    assert set(fetched.files) == {"model.safetensors"}


def test_wrong_hash_publishes_nothing(bucket: Any, tmp_path: Path) -> None:
    put(bucket, "a/", model_files())
    with pytest.raises(VerificationError, match="the entry says 000"):
        fetch(spec(f"s3://{bucket.name}/a", sha256="0" * 64), tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_an_interrupted_fetch_asks_only_for_the_rest(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = safetensors_bytes(3 * 2**20)
    put(bucket, "a/", {**model_files(), "model.safetensors": data})

    class Killed(BaseException):
        pass

    written: list[int] = []
    write = transfer._write_all

    def dies(stream: Any, chunk: bytes) -> None:
        write(stream, chunk)
        written.append(len(chunk))
        if sum(written) > 2**20:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_write_all", dies)
        with pytest.raises(Killed):
            fetch(spec(f"s3://{bucket.name}/a"), tmp_path)
    before = sum(written)
    monkeypatch.setattr(transfer, "_write_all", lambda s, c: (write(s, c), written.append(len(c))))
    fetched = fetch(spec(f"s3://{bucket.name}/a"), tmp_path)
    total = sum(len(d) for d in {**model_files(), "model.safetensors": data}.values())
    assert before < total
    assert sum(written) == total
    assert (fetched.path / "model.safetensors").read_bytes() == data


def test_an_object_that_changed_in_between_is_fetched_from_its_start(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "a/", {"model.safetensors": safetensors_bytes(2**20)})

    class Killed(BaseException):
        pass

    def dies(stream: Any, chunk: bytes) -> None:
        stream.write(chunk[:1000])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_write_all", dies)
        with pytest.raises(Killed):
            fetch(spec(f"s3://{bucket.name}/a"), tmp_path)
    new = safetensors_bytes(2**20, fill=5)
    put(bucket, "a/", {"model.safetensors": new})
    assert (fetch(spec(f"s3://{bucket.name}/a"), tmp_path).path / "model.safetensors").read_bytes() == new


def test_only_pickles(bucket: Any, tmp_path: Path) -> None:
    put(bucket, "a/", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    with pytest.raises(VerificationError, match="allow_pickle: true"):
        fetch(spec(f"s3://{bucket.name}/a"), tmp_path)


def test_an_unsafe_key(bucket: Any, tmp_path: Path) -> None:
    put(bucket, "a/", {**model_files(), "x/../../evil.json": b"{}"})
    assert set(fetch(spec(f"s3://{bucket.name}/a"), tmp_path / "models").files) == set(model_files())
    assert not list(tmp_path.rglob("evil*"))
    put(bucket, "b/", {**model_files(), "C:evil.json": b"{}"})
    with pytest.raises(VerificationError, match="unsafe file name"):
        fetch(spec(f"s3://{bucket.name}/b"), tmp_path)


def test_nothing_there(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds nothing under 'a/b'; check the prefix"):
        fetch(spec(f"s3://{bucket.name}/a/b"), tmp_path)
    with pytest.raises(SourceError, match="there is no such bucket"):
        fetch(spec("s3://no-such-bucket-here/a"), tmp_path)
    with pytest.raises(SourceError, match="offline, and not fetched yet"):
        fetch(spec(f"s3://{bucket.name}/a"), tmp_path, offline=True)


@pytest.mark.parametrize("credentials", [True, False])
def test_access_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credentials: bool) -> None:
    if not credentials:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with serve(Behaviour(status=[403] * 9)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(SourceError, match=r"access is refused .*set AWS_PROFILE") as caught:
            fetch(spec("s3://private/a"), tmp_path)
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(SourceError, match=r"no connection .*check the network"):
            fetch(spec("s3://bucket/a"), tmp_path)
