"""What newcomers see first is consistent: one version, workflows that do what CI does."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.interface import interface

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
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
