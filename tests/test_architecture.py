"""Arrows point one way: handler → {sweeping, ending} → {registry, elevate, telemetry} → values."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"

# What each module may import of the others; all may import the values.
VALUES = {"sessions.session", "sessions.lifetime", "sessions.dialects", "sessions.settings"}
MAY_IMPORT = {
    "sessions.session": set(),
    "sessions.lifetime": set(),
    "sessions.dialects": {"sessions.lifetime"},
    "sessions.settings": VALUES,
    "sessions.schemas": VALUES,
    "sessions.breaker": set(),
    "sessions.connection": set(),
    "sessions.elevate": VALUES | {"sessions.breaker", "sessions.connection"},
    "sessions.aws": set(),
    "sessions.items": VALUES,
    "sessions.statements": VALUES | {"sessions.items"},
    "sessions.registry": VALUES
    | {"sessions", "sessions.aws", "sessions.items", "sessions.statements"},
    "sessions.telemetry": VALUES,
    "sessions.ending": VALUES | {"sessions.elevate", "sessions.registry", "sessions.telemetry"},
    "sessions.pacer": set(),
    "sessions.lanes": VALUES | {"sessions.registry"},
    "sessions.sweeping": VALUES
    | {"sessions.elevate", "sessions.ending", "sessions.lanes", "sessions.registry"}
    | {"sessions.pacer", "sessions.statements", "sessions.telemetry"},
}
# External libraries, and the only modules that may use them.
ONLY = {
    "urllib3": {"sessions.connection", "sessions.elevate"},
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
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_is_below_it(name: str) -> None:
    known = imports(modules()[name])
    inside = {m for m in known if m.split(".")[0] in {"handler", "sessions"}}
    if name.startswith("sessions"):
        assert inside <= MAY_IMPORT.get(name, set())
    else:
        entrances = {f"handler.{entrance}" for entrance in ("end", "track", "sweep")}
        assert not inside & entrances, "entrances do not import each other"
    outside = {m.split(".")[0] for m in known}
    assert not outside & NOBODY
    for library, allowed in ONLY.items():
        assert library not in outside or name in allowed


@pytest.mark.parametrize("entrance", ["end", "track", "sweep"])
def test_importing_needs_no_environment_and_opens_no_connection(entrance: str) -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection at import')\n"
        "socket.socket.connect = refuse\n"
        f"import handler.{entrance}\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, check=True)


@pytest.mark.parametrize("kind", ["on-demand", "snap-start"])
def test_a_snapshot_holds_the_application_and_no_connection(kind: str) -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection before the snapshot')\n"
        "socket.socket.connect = refuse\n"
        "import handler.end\n"
        "from handler.application import application\n"
        "print(application.cache_info().currsize)\n"
    )
    environment = {
        "PYTHONPATH": str(SRC),
        "AWS_LAMBDA_INITIALIZATION_TYPE": kind,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "TABLE_NAME": "table",
        "ELEVATE_CLUSTER_ID": "w1a2b3c4d",
        "POWERTOOLS_METRICS_NAMESPACE": "test",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(int(kind == "snap-start"))


def test_no_module_is_too_large() -> None:
    """Past 300 lines a file has a second reason to change."""
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert not {name: size for name, size in sizes.items() if size > 300}
    assert sum(sizes.values()) <= 3100, 'docs/decisions.md, "src/ is a third larger than drawn"'


def test_each_sample_event_is_used_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for path in (ROOT / "events").glob("*.json"):
        json.loads(path.read_text())
        assert f'"{path.stem}"' in tests, path.name
