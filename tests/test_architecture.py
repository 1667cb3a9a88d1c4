"""Arrows point one way: handler → {sweeping, ending} → {registry, elevate, telemetry} → values."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
HANDLERS = {"handler.end", "handler.track", "handler.sweep"}
# A module imports from the lines below its own only.
LAYERS = (
    HANDLERS,
    {"handler.elevate_routes"},
    {"handler.http"},
    {"handler.application"},
    {"handler", "handler.events"},
    {"sessions.sweeping"},
    {"sessions.crew", "sessions.ending", "sessions.lanes", "sessions.pacer"},
    {"sessions.elevate", "sessions.registry", "sessions.telemetry"},
    {"sessions.statements"},
    {"sessions.aws", "sessions.breaker"},
    {"sessions.settings", "sessions.schemas"},
    {"sessions.dialects"},
    {"sessions", "sessions.lifetime", "sessions.session"},
)
# External libraries, and the only modules that may use them; sessions.aws makes all clients.
ONLY = {
    "urllib3": {"sessions.elevate"},
    "boto3": {"sessions.aws"},
    "botocore": {"sessions.aws", "sessions.registry", "handler.events"},
    "fastjsonschema": {"sessions.schemas"},
}
NOBODY = {"requests", "pydantic", "aws_xray_sdk"}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SRC.rglob("*/*.py")
    }


def imports(path: Path) -> set[str]:
    """Return the modules and, with their module, the names that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_is_below_it(name: str) -> None:
    (place,) = (place for place, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[place + 1 :])
    assert imports(modules()[name]) & set(modules()) <= below


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_library_is_used_in_one_place(name: str) -> None:
    outside = {module.split(".")[0] for module in imports(modules()[name])}
    assert not outside & NOBODY
    for library, allowed in ONLY.items():
        assert library not in outside or name in allowed


def test_only_the_handlers_fetch_the_application() -> None:
    fetching = {
        name
        for name, path in modules().items()
        if "handler.application.application" in imports(path)
    }
    assert fetching == HANDLERS


@pytest.mark.parametrize("handler", sorted(HANDLERS))
def test_importing_needs_no_environment_and_opens_no_connection(handler: str) -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {handler}\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, check=True)


def test_each_sample_event_is_used_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for path in (ROOT / "events").glob("*.json"):
        json.loads(path.read_text())
        assert f'"{path.stem}"' in tests, path.name
