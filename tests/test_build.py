"""`sam build` finds Python 3.13, though it builds in a copy outside the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Like the shims of pyenv, asdf and mise: a file here or further up names the version.
SHIM = """#!/bin/sh
here=$PWD
while [ "$here" ]; do
    [ -e "$here/.python-version" ] && exec {python} "$@"
    here=${{here%/*}}
done
echo "python3.13: command not found; it exists in these versions: 3.13.1" >&2
exit 127
"""
OTHER = """#!/bin/sh
[ "$1" = -c ] && exit 1
echo built by another Python
"""


def build(repository: Path) -> "subprocess.CompletedProcess[str]":
    """Build as `sam build` does: make in a copy elsewhere, into the repository's .aws-sam."""
    copy, artifacts = repository.parent / "copy", repository / ".aws-sam" / "build" / "EndFunction"
    copy.mkdir()
    shutil.copy(ROOT / "src" / "Makefile", copy)
    # Prints which Python ran it instead of building; like the real one, it removes the folder.
    (copy / "package.py").write_text(
        "import os, sys\nos.rmdir(sys.argv[1])\nprint(os.getcwd() and sys.version_info[:2])"
    )
    artifacts.mkdir(parents=True)
    return subprocess.run(
        ["make", "--makefile", copy / "Makefile", "build-EndFunction"],  # noqa: S607 - as SAM does
        cwd=copy,
        env={"PATH": os.environ["PATH"], "ARTIFACTS_DIR": str(artifacts)},
        capture_output=True,
        text=True,
        check=False,
    )


def put(folder: Path, name: str, script: str) -> None:
    """Put a command into a folder of the PATH."""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / ".python-version").write_text("3.13\n")
    return folder


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the whole PATH; it holds make and sh."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in ("make", "sh"):
        found = next(p for p in os.environ["PATH"].split(os.pathsep) if Path(p, name).exists())
        (folder / name).symlink_to(Path(found, name))
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_shim_finds_the_version_that_the_repository_names(
    repository: Path, commands: Path
) -> None:
    put(commands, "python3.13", SHIM.format(python=sys.executable))
    built = build(repository)
    assert (built.returncode, built.stdout) == (0, "(3, 13)\n"), built.stderr


@pytest.mark.parametrize("name", ["python3", "python"])
def test_another_name_works_if_it_is_the_right_version(
    repository: Path, commands: Path, name: str
) -> None:
    put(commands, name, SHIM.format(python=sys.executable))
    put(commands, "python3.13", OTHER)
    built = build(repository)
    assert (built.returncode, built.stdout) == (0, "(3, 13)\n"), built.stderr


def test_without_python_3_13_the_build_fails_and_says_why(repository: Path, commands: Path) -> None:
    (repository / ".python-version").unlink()
    put(commands, "python3.13", SHIM.format(python=sys.executable))
    put(commands, "python3", OTHER)
    built = build(repository)
    assert built.returncode != 0
    line, makes_own = built.stderr.splitlines()
    assert "Python 3.13 with pip is needed to build" in line
    assert makes_own.startswith("make: ***")
