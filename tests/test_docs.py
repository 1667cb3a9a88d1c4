"""What the documents link to or name exists."""

import re
from pathlib import Path

import pytest

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


def test_no_command_drops_the_parameters_of_samconfig() -> None:
    """`--parameter-overrides` replaces those of the file, and so must not be used with its name."""
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            assert not ("--config-env" in line and "--parameter-overrides" in line), document.name
