"""docker/: how its scripts call the engine, and what may not reach the image. Without an engine; those that
build and run the image are in test_docker_image.py."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def script(tmp_path: Path, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A script of docker/ started from elsewhere, with an engine that only prints how it was called."""
    engine = tmp_path / "engine"
    note = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"
    engine.write_text(f"#!{sys.executable}\n{note}\n")
    engine.chmod(0o755)
    command = [str(ROOT / "docker" / name), *arguments]
    env = {"PATH": os.environ["PATH"], "ENGINE": str(engine), **env}
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)


def build(tmp_path: Path, *arguments: str, **env: str) -> list[str]:
    """The arguments that build.sh gives to its engine, and where."""
    done = script(tmp_path, "build.sh", *arguments, **env)
    assert done.returncode == 0, done.stderr
    called: list[str] = json.loads(done.stdout)
    assert called.pop(0) == str(ROOT)
    return called


def test_it_is_tagged_latest_and_takes_dockers_arguments(tmp_path: Path) -> None:
    expected = ["build", "--file", "docker/Dockerfile", "--tag", "scorecard:latest", "--tag", "a b:1", "."]
    assert build(tmp_path, "--tag", "a b:1") == expected


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_no_cache(tmp_path: Path, value: str, expected: bool) -> None:
    assert ("--no-cache" in build(tmp_path, NO_CACHE=value)) is expected


def test_a_name_of_its_own(tmp_path: Path) -> None:
    called = build(tmp_path, TAG="mine:3")
    assert called[called.index("--tag") + 1] == "mine:3"
    assert "scorecard:latest" not in called


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"CPU": "0"}, None),
        ({"CPU": "1"}, "python:"),
        ({"BASE": "debian:with-python"}, "debian:with-python"),
        ({"BASE": "debian:with-python", "CPU": "1"}, "debian:with-python"),
    ],
)
def test_the_base_is_cudas_unless_told_otherwise(
    tmp_path: Path, env: dict[str, str], expected: str | None
) -> None:
    called = build(tmp_path, **env)
    if expected is None:
        assert "--build-arg" not in called
    else:
        assert called[called.index("--build-arg") + 1].startswith(f"BASE={expected}")


def test_cudas_base_is_the_one_of_torchs_libraries() -> None:
    """torch 2.13 of the default index brings CUDA 13.0; compiling kernels needs the same major version."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    [base] = re.findall(r"^ARG BASE=(.*)$", dockerfile, re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:13\.0\.\d-devel-ubuntu24\.04", base)
    assert "torch==2.13.0\n" in (ROOT / "requirements.lock").read_text(), "another torch: look at its CUDA"
    assert compose["services"]["scorecard"]["build"]["args"]["BASE"] == f"${{BASE:-{base}}}"


def test_pips_settings_are_a_secret_of_the_build(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://robot:pass_word@example.com/simple\n")
    called = build(tmp_path, PIP_CONFIG_FILE=str(settings))
    assert called[called.index("--secret") + 1] == f"id=pip_conf,src={settings}"
    assert "pass_word" not in " ".join(called)
    for absent in ("/dev/null", str(tmp_path / "none"), ""):
        assert "--secret" not in build(tmp_path, PIP_CONFIG_FILE=absent)


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["--build-arg", "HF_TOKEN=hf_abc123"], "HF_TOKEN"),
        (["--build-arg=hf_token=hf_abc123"], "HF_TOKEN"),
        (["--tag", "x", "--build-arg", "MY_API_KEY=hf_abc123"], "HF_TOKEN"),
        (["--build-arg", "PIP_INDEX_URL=https://me:hf_abc123@example.com/simple"], "PIP_CONFIG_FILE"),
        (["--build-arg=PIP_EXTRA_INDEX_URL=https://hf_abc123@example.com"], "PIP_CONFIG_FILE"),
    ],
)
def test_a_secret_in_a_build_argument_is_refused_and_not_repeated(
    tmp_path: Path, arguments: list[str], mend: str
) -> None:
    done = script(tmp_path, "build.sh", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert mend in done.stderr
    assert "hf_abc123" not in done.stderr


def test_other_build_arguments_and_secrets_pass(tmp_path: Path) -> None:
    given = ["--build-arg", "PIP_INDEX_URL=https://example.com/simple@v2", "--secret", "id=hf_token,src=f"]
    assert build(tmp_path, *given)[-5:] == [*given, "."]


def test_exec_is_local_py_with_the_image_that_was_built_last(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    note = "import json, sys; sys.argv[1] == 'run' and print(json.dumps(sys.argv[1:]))"
    docker.write_text(f"#!{sys.executable}\n{note}\n")
    docker.chmod(0o755)
    env = {"PATH": f"{docker.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "ENGINE": ""}
    for arguments, command in (([], ["bash"]), (["pytest", "--image", "y"], ["pytest", "--image", "y"])):
        done = script(tmp_path, "exec.sh", *arguments, **env)
        called = json.loads(done.stdout)
        assert called[0] == "run"
        assert called[called.index("scorecard:latest") + 1 :] == command
    refused = script(tmp_path, "exec.sh", **{**env, "ENGINE": "lxc"})
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)


def test_no_secret_can_become_part_of_a_layer() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    declared = re.findall(r"^\s*(?:ARG\s+|ENV\s+)?(\w+)(?:=|$)", text.replace("\\\n", "\n"), re.MULTILINE)
    assert "BASE" in declared
    secret = re.compile("TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
    assert [name for name in declared if secret.search(name)] == ["HF_TOKEN_PATH"], (
        "the place of one, no more"
    )
    assert re.search(r"^USER scorecard$", text, re.MULTILINE), "what comes last is not root"
    steps = re.split(r"^(?=RUN )", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]
    asks = [step for step in steps if "pip install" in step and "--no-index" not in step]
    assert all("--mount=type=secret,id=pip_conf" in step for step in asks)


def lines(file: str) -> list[str]:
    text = (ROOT / file).read_text().splitlines()
    return [line.rstrip("/") for line in text if line and not line.startswith("#")]


def test_the_image_gets_what_is_tracked_and_nothing_else() -> None:
    """Everything is left out but what is named, so that a token beside the code stays out."""
    ignored = lines(".dockerignore")
    assert ignored[0] == "*"
    taken = {line[1:] for line in ignored if line.startswith("!")}
    tracked = {name.partition("/")[0] for name in git_files()}
    assert taken == tracked
    assert set(lines(".gitignore")) <= {line.removeprefix("**/") for line in ignored}


def git_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: what is tracked is not known")
    return listed.stdout.splitlines()


def test_compose_gives_secrets_as_files_and_a_gpu_only_to_the_service_of_that_name() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"scorecard", "gpu"}
    [device] = services["gpu"].pop("deploy")["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["gpu"] == services["scorecard"]
    service = services["scorecard"]
    assert service["secrets"] == ["hf_token", "pip_conf"]
    assert service["build"]["secrets"] == ["pip_conf"]
    assert service["environment"] == {"HOME": "/tmp"}, "no secret in an environment"
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    context = (ROOT / "docker" / service["build"]["context"]).resolve()
    assert (context, (context / service["build"]["dockerfile"]).is_file()) == (ROOT, True)


def test_the_readme_names_every_variable_and_secret() -> None:
    readme = (ROOT / "docker" / "README.md").read_text()
    build_sh = (ROOT / "docker" / "build.sh").read_text()
    compose = (ROOT / "docker" / "compose.yaml").read_text()
    names = set(re.findall(r"^#   ([A-Z_]+)=", build_sh, re.MULTILINE)) | set(
        re.findall(r"\$\{([A-Z_]+)", compose)
    )
    assert len(names) >= 8
    assert not [name for name in [*names, "hf_token", "pip_conf"] if f"`{name}" not in readme]


def test_the_lock_pins_every_line_and_satisfies_pyproject() -> None:
    """Exact versions, no local builds, no addresses; every direct dependency in it, within its bounds."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = list(itertools.chain(project["dependencies"], *project["optional-dependencies"].values()))
    for requirement in map(Requirement, direct):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_workflow_and_the_hooks_run_what_the_project_has() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "scorecard.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["scorecard"]["steps"] if "run" in step]
    assert commands[0] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    wide = yaml.safe_load((ROOT / ".github" / "workflows" / "wide.yml").read_text())["jobs"]["wide"]
    assert any("pytest tests" in step.get("run", "") and "--slow" in step["run"] for step in wide["steps"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook from elsewhere needs the network"
    assert all(hook["entry"].startswith("python3 local.py --engine venv ") for hook in hooks[0]["hooks"])
