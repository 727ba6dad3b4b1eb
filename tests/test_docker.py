"""docker/: how build.sh calls its engine, what may not reach the image, and (slow) an image really built."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path: Path, *arguments: str, **env: str) -> list[str]:
    """The arguments that build.sh, started from elsewhere, gives to its engine, and where."""
    engine = tmp_path / "engine"
    note = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"
    engine.write_text(f"#!{sys.executable}\n{note}\n")
    engine.chmod(0o755)
    command = [str(ROOT / "docker" / "build.sh"), *arguments]
    env = {"PATH": os.environ["PATH"], "ENGINE": str(engine), **env}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    called: list[str] = json.loads(done.stdout)
    assert called.pop(0) == str(ROOT)
    return called


def test_it_is_tagged_latest_and_takes_dockers_arguments(tmp_path: Path) -> None:
    expected = ["build", "--file", "docker/Dockerfile", "--tag", "scorecard:latest", "--tag", "a b:1", "."]
    assert build(tmp_path, "--tag", "a b:1") == expected


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_no_cache(tmp_path: Path, value: str, expected: bool) -> None:
    assert ("--no-cache" in build(tmp_path, NO_CACHE=value)) is expected


def test_another_base(tmp_path: Path) -> None:
    called = build(tmp_path, BASE="debian:with-python")
    assert called[called.index("--build-arg") + 1] == "BASE=debian:with-python"


def test_no_secret_can_become_part_of_a_layer() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    declared = re.findall(r"^\s*(?:ARG\s+|ENV\s+)?(\w+)(?:=|$)", text.replace("\\\n", "\n"), re.MULTILINE)
    assert "BASE" in declared
    assert not [name for name in declared if re.search("TOKEN|SECRET|PASSWORD|KEY", name, re.IGNORECASE)]
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".env", ".venv", ".scorecard", "results", "user/output_model"} <= set(ignored)


def test_what_git_ignores_the_image_ignores() -> None:
    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text().splitlines()
        return {line.removeprefix("**/").rstrip("/") for line in lines if line and not line.startswith("#")}

    assert names(".gitignore") <= names(".dockerignore")


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
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook from elsewhere needs the network"
    assert all(hook["entry"].startswith("python3 local.py --engine venv ") for hook in hooks[0]["hooks"])


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("buildah") and os.environ.get("SCORECARD_TEST_BASE")),
    reason="needs buildah, and a base with Python in SCORECARD_TEST_BASE",
)
def test_an_image_is_built_and_anybody_can_run_the_code_in_it(tmp_path: Path) -> None:
    """The real Dockerfile. SCORECARD_TEST_BUILD_ARGS adds arguments of the build, as pip's places."""
    buildah = "buildah --storage-driver vfs"
    engine = tmp_path / "engine"
    engine.write_text(f'#!/bin/sh\nshift\nexec {buildah} bud --isolation chroot --network host "$@"\n')
    engine.chmod(0o755)
    env = {**os.environ, "ENGINE": str(engine), "BASE": os.environ["SCORECARD_TEST_BASE"]}
    extra = os.environ.get("SCORECARD_TEST_BUILD_ARGS", "").split()
    subprocess.run([str(ROOT / "docker" / "build.sh"), *extra], env=env, check=True)
    made = subprocess.check_output(
        f"{buildah} from localhost/scorecard:latest", shell=True, text=True
    ).strip()
    try:
        code = "import scorecard, os; open('written', 'w'); print(scorecard.__file__, os.getuid())"
        inside = f"--isolation chroot --user 1234:1234 {made} -- python3 local.py python3 -c".split()
        said = subprocess.check_output([*buildah.split(), "run", *inside, code], text=True)
        assert said == "/scorecard/scorecard/__init__.py 1234\n"
    finally:
        subprocess.run(f"{buildah} rm {made}", shell=True, check=True, stdout=subprocess.DEVNULL)
