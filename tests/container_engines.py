"""Real container engines, without a service of the machine: for the tests that build and run the image.

``docker`` is a dockerd of the test's own, on a socket that everybody may use. ``buildah`` needs no daemon and
no kernel features beyond chroot, but only root can use it so; a client of docker's arguments sends each call
to a server in the test's process. Either way local.py has no privileges and finds a ``docker`` on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CLIENT = """#!{python}
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({socket!r})
connection.sendall(json.dumps([os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
for line in connection.makefile("rb"):
    code, _, text = line.partition(b" ")
    if code != b"-":
        sys.exit(int(code))
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
"""


@dataclass
class Engine:
    """``tools`` holds an executable ``docker``; ``storage`` all that the engine keeps on disk."""

    name: str
    tools: Path
    storage: Path

    def call(self, *arguments: str) -> str:
        """What ``docker ARGUMENTS`` printed. Raises CalledProcessError."""
        command = [str(self.tools / "docker"), *arguments]
        env = {**os.environ, "DOCKER_BUILDKIT": "1"}
        return subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout

    def save(self, image: str, file: Path) -> Path:
        """The image as an archive of ``docker save``: configuration, history, and each layer as a tar."""
        self.call("save", "--output", str(file), image)
        return file


@contextmanager
def docker(folder: Path) -> Iterator[Engine]:
    """A dockerd below ``folder``. Skips where there is none, or where it cannot run."""
    daemon = shutil.which("dockerd")
    clients = [str(Path(place, "docker")) for place in ["/usr/bin", *os.environ["PATH"].split(os.pathsep)]]
    client = next((name for name in clients if _builds_with_secrets(name)), None)
    if not (daemon and client and os.getuid() == 0):
        pytest.skip("needs root, dockerd and a docker client with BuildKit ('apt-get install docker.io')")
    socket, storage = folder / "docker.sock", folder / "storage"
    places = ["--data-root", str(storage), "--exec-root", str(folder / "exec")]
    places += ["--pidfile", str(folder / "pid"), "--host", f"unix://{socket}"]
    network = ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen([daemon, *places, *network], stdout=log, stderr=log)
    try:
        executable = f"{client} --host unix://{socket}"
        wrapper = (
            'case "${1:-}" in build | run) first=$1; shift; set -- "$first" --network host "$@" ;; esac\n'
        )
        tools = _tool(folder, f'#!/bin/sh\n{wrapper}exec {executable} "$@"\n')
        while subprocess.run([*executable.split(), "info"], capture_output=True).returncode:
            if process.poll() is not None:
                pytest.skip(f"dockerd cannot run here: {(folder / 'dockerd.log').read_text()[-200:]}")
            time.sleep(0.2)
        socket.chmod(0o666)
        yield Engine("docker", tools, storage)
    finally:
        process.terminate()
        process.wait(60)


def _builds_with_secrets(client: str) -> bool:
    if not os.access(client, os.X_OK):
        return False
    env = {**os.environ, "DOCKER_BUILDKIT": "1"}
    shown = subprocess.run([client, "build", "--help"], env=env, capture_output=True, text=True)
    return "--secret" in shown.stdout


@contextmanager
def buildah(folder: Path) -> Iterator[Engine]:
    """Buildah with chroot isolation. Skips where it is missing. $STORAGE_DRIVER: its own variable (vfs)."""
    if not (shutil.which("buildah") and os.getuid() == 0):
        pytest.skip("needs root and buildah ('apt-get install buildah')")
    socket, storage = folder / "buildah.sock", folder / "storage"
    driver = os.environ.get("STORAGE_DRIVER", "vfs")
    base = ["buildah", "--root", str(storage), "--runroot", str(folder / "run"), "--storage-driver", driver]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            where, arguments = json.loads(self.rfile.readline())
            code = 0
            for command in _as_buildah(base, arguments):
                process = subprocess.Popen(
                    command,
                    cwd=where,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                assert process.stdout
                for line in process.stdout:
                    self.wfile.write(b"- " + line.rstrip(b"\n") + b"\n")
                code = process.wait() or code
            self.wfile.write(b"%d \n" % code)

    socket.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(socket), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        socket.chmod(0o666)
        python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
        yield Engine("buildah", _tool(folder, CLIENT.format(python=python, socket=str(socket))), storage)
        server.shutdown()


def _as_buildah(base: Sequence[str], arguments: Sequence[str]) -> Iterator[list[str]]:
    """The calls of buildah that do what docker does with ``arguments``."""
    verb, *rest = arguments
    if verb == "info":
        yield ["true"]
    elif verb == "build":
        yield [*base, "bud", "--isolation", "chroot", "--network", "host", "--layers", *rest]
    elif arguments[:2] == ["image", "inspect"]:
        yield [*base, "inspect", "--type", "image", *arguments[2:]]
    elif verb == "history":
        template = "{{range .OCIv1.History}}{{println .CreatedBy}}{{end}}"
        yield [*base, "inspect", "--type", "image", "--format", template, *rest]
    elif verb == "save":
        yield [*base, "push", rest[-1], f"docker-archive:{rest[1]}:{rest[-1]}"]
    elif verb == "run":
        options, command = _run_options(rest)
        image, *command = command
        made = subprocess.check_output([*base, "from", image], text=True).strip()
        passed = [word for pair in options for word in pair]
        yield [*base, "run", "--isolation", "chroot", "--network", "host", *passed, made, "--", *command]
        subprocess.check_output([*base, "rm", made])  # its name is no output of the command's
    else:
        raise AssertionError(f"docker {shlex.join(arguments)}: not one of the calls of local.py")


def _run_options(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("--rm", "--init", "--interactive"):
        parser.add_argument(flag, action="store_true")
    for option in ("--user", "--workdir"):
        parser.add_argument(option)
    for option in ("--env", "--volume"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    read = parser.parse_args(arguments)
    pairs = [("--user", read.user), ("--workingdir", read.workdir)]
    pairs += [("--env", value) for value in read.env] + [("--volume", value) for value in read.volume]
    return [pair for pair in pairs if pair[1]], read.command


def _tool(folder: Path, text: str) -> Path:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "docker").write_text(text)
    (tools / "docker").chmod(0o755)
    return tools
