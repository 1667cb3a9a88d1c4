"""What the documents link to or name exists."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from samcli.cli.types import CfnParameterOverridesType

from registry_table import template

ROOT = Path(__file__).parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]


def anchors(document: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)", document.read_text()))
        assert named <= targets, document.name


def test_every_file_that_contributing_names_exists() -> None:
    named = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:toml|yaml|md))`", CONTRIBUTING.read_text())
    assert len(named) > 10
    kept = [name for name in named if not name.startswith(".local/")]
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_every_file_that_a_decision_names_exists() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text()
    named = re.findall(r"(?<![\w./:])(?:bench|docs|local|ops|src|tests)/[\w./-]*\w", text)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_command_drops_the_parameters_of_samconfig() -> None:
    """`--parameter-overrides` replaces those of the file, and so must not be used with its name."""
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            assert not ("--config-env" in line and "--parameter-overrides" in line), document.name


def test_the_sam_cli_takes_every_parameter_of_a_deploy() -> None:
    """It refuses `Name=`: what is empty has to be written as `Name=""`, quotes included."""
    found = list(deploys())
    assert len(found) > 10
    for parameters in found:
        parsed = CfnParameterOverridesType().convert(tuple(parameters), None, None)
        assert set(parsed) <= set(template()["Parameters"]), parameters
        assert len(parsed) == len(parameters), parameters


def deploys() -> Iterator[list[str]]:
    """Yield the parameters of each deploy in the documents, as a shell hands them on."""
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            if given := re.search('^GIVEN="(.*)"$', block, re.MULTILINE):
                yield given[1].split()
            for line in block.replace("\\\n", " ").splitlines():
                if "deploy" in line:
                    yield from filter(None, map(parameters_of, commands(line)))


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's line."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    for is_between, command in itertools.groupby(words, lambda word: set(word) <= set(";&|(){}")):
        if not is_between:
            yield list(command)


def parameters_of(command: list[str]) -> list[str]:
    """Return a deploy's parameters; none of a command that is no deploy."""
    is_deploy = command[0] == "deploy" or command[:2] == ["sam", "deploy"]
    return [word for word in command if is_deploy and re.match(r"\w+=", word)]
