"""The image built and run in earnest by real engines, and a token that may be left nowhere (slow)."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import container_engines
import private_index
import pytest
from container_engines import Engine
from leaks import Token, Watch

ROOT = Path(__file__).resolve().parent.parent
SOMEBODY = 1234  # neither root nor the image's own user
AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")
PYTHON = "/usr/bin/python3"  # one that somebody without privileges can start
SMALL = """
models:
  - {set: embedded, name: tiny-llama, version: 1, source: "embedded:tiny-llama", tasks: [tiny_pairs],
     configs: [baseline, rtn-w4-g128], measure: {threads: 1}}
configs:
  baseline: {runner: baseline}
  rtn-w4-g128: {runner: rtn, bits: 4, group_size: 128}
"""
SAYS_WHO = (
    "import hashlib, os, scorecard; from huggingface_hub import get_token as t;"
    "print(os.getuid(), scorecard.__file__, hashlib.sha256((t() or '').encode()).hexdigest())"
)

pytestmark = pytest.mark.slow


@pytest.fixture
def token() -> Token:
    return Token("hf_" + secrets.token_hex(17))


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass through, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="scorecard-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["buildah", "docker"])
def engine(request: pytest.FixtureRequest, place: Path) -> Iterator[Engine]:
    """$SCORECARD_TEST_ENGINES keeps what the engines have built for the next run: for work on these tests."""
    folder = Path(os.environ.get("SCORECARD_TEST_ENGINES") or place) / request.param
    folder.mkdir(exist_ok=True)
    with getattr(container_engines, request.param)(folder) as made:
        yield made


@pytest.fixture(scope="session")
def root_file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian without Python, as a tar, with the certificate authorities of this machine.

    $SCORECARD_TEST_BASE names one that is there already: debootstrap takes minutes.
    """
    given = os.environ.get("SCORECARD_TEST_BASE")
    if given:
        return Path(given)
    if not (shutil.which("debootstrap") and os.getuid() == 0):
        pytest.skip("needs root and debootstrap ('apt-get install debootstrap'), or SCORECARD_TEST_BASE")
    folder = tmp_path_factory.mktemp("base")
    include = "--include=ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", include, "bookworm", str(folder / "root")], check=True
    )
    if (Path("/") / AUTHORITIES).exists():
        shutil.copy(Path("/") / AUTHORITIES, folder / "root" / AUTHORITIES)
    archive = folder / "base.tar"
    subprocess.run(["tar", "-C", str(folder / "root"), "-cf", str(archive), "."], check=True)
    return archive


@pytest.fixture
def base(engine: Engine, root_file_system: Path, place: Path) -> str:
    """The name of the base image, known to the engine."""
    context = place / "base"
    context.mkdir()
    shutil.copy(root_file_system, context / "base.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    engine.call("build", "--tag", "localhost/base:test", str(context))
    return "localhost/base:test"


@pytest.fixture
def checkout(place: Path, token: Token) -> Path:
    """A copy of the tracked files that belongs to somebody, who keeps the token beside the code."""
    copy = place / "checkout"
    names = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for name in ("hf_token.txt", ".env", ".netrc", "pip.conf", "docker/.env", "user/.env", "tests/my.key"):
        (copy / name).write_text(token.text)
    (copy / "small.yaml").write_text(SMALL)
    _give(copy)
    return copy


def _give(path: Path) -> Path:
    for each in [path, *path.rglob("*")]:
        os.chown(each, SOMEBODY, SOMEBODY, follow_symlinks=False)
    return path


class Somebody:
    """A user without privileges, with a home, a hub token and a private package index."""

    def __init__(self, place: Path, engine: Engine, base: str, token: Token, index: str) -> None:
        self.home, self.log = place / "home", place / "log"
        self.home.mkdir()
        self.token_file, pip_conf = self.home / "token", self.home / "pip.conf"
        self.token_file.write_text(token.text)
        pip_conf.write_text(
            f"[global]\nextra-index-url = {index}\ncert = /{AUTHORITIES}\ntimeout = 180\nretries = 9\n"
        )
        for file in (self.token_file, pip_conf):
            file.chmod(0o600)
        (self.home / "tmp").mkdir()
        _give(self.home)
        self.env = {
            "PATH": f"{engine.tools}:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "BASE": base,
            "PIP_CONFIG_FILE": str(pip_conf),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, checkout: Path, *arguments: str, **env: str) -> str:
        """The output of local.py; all of it goes to the log too."""
        done = subprocess.run(
            [PYTHON, "local.py", *arguments],
            cwd=checkout,
            env={**self.env, **env},
            user=SOMEBODY,
            group=SOMEBODY,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self.log.open("a") as log:
            log.write(done.stdout)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout


def test_local_py_builds_the_image_and_the_token_is_left_nowhere(
    engine: Engine, base: str, checkout: Path, place: Path, token: Token
) -> None:
    with private_index.serve("robot", token.text, private_index.wheels_of_pips_find_links()) as index:
        somebody = Somebody(place, engine, base, token, index.url)
        with Watch(token) as first:
            command = ("--engine", "docker", "--models-yaml", "small.yaml", "pytest", "-k", "rtn-w4-g128")
            table = somebody.run(checkout, *command, HF_TOKEN_PATH=str(somebody.token_file))
    with Watch(token) as second:
        who = somebody.run(checkout, "--engine", "docker", "python", "-c", SAYS_WHO, HF_TOKEN=token.text)

    image = _image_of(somebody.log)
    archive = engine.save(image, place / "image.tar")
    print(somebody.log.read_text())
    print(f"{image}: {archive.stat().st_size:,} bytes as an archive\n{engine.call('history', image)}")
    found = {
        "layers, configuration, history": token.in_image(archive),
        "the engine's storage": token.in_tree(engine.storage),
        "command lines": first.command_lines | second.command_lines,
        "environments": first.environments,  # in the second run it is in local.py's own, from the user
        "the log": [str(somebody.log)] if token.within(somebody.log.read_bytes()) else [],
        "records": token.in_tree(checkout / ".scorecard"),
        "results": token.in_tree(checkout / "results"),
        "temporary files": token.in_tree(somebody.home / "tmp"),
    }
    print({where: list(leaks) for where, leaks in found.items()})
    assert not any(found.values()), found

    assert "rtn-w4-g128" in table.rpartition("score table")[2]
    assert (checkout / "results" / "results.json").stat().st_uid == SOMEBODY
    assert len(token.in_tree(checkout)) >= 7, "what lies beside the code is still there, so it was looked for"
    secret = hashlib.sha256(token.text.encode()).hexdigest()
    assert who == f"{SOMEBODY} /scorecard/scorecard/__init__.py {secret}\n", "the run had the token"
    assert index.answered, "the build had the password"
    assert any(b"requirements.lock" in line for line in first.seen), "the watch saw the build"


def _image_of(log: Path) -> str:
    """The name that local.py gave to it."""
    return next(line for line in log.read_text().splitlines() if "local.py: built " in line).split()[2]


# Each way has a token of its own, NAME, in a build argument or in the secret of that name.
LEAKS = {
    "argument": "ARG argument\nRUN test -n $argument",
    "environment": "ARG environment\nENV HF_TOKEN=$environment",
    "label": "ARG label\nLABEL built.with=$label",
    "deleted": "COPY deleted /tmp/deleted\nRUN rm /tmp/deleted",
    "overwritten": "COPY overwritten /tmp/overwritten\nRUN echo > /tmp/overwritten",
    "copied": "RUN --mount=type=secret,id=copied cat /run/secrets/copied > /root/.netrc",
    "encoded": "RUN --mount=type=secret,id=encoded base64 -w0 /run/secrets/encoded > /root/auth",
    "used": "RUN --mount=type=secret,id=used wc -c /run/secrets/used",
}


def test_a_token_that_is_left_is_found(engine: Engine, base: str, place: Path) -> None:
    """The control of the test above: each of these leaks is seen where it is, and what is no leak is not."""
    context = place / "context"
    context.mkdir()
    tokens = {name: Token("hf_" + secrets.token_hex(17)) for name in LEAKS}
    (context / "Dockerfile").write_text("\n".join([f"FROM {base}", *LEAKS.values()]))
    build = ["build", "--tag", "leaks:1"]
    for name, token in tokens.items():
        (context / name).write_text(token.text)
        if "ARG" in LEAKS[name]:
            build += ["--build-arg", f"{name}={token.text}"]
        if "secret" in LEAKS[name]:
            build += ["--secret", f"id={name},src={context / name}"]
    watches = {name: Watch(tokens[name]) for name in ("argument", "used")}
    with watches["argument"], watches["used"]:
        engine.call(*build, str(context))
    archive = engine.save("leaks:1", place / "leaks.tar")
    assert [name for name, token in tokens.items() if token.in_image(archive)] == [*LEAKS][:-1]
    assert tokens["copied"].in_tree(engine.storage)
    assert not tokens["used"].in_tree(engine.storage)
    assert watches["argument"].command_lines
    assert not watches["used"].command_lines
