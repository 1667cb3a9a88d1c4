"""Hands of all measurements: sessions, tables, events, settings, and silence."""

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import botocore.session

from local.stack import ROOT, Stack
from registry_table import create_table
from sessions.elevate import query_of
from sessions.session import Session
from sessions.settings import Settings

FOREVER = 1e12


def dynamodb() -> Any:
    """Return a bare client."""
    return botocore.session.get_session().create_client("dynamodb")


def settings_of(stack: Stack, table: str) -> Settings:
    """Return settings that send to the stack's Elevate, patient on a busy machine."""
    return Settings(table, "", stack.elevate_url, connect_timeout=5, read_timeout=10)


def new_session() -> Session:
    """Return a session with fresh keys."""
    return Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))


def new_table() -> str:
    """Create a registry; return its name."""
    name = f"bench-{uuid.uuid4()}"
    create_table(dynamodb(), name)
    return name


def url_of(elevate_url: str, session: Session) -> str:
    """Return the URL of a session's end notification."""
    return f"{elevate_url}/api/v2/notifications/end?{query_of(session, 'web-v2')}"


def new_urls(elevate_url: str, count: int) -> list[str]:
    """Return the end notifications of fresh sessions."""
    return [url_of(elevate_url, new_session()) for _ in range(count)]


def sample(name: str) -> Any:
    """Return events/<name>.json."""
    return json.loads((ROOT / "events" / f"{name}.json").read_text())


def end_call() -> dict[str, Any]:
    """Return the sample call of the API that ends a session, with fresh keys."""
    body = {"market": "UK", "customerKey": str(uuid.uuid4()), "sessionKey": str(uuid.uuid4())}
    return {**sample("api_end"), "body": json.dumps(body)}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Write logs and metrics for real, to nowhere."""
    keep = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(keep, 1)
        os.close(nowhere)
        os.close(keep)
