"""What all measurements use: sessions, tables, calls, events, and what they are measured on."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session

from local.stack import BIN, ROOT, Stack
from registry_table import create_table
from sessions.elevate import Elevate
from sessions.session import Session
from sessions.settings import Settings

OURS = ROOT / "src"
YARDSTICK = ROOT / "bench" / "yardstick"
PLAIN, LEAN = YARDSTICK / "plain", YARDSTICK / "lean"

# The last commit before the sweep, the registry and the notification were rewritten. Figures differ
# from machine to machine: whether that made it faster shows only in one run of both.
BEFORE = "7ff6b21"


@cache
def before() -> Path:
    """Unpack the src/ of BEFORE, to run with today's packages; return where it is.

    Raises SystemExit in a clone that has no such commit.
    """
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "src"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        sys.exit(
            f"make bench compares with commit {BEFORE}, which this clone does not have (if it is"
            f" shallow: git fetch --unshallow). Git says: {archive.stderr.decode().strip()}"
        )
    folder = ROOT / ".local" / "bench" / "before"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    shutil.copy(OURS / "requirements.txt", folder / "src")
    return folder / "src"


def package(stack: Stack, name: str, source: Path) -> Path:
    """Make the package of the functions in a src/ as `sam build` does."""
    folder = stack.folder / "cold" / name / "EndFunction"
    subprocess.run([sys.executable, source / "package.py", folder], check=True)
    return folder


def yardstick(stack: Stack) -> Path:
    """Build the plain and the lean function by a plain `sam build`; return where they are."""
    folder = stack.folder / "cold"
    command = [str(BIN / "sam"), "build", "--cached", "--cache-dir", str(folder / "cache")]
    options = ["-t", str(YARDSTICK / "template.yaml"), "--build-dir", str(folder / "yardstick")]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([*command, *options], check=True, env=environment, capture_output=True)
    return folder / "yardstick"


def dynamodb() -> Any:
    """Return a bare client."""
    return botocore.session.get_session().create_client("dynamodb")


def new_table() -> str:
    """Create a registry; return its name."""
    name = f"bench-{uuid.uuid4()}"
    create_table(dynamodb(), name)
    return name


def new_session() -> Session:
    """Return a session with fresh keys."""
    return Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))


def new_sessions(count: int) -> list[Session]:
    """Return sessions with fresh keys."""
    return [new_session() for _ in range(count)]


def payload(session: Session) -> dict[str, Any]:
    """Return a session as callers name it."""
    return {
        "market": session.market,
        "customerKey": session.customer_key,
        "sessionKey": session.session_key,
    }


def sample(name: str) -> Any:
    """Return events/<name>.json."""
    return json.loads((ROOT / "events" / f"{name}.json").read_text())


def end_call() -> dict[str, Any]:
    """Return the call of the API that ends a session with fresh keys."""
    return {**sample("api_end"), "body": json.dumps(payload(new_session()))}


def track_call() -> dict[str, Any]:
    """Return the call of the API that tracks a session with fresh keys."""
    key = str(uuid.uuid4())
    path = {"path": f"/sessions/{key}", "pathParameters": {"sessionKey": key}}
    return {**sample("api_track"), **path}


def event(name: str, sessions: Sequence[Session], at: float | None = None) -> dict[str, Any]:
    """Return the event `name` of some sessions, at some epoch seconds or now."""
    some = [payload(session) for session in sessions]
    detail = some[0] if len(some) == 1 else {"sessions": some}
    time = {"time": datetime.fromtimestamp(at, UTC).isoformat()} if at else {}
    return {**sample(name), **time, "detail": detail}


def sweep_event(shards: Sequence[int]) -> dict[str, Any]:
    """Return the event that sweeps these shards."""
    return {"detail-type": "Session Sweep", "detail": {"shards": list(shards)}}


def notification() -> bytes:
    """Return an end notification as our client sends it."""

    def received() -> bytes:
        connection, _ = server.accept()
        with connection:
            request = connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        return request

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        request = thread.submit(received)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        Elevate(Settings("", "", url)).notify(new_session())
        return request.result()
