"""local.py: what belongs to it and what to the command, which engine runs, and that .venv repairs itself.

The real script runs in a small checkout of its own (an empty lock, a package of one file); docker and uv are
small executables on PATH that write down how they were called.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pip
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

installs = pytest.mark.backend  # makes an environment in earnest
SCRIPT = Path(__file__).resolve().parent.parent / "local.py"
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""
# What setuptools does for the real project, in the smallest form that pip takes.
BACKEND = """
import os, pathlib, re, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    if "STALL_IN_CHECKOUT" in os.environ:
        pathlib.Path(os.environ["STALL_IN_CHECKOUT"]).touch()
        time.sleep(2)
    version = re.search('version = "(.*)"', pathlib.Path("pyproject.toml").read_text())[1]
    name, info = f"small-{version}-py3-none-any.whl", f"small-{version}.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("small.pth", str(pathlib.Path.cwd()))
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\\nName: small\\nVersion: {version}\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
# `python -m venv` spends its time on installing pip: this one borrows the pip of the tests' own environment.
QUICK_VENV = """
import os, pathlib, sys, time
if "STALL_IN_VENV" in os.environ:
    pathlib.Path(os.environ["STALL_IN_VENV"]).touch()
    time.sleep(2)
here = str(pathlib.Path(__file__).parent)
sys.path = [entry for entry in sys.path if entry != here]
del sys.modules["__main__"]
import venv
venv.main(["--without-pip", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def local() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Checkout:
    """A folder with local.py in it, and a PATH with only the tools that a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root, self.tools, self.home = root / "check out", root / "tools", root / "home"
        self.root.mkdir()
        self.home.mkdir()
        self.tools.mkdir()
        shutil.copy(SCRIPT, self.root)
        shutil.copytree(SCRIPT.parent / "docker", self.root / "docker")
        (self.root / "requirements.lock").write_text("# nothing\n")
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "small.py").write_text("ANSWER = 42\n")
        for name in ("bash", "sh", "sleep", "env", "cat", "dirname"):
            (self.tools / name).symlink_to(shutil.which(name) or "/missing")
        self.docker = root / "docker.calls"
        self.env = {"PATH": str(self.tools), "HOME": str(self.home), "SHELL": "/bin/sh", "LC_ALL": "C.UTF-8"}

    def start(
        self, *arguments: str, cwd: Path | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        pipe, command = subprocess.PIPE, [sys.executable, str(self.root / "local.py"), *arguments]
        return subprocess.Popen(
            command,
            cwd=cwd or self.root,
            env=self.env,
            stdin=stdin,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, cwd=cwd)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def tool(self, name: str, exit_code: str = "0") -> Path:
        """An executable that adds its arguments as a line of JSON to the file that is returned."""
        calls = self.root.parent / f"{name}.calls"
        note = f"open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
        code = f"#!{sys.executable}\nimport json, os, sys\n{note}\nsys.exit({exit_code})\n"
        executable(self.tools / name, code)
        return calls

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return self.run("--engine", "venv", "python", "-c", code)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    lent = tmp_path / "lent"
    lent.mkdir()
    (lent / "venv.py").write_text(QUICK_VENV)
    (lent / "pip").symlink_to(Path(pip.__file__).parent)
    made.env["PYTHONPATH"] = str(lent)
    return made


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One whose .venv was made in earnest, by three at once."""
    made = Checkout(tmp_path_factory.mktemp("ready"))
    code = ("--engine", "venv", "python", "-c", "import small; print(small.ANSWER)")
    started = [made.start(*code) for _ in range(3)]
    finished = [process.communicate(timeout=120) for process in started]
    assert [out for out, _ in finished] == ["42\n"] * 3, finished
    assert sum("making .venv with" in err for _, err in finished) == 1
    return made


def calls(file: Path) -> list[list[str]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# --- the command line -------------------------------------------------------------------------------------

OWN = st.lists(
    st.sampled_from(
        [["--engine", "venv"], ["--engine=docker"], ["--image", "y"], ["--prebuilt"], ["--models-dir=d"]]
    ),
    max_size=4,
).map(lambda groups: [word for group in groups for word in group])
WORDS = st.lists(st.sampled_from(["--image", "--engine", "--", "-k", "--shell", "-h", "", "a b"]) | st.text())


@given(own=OWN, name=st.text(min_size=1).filter(lambda word: not word.startswith("-")), rest=WORDS)
def test_nothing_of_the_command_is_taken(
    local: ModuleType, own: list[str], name: str, rest: list[str]
) -> None:
    assert local.split([*own, name, *rest]) == (own, [name, *rest])


@given(own=OWN, command=WORDS)
def test_after_two_dashes_all_is_command(local: ModuleType, own: list[str], command: list[str]) -> None:
    assert local.split([*own, "--", *command]) == (own, command)


@given(st.lists(st.text() | st.sampled_from(["--engine", "--image", "--", "-x", "--models-yaml"])))
def test_any_line_is_split_without_loss(local: ModuleType, line: list[str]) -> None:
    own, command = local.split(line)
    assert [*own, *command] == line or [*own, "--", *command] == line


def test_the_options_with_a_value_are_the_ones_that_split_knows(local: ModuleType) -> None:
    for action in local.parser()._actions:
        for option in action.option_strings:
            expected = [option, "value"] if action.nargs is None else [option]
            assert local.split([option, "value", "command"])[0] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--engin", "venv", "pytest"], "--engin"),
        (["--engine", "lxc", "pytest"], "lxc"),
        (["--engine", "podman", "pytest"], "start podman"),
        (["--engine"], "--engine"),
        (["--shell", "pytest"], "--shell takes no command"),
        (["--models-yaml", "none.yaml", "pytest"], "none.yaml"),
        (["--engine", "venv", "--image", "x", "pytest"], "--image needs a container"),
        (["--engine", "venv", "--prebuilt", "pytest"], "--prebuilt needs a container"),
        (["--engine", "docker", "pytest"], "start docker"),
        (["--image", "x", "pytest"], "leave --image out"),
    ],
)
def test_a_wrong_line_is_one_line_and_4(checkout: Checkout, arguments: list[str], expected: str) -> None:
    done = checkout.run(*arguments)
    assert done.returncode == 4
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout.root / ".venv").exists()


def test_an_old_python_can_read_it_as_far_as_the_message() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    assert isinstance(tree.body[2], ast.If), "the check of the version comes before the other imports"
    old = next(filter(None, map(shutil.which, ("python3.8", "python3.9", "python3.10"))), None)
    if old and subprocess.run([old, "-c", ""], capture_output=True).returncode == 0:
        done = subprocess.run([old, str(SCRIPT), "pytest"], capture_output=True, text=True)
        assert done.returncode != 0
        assert "is too old; use 3.11 or newer" in done.stderr
        assert done.stderr.count("\n") == 1


# --- the local environment --------------------------------------------------------------------------------


@installs
def test_a_second_run_adds_almost_nothing(ready: Checkout) -> None:
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        assert ready.run("--engine", "venv", "sh", "-c", ":").stderr == ""
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.5  # about 0.1 on a quiet machine


@installs
def test_python_and_scripts_are_the_environments(ready: Checkout) -> None:
    done = ready.python(
        "import sys, os; print(sys.prefix, os.environ['VIRTUAL_ENV'], os.environ['PYTHONNOUSERSITE'])"
    )
    assert done.stdout == f"{ready.root}/.venv {ready.root}/.venv 1\n"
    assert ready.run("--engine", "venv", "python3", "-m", "pip", "--version").returncode == 0


@installs
def test_bytecode_is_kept_where_the_caller_keeps_none(
    ready: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As images set it for their build: every process would compile all that it imports."""
    monkeypatch.setitem(ready.env, "PYTHONDONTWRITEBYTECODE", "1")
    assert ready.python("import sys; print(sys.dont_write_bytecode)").stdout == "False\n"


@installs
def test_arguments_exit_code_and_streams_are_the_commands(ready: Checkout) -> None:
    code = "import sys; print(sys.argv[1:]); print('no', file=sys.stderr); sys.exit(3)"
    done = ready.run("--engine", "venv", "python", "-c", code, "--image", "y", "--engine", "--", "a  b", "")
    assert (done.returncode, done.stderr) == (3, "no\n")
    assert done.stdout == "['--image', 'y', '--engine', '--', 'a  b', '']\n"


@installs
def test_signals_are_the_commands(ready: Checkout) -> None:
    code = "import os, signal, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = ready.start("--engine", "venv", "python", "-c", code)
    assert process.stdout
    assert int(process.stdout.readline()) == process.pid, "local.py has become the command"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


@installs
def test_without_a_command_a_shell(ready: Checkout) -> None:
    code = f"#!{sys.executable}\nimport os; print(os.environ['VIRTUAL_ENV'])\n"
    ready.env["SHELL"] = str(executable(ready.root.parent / "my-shell", code))
    for arguments in ([], ["--shell"]):
        assert ready.run("--engine", "venv", *arguments).stdout == f"{ready.root}/.venv\n"


@installs
def test_the_folder_is_kept_inside_the_checkout_and_is_its_root_outside(ready: Checkout) -> None:
    code = ("--engine", "venv", "python", "-c", "import os; print(os.getcwd())")
    assert ready.run(*code, cwd=ready.root / "docker").stdout == f"{ready.root}/docker\n"
    assert ready.run(*code, cwd=Path("/")).stdout == f"{ready.root}\n"


@installs
def test_models_are_handed_on_as_absolute_paths(ready: Checkout) -> None:
    (ready.root / "my.yaml").write_text("models: []\n")
    code = "import os; print(os.environ['SCORECARD_MODELS_DIR'], os.environ['SCORECARD_MODELS_YAML'])"
    own = ("--engine", "venv", "--models-dir", "m", "--models-yaml=my.yaml")
    assert ready.run(*own, "python", "-c", code).stdout == f"{ready.root}/m {ready.root}/my.yaml\n"


@installs
def test_a_command_that_is_not_there(ready: Checkout) -> None:
    done = ready.run("--engine", "venv", "pytset")
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert "pytset" in done.stderr


@installs
def test_auto_without_docker_is_the_local_environment(ready: Checkout) -> None:
    assert ready.run("python", "-c", "import sys; print(sys.prefix)").stdout == f"{ready.root}/.venv\n"


def test_in_the_container_the_environment_is_already_there(checkout: Checkout) -> None:
    checkout.env["SCORECARD_CONTAINER"] = "1"
    done = checkout.run("sh", "-c", "echo here")
    assert (done.stdout, done.stderr) == ("here\n", "")
    assert not (checkout.root / ".venv").exists()


@installs
def test_a_changed_project_is_installed_again_and_a_changed_lock_makes_all_anew(checkout: Checkout) -> None:
    checkout.python("pass")
    left_over = checkout.root / ".venv" / "left-over"
    left_over.touch()
    (checkout.root / "pyproject.toml").write_text(PYPROJECT.replace('"1"', '"2"'))
    done = checkout.python("import importlib.metadata as m; print(m.version('small'))")
    assert done.stdout == "2\n", done.stderr
    assert left_over.exists()
    assert "making .venv" not in done.stderr
    (checkout.root / "requirements.lock").write_text("# still nothing\n")
    assert "making it anew" in checkout.python("pass").stderr
    assert not left_over.exists()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert checkout.python("print(1)").stdout == "1\n", "a stamp without its Python is not believed"
    assert checkout.python("pass").stderr == ""


@installs
@pytest.mark.parametrize("place", ["STALL_IN_VENV", "STALL_IN_CHECKOUT"])
@pytest.mark.parametrize("victim", ["local.py", "everything"])
def test_killed_in_the_middle_then_repaired(checkout: Checkout, victim: str, place: str) -> None:
    """Where only local.py is killed, the tool that it started goes on, and the next local.py waits for it."""
    marker = checkout.root.parent / "reached"
    checkout.env[place] = str(marker)
    process = checkout.start("--engine", "venv", "python", "-c", "pass")
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children if victim == "everything" else []:
        child.kill()
    process.communicate()
    del checkout.env[place]
    done = checkout.python("import small; print(small.ANSWER)")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert ("waiting" in done.stderr) is (victim == "local.py")
    assert checkout.python("pass").stderr == ""


def test_a_foreign_environment_is_left_alone(checkout: Checkout) -> None:
    foreign = checkout.root / ".venv" / "mine"
    foreign.parent.mkdir()
    foreign.touch()
    done = checkout.python("pass")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "was not made by local.py" in done.stderr
    assert foreign.exists()


@installs
def test_a_failing_install_shows_what_pip_said_and_is_tried_again(checkout: Checkout) -> None:
    checkout.env["PIP_NO_INDEX"] = "1"
    (checkout.root / "requirements.lock").write_text("no-such-distribution-anywhere==1\n")
    for _ in range(2):
        done = checkout.python("pass")
        assert done.returncode == 4
        assert "No matching distribution found" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("local.py: installing the 1 distributions")
        assert "Traceback" not in done.stderr


@installs
def test_uv_is_used_where_it_is_with_pips_places(checkout: Checkout) -> None:
    calls_of_uv = checkout.tool("uv", "0 if os.environ['UV_FIND_LINKS'] == '/a,/b' else 9")
    checkout.env["PIP_FIND_LINKS"] = "/a /b"
    done = checkout.python("print(1)")
    assert done.stdout == "1\n", done.stderr
    assert "with uv" in done.stderr
    assert "with pip" not in done.stderr
    assert calls(calls_of_uv)[0][:2] == ["pip", "install"]


@installs
def test_uv_comes_from_its_line_of_the_lock(checkout: Checkout) -> None:
    """A small uv of that name is all that the lock holds: it is installed first, then asked for the rest."""
    wheel = checkout.root.parent / "uv-1-py3-none-any.whl"
    said = checkout.root.parent / "uv.said"
    with zipfile.ZipFile(wheel, "w") as archive:
        script = zipfile.ZipInfo("uv-1.data/scripts/uv")
        script.external_attr = 0o100755 << 16
        archive.writestr(script, f"#!/bin/sh\necho \"$@\" > '{said}'\n")
        archive.writestr("uv-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 1\n")
        archive.writestr(
            "uv-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("uv-1.dist-info/RECORD", "")
    (checkout.root / "requirements.lock").write_text("uv==1\n")
    checkout.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    done = checkout.python("print(1)")
    assert done.stdout == "1\n", done.stderr
    assert "distributions of requirements.lock with uv" in done.stderr
    assert "pip install" in said.read_text()


@installs
def test_where_uv_fails_pip_does_it(checkout: Checkout) -> None:
    checkout.tool("uv", "2")
    done = checkout.python("print(1)")
    assert done.stdout == "1\n", done.stderr
    assert "with pip" in done.stderr


# --- the container ----------------------------------------------------------------------------------------


@pytest.fixture
def docked(checkout: Checkout) -> Checkout:
    checkout.docker = checkout.tool(
        "docker", "1 if sys.argv[1:3] == ['image', 'inspect'] else 7 * (sys.argv[1] == 'run')"
    )
    return checkout


def docker_run(checkout: Checkout, *arguments: str, cwd: Path | None = None) -> list[str]:
    done = checkout.run(*arguments, cwd=cwd)
    assert done.returncode == 7, done.stderr  # that of the container
    [call] = [call for call in calls(checkout.docker) if call[0] == "run"]
    return call


def test_with_an_engine_the_command_runs_in_the_image(docked: Checkout) -> None:
    call = docker_run(docked, "pytest", "--image", "y", "--engine", "z", cwd=docked.root / "docker")
    assert call[-5:] == ["pytest", "--image", "y", "--engine", "z"]
    name = call[-6]
    assert name.startswith("scorecard:lock-")
    assert f"{docked.root}:/scorecard" in call
    assert call[call.index("--workdir") + 1] == "/scorecard/docker"
    assert call[call.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert "--gpus" not in call
    [build] = [call for call in calls(docked.docker) if call[0] == "build"]
    assert build[build.index("--tag") + 1] == name
    assert name.endswith("-cpu"), "there is no GPU"
    assert "BASE=python:" in build[build.index("--build-arg") + 1]
    assert not (docked.root / ".venv").exists()


def test_a_changed_lock_is_another_image(docked: Checkout) -> None:
    docked.run("pytest")
    (docked.root / "requirements.lock").write_text("# other\n")
    docked.run("pytest")
    names = [call[-2] for call in calls(docked.docker) if call[0] == "run"]
    assert len(set(names)) == 2


def test_credentials_of_aws_are_named_and_never_shown(docked: Checkout) -> None:
    docked.env |= {"AWS_SECRET_ACCESS_KEY": "aws_secret"}
    done = docked.run("pytest")
    said = done.stdout + done.stderr + docked.docker.read_text()
    assert "secret" not in said.replace("AWS_SECRET_ACCESS_KEY", "").replace("/run/secrets/", "")
    [call] = [call for call in calls(docked.docker) if call[0] == "run"]
    assert call[call.index("AWS_SECRET_ACCESS_KEY") - 1] == "--env"
    assert "AWS_REGION" not in call


def mounted(call: list[str], place: str) -> Path | None:
    """What is mounted at ``place``, read-only."""
    found = [word.removesuffix(f":{place}:ro") for word in call if word.endswith(f":{place}:ro")]
    return Path(found[0]) if found else None


@pytest.mark.parametrize("end", ["it ends", "it is killed"])
def test_a_token_is_a_file_for_as_long_as_the_command_runs(docked: Checkout, end: str) -> None:
    """In no command line and no environment of the container; gone afterwards, whatever ended the run."""
    runtime = docked.root.parent / "runtime"
    runtime.mkdir()
    docked.env |= {"HF_TOKEN": "hf_secret", "XDG_RUNTIME_DIR": str(runtime)}
    look = "next(w for w in sys.argv if w.endswith(':/run/secrets/hf_token:ro')).partition(':')[0]"
    read = f"(print(open({look}).read(), oct(os.stat({look}).st_mode), flush=True), sys.stdin.read())"
    docked.tool("docker", f"sys.argv[1] == 'run' and {read} and 0")
    process = docked.start("pytest") if end == "it ends" else docked.start("pytest", stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "hf_secret 0o100600\n"
    if end == "it is killed":
        assert list(runtime.iterdir())
        process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while list(runtime.iterdir()) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(runtime.iterdir()) == []
    [call] = [call for call in calls(docked.docker) if call[0] == "run"]
    assert not [word for word in call if "hf_secret" in word or "HF_TOKEN" in word]


def test_a_token_in_a_file_is_mounted_where_it_is(docked: Checkout) -> None:
    place, default = "/run/secrets/hf_token", docked.home / ".cache" / "huggingface" / "token"
    assert mounted(docker_run(docked, "pytest"), place) is None
    for file, env in (
        (default, {}),
        (docked.home / "hub" / "token", {"HF_HOME": f"{docked.home}/hub"}),
        (docked.home / "my token", {"HF_TOKEN_PATH": f"{docked.home}/my token"}),
    ):
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text("hf_secret")
        docked.docker.unlink()
        docked.env |= env
        assert mounted(docker_run(docked, "pytest"), place) == file


def test_pips_settings_reach_the_build_and_the_run(docked: Checkout) -> None:
    settings = docked.home / "pip.conf"
    settings.write_text("[global]\nindex-url = https://robot:password@example.com/simple\n")
    docked.env["PIP_CONFIG_FILE"] = str(settings)
    assert mounted(docker_run(docked, "pytest"), "/run/secrets/pip_conf") == settings
    [build] = [call for call in calls(docked.docker) if call[0] == "build"]
    assert f"id=pip_conf,src={settings}" in build
    assert "password" not in docked.docker.read_text()


def test_podman_takes_its_own_options(docked: Checkout) -> None:
    docked.docker = docked.tool("podman", "sys.argv[1] == 'image' or 7 * (sys.argv[1] == 'run')")
    docked.tool("nvidia-smi")
    call = docker_run(docked, "--engine", "podman", "pytest")
    assert call[call.index("--device") + 1] == "nvidia.com/gpu=all"
    assert "--gpus" not in call
    assert ("--userns" in call) is (os.getuid() != 0)
    assert [call[0] for call in calls(docked.docker)] == ["version", "image", "build", "run"]


def test_prebuilt_uses_the_images_code_and_keeps_what_a_run_writes(docked: Checkout) -> None:
    docked.tool("docker", "7 * (sys.argv[1] == 'run')")  # the image is there
    call = docker_run(docked, "--prebuilt", "pytest")
    assert call[-2:] == ["scorecard:latest", "pytest"]
    assert f"{docked.root}:/scorecard" not in call
    assert f"{docked.root}/results:/scorecard/results" in call
    assert (docked.root / "results").is_dir()


def test_prebuilt_builds_nothing(docked: Checkout) -> None:
    done = docked.run("--prebuilt", "pytest")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "docker/build.sh" in done.stderr
    assert [call[0] for call in calls(docked.docker)] == ["info", "image"]


def test_an_image_by_name_and_the_latest(docked: Checkout) -> None:
    assert docker_run(docked, "--image", "mine:3", "pytest")[-2:] == ["mine:3", "pytest"]
    assert "build" not in [call[0] for call in calls(docked.docker)]
    docked.docker.unlink()
    assert docker_run(docked, "--image=latest")[-2:] == ["scorecard:latest", "bash"]


def test_a_gpu_is_given_to_the_container(docked: Checkout) -> None:
    docked.tool("nvidia-smi")
    call = docker_run(docked, "pytest")
    assert call[call.index("--gpus") + 1] == "all"
    assert not call[-2].endswith("-cpu")
    [build] = [call for call in calls(docked.docker) if call[0] == "build"]
    assert "--build-arg" not in build, "the base is CUDA's"


def test_models_and_caches_are_mounted(docked: Checkout) -> None:
    (docked.root / "my.yaml").write_text("models: []\n")
    call = docker_run(docked, "--models-dir", "m", "--models-yaml", "my.yaml", "pytest")
    assert f"{docked.root}/m:/cache/models" in call
    assert f"{docked.root}/my.yaml:/cache/models.yaml:ro" in call
    assert f"{docked.home}/.cache/huggingface:/cache/huggingface" in call
    assert "SCORECARD_MODELS_YAML=/cache/models.yaml" in call
    dockerfile = (SCRIPT.parent / "docker" / "Dockerfile").read_text()
    named = dict(re.findall(r"^    ([A-Z_]+)=(/cache/\w+)", dockerfile, re.MULTILINE))
    assert len(named) == 4
    assert all(any(word.endswith(f":{place}") for word in call) for place in named.values())


@installs
def test_an_engine_that_does_not_answer_in_time_is_none(ready: Checkout) -> None:
    docker = executable(ready.tools / "docker", "#!/bin/sh\nexec sleep 30\n")
    try:
        start = time.monotonic()
        assert ready.run("python", "-c", "print(1)").stdout == "1\n"
        assert 2.5 < time.monotonic() - start < 10
    finally:
        docker.unlink()
