"""What newcomers see first is consistent: one version, workflows that do what CI does."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from samcli.cli.types import CfnParameterOverridesType

from local.interface import interface

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DEPLOY = ROOT / ".github" / "workflows" / "deploy.yml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def commands(workflow: Path) -> list[str]:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_the_version_is_the_one_in_pyproject() -> None:
    assert interface()["info"]["version"] == VERSION
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == VERSION
    agents = re.findall(
        r"elevate-sessions/([\d.]+)", (ROOT / "src/sessions/elevate.py").read_text()
    )
    assert set(agents) <= {VERSION}


def test_github_runs_what_ci_runs() -> None:
    here = re.findall(r"^make .*|^npm [^|]*[^| ]", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    there = commands(ROOT / ".github" / "workflows" / "ci.yml")
    assert [line for line in there if not line.startswith("sudo apt-get")] == here


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_permissions_and_pins_its_actions(workflow: Path) -> None:
    text = workflow.read_text()
    rights = yaml.safe_load(text)["permissions"]
    assert set(rights.values()) <= {"read"}
    for action in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"\S+@(v\d+|[0-9a-f]{40})", action), action
    # An expression inside a command would be run as a part of it.
    assert not [command for command in commands(workflow) if "${{" in command]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for line in commands(workflow) for target in re.findall(r"make ([a-z-]+)", line)
    }
    assert named <= targets


def test_nothing_is_built_where_credentials_can_be_asked_for() -> None:
    jobs = yaml.safe_load(DEPLOY.read_text())["jobs"].values()
    trusted = [job for job in jobs if job["permissions"].get("id-token") == "write"]
    assert len(trusted) == 1
    assert not re.search("make|pip|npm", str([step.get("run") for step in trusted[0]["steps"]]))
    for action in re.findall(r"uses: (\S+)", DEPLOY.read_text()):
        assert re.fullmatch(r"\S+@[0-9a-f]{40}", action), action


def test_every_parameter_of_the_deploy_workflow_arrives_whole(tmp_path: Path) -> None:
    (sam := tmp_path / "sam").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    sam.chmod(0o755)
    wanted = {"ElevateClusterId": "w1a2", "Markets": "UK,Sverige & Norge=x", "CorsOrigins": ""}
    given = {"PARAMETERS": "".join(f"{name}={value}\n" for name, value in wanted.items())}
    done = subprocess.run(
        ["bash", "-e", "-c", commands(DEPLOY)[-1]],  # noqa: S607 - as the workflow does
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, handed_on = done.stdout.rstrip("\0").partition("--parameter-overrides\0")
    overrides = tuple(handed_on.split("\0"))
    assert CfnParameterOverridesType().convert(overrides, None, None) == wanted


@pytest.mark.parametrize("target", ["explore", "fuzz"])
def test_what_make_leaves_to_pytest_names_tests_that_exist(target: str) -> None:
    """These run for minutes, and so not here: they are only collected."""
    # Not with the options of the `make test` that runs this.
    outside = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    dry = ["make", "--dry-run", target]
    said = subprocess.run(
        dry, cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    ).stdout
    command = f"{said.splitlines()[-1]} -n 0 --collect-only --quiet"
    collected = subprocess.run(  # noqa: S602 - a line of our Makefile
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
