"""The built package: complete, small, pure Python, with bytecode that Lambda accepts."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from emulated import FakeElevate
from invoking import sample
from local.rie import LambdaFunction
from sessions.settings import Settings

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
MEGABYTES = 1024 * 1024


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `sam build` does."""
    target = tmp_path_factory.mktemp("build") / "EndFunction"
    subprocess.run([sys.executable, SRC / "package.py", target], check=True)
    return target


def test_it_is_small(package: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", package)
    assert Path(archive).stat().st_size <= 4 * MEGABYTES


def test_it_is_pure_python_and_holds_nothing_superfluous(package: Path) -> None:
    kinds = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert not kinds & {".so", ".pyd", ".dylib", ".pyi", ".toml", ".in", ".html", ".css"}
    assert not [path for path in package.rglob("*") if path.name in ("tests", "test")]


def test_all_bytecode_is_hash_based_and_unchecked_and_names_no_build_folder(
    package: Path,
) -> None:
    compiled = list(package.rglob("*.pyc"))
    sources = [p for p in package.rglob("*.py")]
    assert len(compiled) == len(sources)
    for path in compiled:
        content = path.read_bytes()
        assert content[4:8] == b"\x01\x00\x00\x00", "flags: hash-based, not checked"
        assert str(package).encode() not in content


def test_two_builds_are_the_same_to_the_byte(package: Path, tmp_path: Path) -> None:
    # In another folder, with freshly installed dependencies and another hash seed
    again = tmp_path / "elsewhere" / "TrackFunction"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, SRC / "package.py", again], env=environment, check=True)
    built = {path.relative_to(package): path.read_bytes() for path in files(package)}
    rebuilt = {path.relative_to(again): path.read_bytes() for path in files(again)}
    assert built.keys() == rebuilt.keys()
    assert [name for name in built if built[name] != rebuilt[name]] == []
    modes = [[path.stat().st_mode for path in files(folder)] for folder in (package, again)]
    assert modes[0] == modes[1]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_sbom_lists_what_the_package_ships(package: Path) -> None:
    if not (ROOT / ".venv" / "scan" / "bin" / "cyclonedx-py").exists():
        pytest.skip("the scanners are not installed: make check")
    subprocess.run(["/usr/bin/env", "make", "sbom"], cwd=ROOT, check=True, capture_output=True)
    sbom = json.loads((ROOT / ".local" / "sbom.json").read_text())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    described = sbom["metadata"]["component"]
    assert (described["name"], described["version"]) == (project["name"], project["version"])
    listed = {(part["name"], part["version"]) for part in sbom["components"]}
    locked = re.findall(r"^(\S+)==(\S+)", (SRC / "requirements.txt").read_text(), re.MULTILINE)
    assert listed == set(locked)
    # Every folder and module that is not ours belongs to one of them.
    own = {"handler", "sessions", "__pycache__"}
    shipped = {path.stem for path in package.iterdir()} - own
    names = {name.replace("-", "_") for name, _ in listed} | {"dateutil"}
    assert shipped <= names


def test_a_second_build_needs_no_network(package: Path) -> None:
    # Given that `sam build` has emptied the folder of the packages, as it does each time
    target = package.parent.with_name("emptied") / "EndFunction"
    # When it builds again, and no package index can be reached
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    subprocess.run(
        [sys.executable, SRC / "package.py", target], env=os.environ | unreachable, check=True
    )
    # Then the package is the same.
    assert names(target) == names(package)


def test_dependencies_that_have_changed_are_installed_again(package: Path, tmp_path: Path) -> None:
    # Given installed dependencies to which a file was added, and of which one was changed
    for installed in package.parent.parent.glob("dependencies-*"):
        shutil.copytree(installed, copy := tmp_path / installed.name)
        (copy / "added.py").touch()
        (copy / "boto3" / "__init__.py").write_text("changed = True")
    # When it is built
    target = tmp_path / "build" / "EndFunction"
    subprocess.run([sys.executable, SRC / "package.py", target], check=True)
    # Then neither is shipped.
    assert names(target) == names(package)
    changed = Path("boto3", "__init__.py")
    assert (target / changed).read_bytes() == (package / changed).read_bytes()


def names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture
def environment(settings: Settings, aws: str) -> dict[str, str]:
    return {
        "TABLE_NAME": settings.table_name,
        "EVENT_BUS_NAME": "default",
        "ELEVATE_BASE_URL": settings.elevate_url,
        "AWS_ENDPOINT_URL": aws,
        "POWERTOOLS_SERVICE_NAME": "package",
        "POWERTOOLS_METRICS_NAMESPACE": "ElevateSessions",
    }


@pytest.mark.parametrize(
    ("function", "event", "answer"),
    [
        ("end", "api_end", {"statusCode": 204}),
        ("track", "api_track", {"statusCode": 204}),
        ("sweep", "scheduled_sweep", None),
    ],
)
def test_it_runs_as_lambda_runs_it(
    package: Path,
    environment: dict[str, str],
    elevate: FakeElevate,
    tmp_path: Path,
    function: str,
    event: str,
    answer: Any,
) -> None:
    with LambdaFunction(package, f"handler.{function}.handle", tmp_path, environment) as started:
        got = started.invoke(sample(event))
        log = (tmp_path / "function.log").read_text()
    if answer is None:
        assert got is None, log
    else:
        assert got.items() >= answer.items(), log
    assert "Traceback" not in log


# Each of these costs time at a cold start, and nothing here needs it. What boto3 needs is its own.
HEAVY = {
    "aws_xray_sdk",
    "pydantic",
    "requests",
    "aws_lambda_powertools.event_handler",
    "aws_lambda_powertools.utilities.parser",
    "aws_lambda_powertools.utilities.data_classes",
    "unittest",
    "asyncio",
}


@pytest.mark.parametrize("function", ["end", "track", "sweep"])
def test_no_heavy_module_is_imported(package: Path, function: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r})\n"
        f"import handler.{function}; from handler.application import application\n"
        "application(); print(*sys.modules)"
    )
    environment = {
        "TABLE_NAME": "t",
        "ELEVATE_BASE_URL": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "POWERTOOLS_METRICS_NAMESPACE": "n",
    }
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
