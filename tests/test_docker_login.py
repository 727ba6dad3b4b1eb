"""docker/login.py as a process: the real boto3 against a small AWS, an engine that takes notes."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "docker" / "login.py"
PASSWORD = "pass:word+with/signs=="
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
ENGINE = """#!{python}
import json, os, sys
stdin = "" if os.isatty(0) else sys.stdin.read()
said = {{"arguments": sys.argv[1:], "stdin": stdin, "env": dict(os.environ)}}
open({calls!r}, "a").write(json.dumps(said) + "\\n")
print("Login Succeeded")
sys.exit({code})
"""


class Aws:
    """GetAuthorizationToken of ECR and ECR Public; ``asked`` holds (action, region signed for, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, object]]] = []
        self.url = ""
        self.refuses = False

    def answer(self, action: str, region: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        self.asked.append((action, region, body))
        if self.refuses:
            return 400, {"__type": "AccessDeniedException", "message": "is not\nauthorized"}
        token = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()
        data = {"authorizationToken": token, "expiresAt": 1.0}
        return 200, {"authorizationData": data if action.startswith("Spencer") else [data]}


@pytest.fixture
def aws() -> Iterator[Aws]:
    made = Aws()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            region = self.headers["Authorization"].partition("Credential=")[2].split("/")[2]
            status, said = made.answer(self.headers["X-Amz-Target"], region, body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


class User:
    def __init__(self, home: Path) -> None:
        self.home, self.calls, self.engine = home, home / "calls", home / "docker"
        self.works(0)
        self.env = {
            "PATH": f"{home}:/usr/bin:/bin",
            "HOME": str(home),
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "example",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def works(self, code: int) -> None:
        self.engine.write_text(ENGINE.format(python=sys.executable, calls=str(self.calls), code=code))
        self.engine.chmod(0o755)

    def login(
        self, *arguments: str, said: str = "", terminal: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``said`` on its stdin, or a terminal there."""
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            env=self.env,
            input=said if terminal is None else None,
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def call(self) -> dict[str, object]:
        [line] = self.calls.read_text().splitlines()
        return dict(json.loads(line))


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.mark.parametrize(
    ("registry", "action", "region", "body"),
    [
        (ECR, "AmazonEC2ContainerRegistry_V20150921", "eu-west-1", {"registryIds": ["123456789012"]}),
        ("public.ecr.aws", "SpencerFrontendService", "us-east-1", {}),
    ],
)
def test_ecr_gets_a_token_of_boto3_on_stdin_only(
    user: User, aws: Aws, registry: str, action: str, region: str, body: dict[str, object]
) -> None:
    user.env["AWS_ENDPOINT_URL"] = aws.url
    done = user.login(f"https://{registry}/team/scorecard:3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Login Succeeded\n", "")
    assert aws.asked == [(f"{action}.GetAuthorizationToken", region, body)]
    call = user.call()
    assert call.pop("stdin") == PASSWORD
    assert call["arguments"] == ["login", "--username", "AWS", "--password-stdin", registry]
    assert PASSWORD not in json.dumps(call) + done.stdout + done.stderr


def test_the_exit_code_is_the_engines(user: User, aws: Aws) -> None:
    user.env["AWS_ENDPOINT_URL"] = aws.url
    user.works(5)
    assert user.login(ECR).returncode == 5
    assert user.login("registry.example.com", "-u", "robot").returncode == 5


@pytest.mark.parametrize(
    "registry",
    [
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
        "registry.example.com",
        "localhost:5000",
        "ecr.example.com/123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "12345.dkr.ecr.eu-west-1.amazonaws.com",
    ],
)
def test_only_aws_itself_gets_a_token_of_aws(user: User, aws: Aws, registry: str) -> None:
    """Any other registry: docker's own login, the password passed through, and no boto3 imported."""
    user.env["AWS_ENDPOINT_URL"] = aws.url
    (user.home / "boto3.py").write_text("raise SystemExit('boto3 was imported')")
    user.env["PYTHONPATH"] = str(user.home)
    done = user.login(registry, "--username", "robot", said="my password")
    assert done.returncode == 0, done.stderr
    call = user.call()
    assert call["stdin"] == "my password"
    expected = ["login", "--username", "robot", "--password-stdin", registry.partition("/")[0]]
    assert (call["arguments"], aws.asked) == (expected, [])


@pytest.mark.parametrize(
    ("registry", "region"),
    [
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
    ],
)
def test_other_forms_of_ecr(user: User, aws: Aws, registry: str, region: str) -> None:
    user.env["AWS_ENDPOINT_URL"] = aws.url
    assert user.login(registry).returncode == 0
    assert [asked[1] for asked in aws.asked] == [region]


def test_on_a_terminal_docker_asks(user: User) -> None:
    ours, theirs = pty.openpty()
    try:
        assert user.login("registry.example.com", terminal=theirs).returncode == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert user.call()["arguments"] == ["login", "registry.example.com"]


def test_wrong_use_is_one_line_and_4(user: User, aws: Aws) -> None:
    user.env["AWS_ENDPOINT_URL"] = aws.url
    aws.refuses = True
    without = {name: value for name, value in user.env.items() if not name.startswith("AWS_ACCESS")}
    (user.home / "hidden").mkdir()
    (user.home / "hidden" / "boto3.py").write_text("raise ImportError")
    cases: list[tuple[list[str], dict[str, str], str]] = [
        ([ECR], {}, "AccessDeniedException"),
        ([ECR, "--profile", "none"], {}, "none"),
        ([ECR], {"PYTHONPATH": str(user.home / "hidden")}, "local.py --engine venv python docker/login.py"),
        ([ECR, "--username", "me"], {}, "AWS"),
        (["registry.example.com"], {}, "--username USER"),
        (["registry.example.com", "-u", "me", "--engine", "no-such"], {}, "no-such"),
        (["https://me:secret@registry.example.com"], {}, "write the host alone"),
        (["a b"], {}, "no host"),
    ]
    for arguments, env, expected in cases:
        kept = user.env
        user.env = {**kept, **env}
        done = user.login(*arguments)
        user.env = kept
        assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
        assert expected in done.stderr
        assert "secret" not in done.stderr
    user.env = without
    done = user.login(ECR)
    assert done.returncode == 4
    assert "no AWS credentials" in done.stderr
    assert not user.calls.exists()
