#!/usr/bin/env python3
"""Run a command where the scorecard is installed: in its Docker image, or in a ``.venv`` kept in this folder.

    python3 local.py pytest -k gptq              options after the command belong to the command
    python3 local.py --engine venv pytest tests  options before it belong to local.py
    python3 local.py                             no command: a shell

Standard library only. Says what it does on stderr, one line a step, then becomes the command: exit codes and
signals are the command's own. Its own failures exit with 4, a command that is not there with 127.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  this line is read by whatever python3 is
    sys.exit(
        "local.py: Python {}.{} is too old; use 3.11 or newer: 'python3.11 local.py …'".format(
            *sys.version_info
        )
    )

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
INSIDE = Path("/scorecard")  # the checkout, as the container sees it
EXIT_USAGE, EXIT_NOT_FOUND, EXIT_INTERRUPTED = 4, 127, 130
ENGINE_ANSWERS_SECONDS = 3.0
# The format is Docker's: a podman under docker's name, which takes other options, does not answer to it.
ANSWERS = {"docker": ["info", "--format", "{{.ServerVersion}}"], "podman": ["version"]}
# Given to the container by name: the engine reads the values itself, so that none stands in a command line.
# The hub's token is not among them: see secrets().
# fmt: off
FORWARDED = [
    "HF_ENDPOINT", "HF_HUB_OFFLINE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
]
# fmt: on
MEND_VENV = "on Debian and Ubuntu 'apt-get install python3-venv'; else take another Python 3.11+"
MEND_PIP = "look at the network and pip's settings ('pip config list'), then run the same command again"


class LocalError(Exception):
    """What a user can mend: one line, exit code 4. ``output`` is what a failed step printed."""

    def __init__(self, line: str, output: str = "") -> None:
        super().__init__(line)
        self.output = output


def say(line: str, end: str = "\n") -> None:
    print(f"local.py: {line}", end=end, file=sys.stderr, flush=True)


# --- the command line ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LocalError(f"{message}; see 'python3 local.py --help'; options of the command stand after it")


def parser() -> Parser:
    """The options before the command; the command itself never passes through argparse."""
    made = Parser("local.py", "local.py [OPTION …] [COMMAND [ARGUMENT …]]", allow_abbrev=False)
    made.description = "Run COMMAND, or a shell, where the scorecard is installed."
    add = made.add_argument
    add(
        "--engine",
        choices=["auto", "docker", "podman", "venv"],
        default="auto",
        help="auto: docker if it answers, else venv",
    )
    add("--image", metavar="NAME", help="image to run; latest: the one that docker/build.sh made last")
    add(
        "--prebuilt", action="store_true", help="run the code in the image, not this checkout; build no image"
    )
    add("--models-dir", metavar="DIR", type=Path, help="folder of fetched models [~/.scorecard-models]")
    add("--models-yaml", metavar="FILE", type=Path, help="a file to use for models.yaml")
    add("--shell", action="store_true", help="a shell, as without a command")
    return made


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options of local.py, the command). The command begins after ``--``, or at the first word that is
    neither an option nor the value of one; what stands in it is never looked at."""
    valued = ("--engine", "--image", "--models-dir", "--models-yaml")
    i = 0
    while i < len(arguments) and arguments[i].startswith("-"):
        if arguments[i] == "--":
            return list(arguments[:i]), list(arguments[i + 1 :])
        i += 2 if arguments[i] in valued else 1
    return list(arguments[:i]), list(arguments[i:])


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, command = split(arguments)
    options = parser().parse_args(own)
    if options.shell and command:
        raise LocalError(f"--shell takes no command, found '{command[0]}'; leave one of them out")
    if options.models_yaml and not options.models_yaml.is_file():
        raise LocalError(f"--models-yaml: no file {options.models_yaml}; write the path of a models.yaml")
    for name in ("models_dir", "models_yaml"):
        value = getattr(options, name) or os.environ.get(f"SCORECARD_{name.upper()}")
        setattr(options, name, Path(value).expanduser().resolve() if value else None)
    return options, command


def choose(options: argparse.Namespace) -> str:
    """``docker``, ``podman``, ``venv``, or ``here`` in the container itself. Raises LocalError where an
    engine is asked for and does not answer."""
    needs = "--image" if options.image else "--prebuilt" if options.prebuilt else None
    if options.engine == "venv":
        if needs:
            raise LocalError(f"{needs} needs a container, but --engine is venv; leave one of them out")
        return "venv"
    if options.engine == "auto" and os.environ.get("SCORECARD_CONTAINER"):
        return "here"
    engine = "docker" if options.engine == "auto" else str(options.engine)
    if quietly(engine, *ANSWERS[engine], timeout=ENGINE_ANSWERS_SECONDS):
        return engine
    needs = f"--engine {engine}" if options.engine != "auto" else needs
    if needs:
        asked = f"{engine} {ANSWERS[engine][0]}"
        raise LocalError(f"{needs}: '{asked}' does not answer; start {engine}, or leave {needs} out")
    return "venv"


# --- the local environment -------------------------------------------------------------------------------


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read(name: str) -> bytes:
    try:
        return (ROOT / name).read_bytes()
    except OSError as error:
        raise LocalError(f"{name}: {error.strerror}; get it back with 'git checkout -- {name}'") from None


def step(
    what: str, command: Sequence[str], mend: str, lock: IO[str], env: Mapping[str, str] | None = None
) -> None:
    """Run ``command`` quietly, in the checkout. Raises LocalError with all that it printed.

    The child inherits ``lock``: should this process be killed, the lock is held until the child has ended
    too, so that no other local.py works on a folder that is still being written.
    """
    say(f"{what} … ", end="")
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        pass_fds=[lock.fileno()],
        stdin=subprocess.DEVNULL,  # a question that nobody sees would wait for ever
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seconds = f"{time.monotonic() - start:.1f} s"
    print(seconds if done.returncode == 0 else f"failed after {seconds}", file=sys.stderr, flush=True)
    if done.returncode:
        raise LocalError(f"{what}: exit code {done.returncode}; {mend}", done.stdout.decode(errors="replace"))


def wanted() -> list[str]:
    """The stamp of an environment in step: a line for what it is made from (its folder too, which the scripts
    of .venv/bin name), and one for the install of the checkout."""
    return [digest(read("requirements.lock"), str(ROOT).encode()), digest(read("pyproject.toml"))]


def found() -> list[str]:
    """The stamp of .venv; no lines where there is none, or where the Python that made it is gone. Which one
    runs local.py does not matter, or two people's habits would make .venv again and again."""
    file = VENV / "scorecard.stamp"
    lines = file.read_text().splitlines() if os.access(PYTHON, os.X_OK) and file.is_file() else []
    return lines[1:] if lines[:1] == [str(PYTHON.resolve())] else []


def stamp(*lines: str) -> None:
    partial = VENV / "scorecard.stamp.partial"
    partial.write_text("\n".join([str(PYTHON.resolve()), *lines]))
    partial.replace(VENV / "scorecard.stamp")


@contextlib.contextmanager
def only_one() -> Iterator[IO[str]]:
    """One local.py at a time. The lock file is never removed; it also marks .venv as made by local.py."""
    if VENV.is_symlink() or (VENV.exists() and any(VENV.iterdir()) and not (VENV / "local.lock").exists()):
        raise LocalError(".venv: was not made by local.py; move or remove it, then run the command again")
    VENV.mkdir(exist_ok=True)
    with (VENV / "local.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(".venv: another local.py is setting it up, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def keep_in_step() -> None:
    """Make, repair or update .venv. Its stamp is written last: one half made is never taken for whole."""
    if found() == wanted():
        return
    with only_one() as lock:
        want, have = wanted(), found()
        if have == want:  # the one that we waited for has done it
            return
        if have[:1] != want[:1]:
            make_anew(lock)
        stamp(want[0])
        editable = [*pip(), "--no-build-isolation", "--no-deps", "--editable", "."]
        step("installing the checkout", editable, "mend pyproject.toml and run the same command again", lock)
        stamp(*want)


def make_anew(lock: IO[str]) -> None:
    """Empty .venv, then install the lock. An update in place would keep what the new lock no longer holds,
    and could not mend files that a killed install left half written."""
    left = [path for path in VENV.iterdir() if path.name != "local.lock"]
    if left:
        say(".venv: unfinished, or made for another lock, Python or folder: making it anew")
    for path in sorted(left, key=lambda path: path.name != "scorecard.stamp"):  # the stamp goes first
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    # Started from .venv's own Python, that one's base: an environment cannot be made from itself.
    base = getattr(sys, "_base_executable", None) or sys.executable
    version = sys.version.split()[0]
    step(f"making .venv with Python {version}", [base, "-m", "venv", str(VENV)], MEND_VENV, lock)
    install(read("requirements.lock").decode().splitlines(), lock)


def install(lines: Sequence[str], lock: IO[str]) -> None:
    """Install the lock with uv, about three times as fast, else with pip.

    A uv that is not there yet comes first, from its own line of the lock. What it has unpacked it links, so
    that the backends' environments, which hold the same torch, cost neither time nor disk.
    """
    what = f"installing the {sum(line[:1].isalnum() for line in lines)} distributions of requirements.lock"
    lock_file = ["-r", str(ROOT / "requirements.lock")]
    pinned = [line for line in lines if line.startswith("uv==")]
    try:
        if not find_uv() and pinned:
            step(f"installing {pinned[0]}", [*pip(), *pinned], "trying pip alone", lock)
        uv = find_uv()
        if uv:
            command = [uv, "pip", "install", "--quiet", "--python", str(PYTHON), *lock_file]
            return step(f"{what} with uv", command, "trying pip", lock, uv_environment())
    except LocalError as error:
        say(f"{error}; it said: {' '.join(error.output.split())[-200:]}")
    return step(f"{what} with pip", [*pip(), *lock_file], MEND_PIP, lock)


def find_uv() -> str | None:
    return shutil.which("uv") or shutil.which("uv", path=str(VENV / "bin"))


def pip() -> list[str]:
    return [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def uv_environment() -> dict[str, str]:
    """uv does not read pip's settings: hand it the places where pip looks for distributions."""
    names = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX"}
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    places = dict[str, str]()
    for key, value in re.findall(r"^\S+\.([a-z-]+)='(.*)'$", shown, re.MULTILINE):
        if key in names:  # uv takes links with commas, indexes with spaces
            places[names[key]] = ("," if key == "find-links" else " ").join(value.replace("\\n", " ").split())
    # As pip does: the best of all indexes, not the first that has the name; the certificates of the system.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1", **places, **os.environ}


def venv_environment(options: argparse.Namespace) -> dict[str, str]:
    """As in an activated .venv, without the packages of the user's home."""
    env = {**os.environ, "VIRTUAL_ENV": str(VENV), "PYTHONNOUSERSITE": "1"}
    # Without bytecode each of the many processes of a run compiles torch and transformers anew: 20 s of work
    # instead of 5. It is written beside packages that are nobody else's.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["PATH"] = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    env.pop("PYTHONHOME", None)
    return {**env, **models_environment(options)}


def models_environment(options: argparse.Namespace) -> dict[str, str]:
    given = {"SCORECARD_MODELS_DIR": options.models_dir, "SCORECARD_MODELS_YAML": options.models_yaml}
    return {name: str(path) for name, path in given.items() if path}


# --- the container ---------------------------------------------------------------------------------------


def quietly(*command: str, timeout: float | None = None) -> bool:
    """Did ``command`` end well, and within ``timeout`` seconds?"""
    null = subprocess.DEVNULL
    try:
        return subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=timeout).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def image(options: argparse.Namespace, engine: str) -> str:
    """The image to run. One made from this checkout is named after its lock and its base (CUDA's, or a
    plain one where there is no GPU), and built when missing; another name is the engine's to find."""
    if options.image not in (None, "latest"):
        return str(options.image)
    made_from = digest(*map(read, ("requirements.lock", "docker/Dockerfile", "docker/build.sh")))[:12]
    name = f"scorecard:lock-{made_from}{'' if has_gpu() else '-cpu'}"
    if options.prebuilt or options.image == "latest":
        name = "scorecard:latest"
    if quietly(engine, "image", "inspect", name):
        return name
    if options.prebuilt:
        raise LocalError(
            f"{name}: there is no such image; build it with 'docker/build.sh', or leave --prebuilt out"
        )
    say(f"building the image {name}; once for each lock, some minutes")
    start = time.monotonic()
    env = {"CPU": "0" if has_gpu() else "1", **os.environ, "ENGINE": engine, "TAG": name}
    if subprocess.run([str(ROOT / "docker" / "build.sh")], env=env, stdout=sys.stderr).returncode:
        raise LocalError(f"{name}: docker/build.sh failed, see above; '--engine venv' does without Docker")
    say(f"built {name} in {time.monotonic() - start:.1f} s")
    return name


def mounts(options: argparse.Namespace) -> list[tuple[Path, str]]:
    """(here, there): the checkout, or with --prebuilt only what a run writes; models; caches."""
    home = Path.home()
    written = [(ROOT / name, f"{INSIDE}/{name}") for name in (".scorecard", "results")]
    places = written if options.prebuilt else [(ROOT, str(INSIDE))]
    places.append((options.models_dir or home / ".scorecard-models", "/cache/models"))
    places.append((Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface"), "/cache/huggingface"))
    places.append((Path(os.environ.get("PIP_CACHE_DIR") or home / ".cache" / "pip"), "/cache/pip"))
    # The backends' environments; their keys tell those of the container from those of the host.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "scorecard" / "environments"
    places.append((Path(os.environ.get("SCORECARD_ENVIRONMENTS_DIR") or cache), "/cache/environments"))
    return places


def secrets() -> Iterator[tuple[Path, str]]:
    """(file here, file there), as compose does it: an ``--env`` would be shown by ``docker inspect``."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    token = os.environ.get("HF_TOKEN")
    found = {
        "hf_token": short_lived(token) if token else Path(os.environ.get("HF_TOKEN_PATH") or hub / "token"),
        "pip_conf": Path(os.environ.get("PIP_CONFIG_FILE") or os.devnull),
    }
    for name, file in found.items():
        if file.expanduser().is_file():
            yield file.expanduser().resolve(), f"/run/secrets/{name}"


def short_lived(text: str) -> Path:
    """A file that only this user can read. A child removes it when this process, which becomes the engine's
    client, has ended: in whatever way it ends, the pipe whose other end only it has is closed then."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = tempfile.mkdtemp(prefix="scorecard-", dir=runtime if os.access(runtime, os.W_OK) else None)
    file = Path(folder, "secret")
    file.touch(mode=0o600)
    file.write_text(text)
    child_end, own_end = os.pipe()
    os.set_inheritable(own_end, True)
    if os.fork() == 0:
        os.setsid()  # Ctrl-C is for the command
        for stream in (own_end, 0, 1, 2):
            os.close(stream)
        os.read(child_end, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    os.close(child_end)
    return file


def container_command(
    options: argparse.Namespace, engine: str, name: str, command: Sequence[str]
) -> list[str]:
    run = [engine, "run", "--rm", "--init", "--interactive", "--user", f"{os.getuid()}:{os.getgid()}"]
    if engine == "podman":  # without root, ids are shifted; SELinux keeps what it has not labelled out
        run += ["--security-opt", "label=disable", *(["--userns", "keep-id"] if os.getuid() else [])]
    if sys.stdin.isatty() and sys.stdout.isatty():
        run.append("--tty")
    if has_gpu():
        run += ["--device", "nvidia.com/gpu=all"] if engine == "podman" else ["--gpus", "all"]
    for here, there in mounts(options):
        here.mkdir(parents=True, exist_ok=True)  # else docker makes it, and root owns it
        run += ["--volume", f"{here}:{there}"]
    for here, place in secrets():
        run += ["--volume", f"{here}:{place}:ro"]
    env = {"HOME": "/tmp"}  # the image's own variables name the places in /cache and /run/secrets
    if options.models_yaml:
        run += ["--volume", f"{options.models_yaml}:/cache/models.yaml:ro"]
        env["SCORECARD_MODELS_YAML"] = "/cache/models.yaml"
    for key in FORWARDED:
        run += ["--env", key] if key in os.environ else []
    for key, value in env.items():
        run += ["--env", f"{key}={value}"]
    return [*run, "--workdir", str(INSIDE / folder()), name, *(command or ["bash"])]


def folder() -> Path:
    """The current folder, from the root of the checkout; the root itself where it is outside."""
    here = Path.cwd()
    return here.relative_to(ROOT) if here.is_relative_to(ROOT) else Path()


def become(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    try:
        os.execvpe(command[0], list(command), env)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}; write a command, as in 'python3 local.py pytest'")
        sys.exit(EXIT_NOT_FOUND)


def run(arguments: Sequence[str]) -> NoReturn:
    options, command = parse(arguments)
    engine = choose(options)
    if engine in ("docker", "podman"):
        become(container_command(options, engine, image(options, engine), command), os.environ)
    if engine == "venv":
        keep_in_step()
    os.chdir(ROOT / folder())
    env = venv_environment(options) if engine == "venv" else {**os.environ, **models_environment(options)}
    become(command or [os.environ.get("SHELL") or "bash"], env)


def main() -> NoReturn:
    try:
        run(sys.argv[1:])
    except LocalError as error:
        sys.stderr.write(error.output)
        say(str(error))
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("interrupted; the next run goes on from here")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
