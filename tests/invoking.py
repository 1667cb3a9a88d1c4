"""Helpers for the tests of the handlers: samples, a Lambda context, an application."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emulated import FakeElevate
from handler import application as shared
from sessions.settings import Settings

EVENTS = Path(__file__).parent.parent / "events"


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """Return events/<name>.json with some of its members changed."""
    event: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return event | changes


def with_body(name: str, **changes: Any) -> dict[str, Any]:
    """Return a sample API event with some members of its JSON body changed."""
    event = sample(name)
    return event | {"body": json.dumps(json.loads(event["body"]) | changes)}


def moment(at: float) -> str:
    """Return epoch seconds as EventBridge writes the time of an event."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


class Context:
    """The part of Lambda's context object that the functions use."""

    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def __init__(self, seconds: float = 60) -> None:
        self._milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        """Return the time an invocation has left, as if none had passed."""
        return self._milliseconds


@pytest.fixture
def application(
    settings: Settings, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> Iterator[shared.Application]:
    """Build the functions' application as they do, from the environment."""
    variables = {
        "TABLE_NAME": settings.table_name,
        "EVENT_BUS_NAME": "default",
        "ELEVATE_BASE_URL": elevate.url,
        "MARKETS": "UK,SE",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget()
    yield shared.application()
    forget()


def forget() -> None:
    """Start over as a new execution environment would."""
    shared.application.cache_clear()


@dataclass
class FakeBus:
    """An EventBridge that takes at most `takes` entries of a call; ten is all that it allows."""

    takes: int = 10
    entries: list[dict[str, Any]] = field(default_factory=list)

    def put_events(self, entries: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Return status and answer."""
        if len(entries) > 10:
            return 400, {"__type": "ValidationException"}
        self.entries += entries[: self.takes]
        return 200, {"FailedEntryCount": max(0, len(entries) - self.takes), "Entries": []}


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBus]:
    """Point the functions at a bus of the test's own (tests/stack has a real one)."""
    fake = FakeBus()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["X-Amz-Target"] == "AWSEvents.PutEvents"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = fake.put_events(asked["Entries"])
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serve = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serve.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", f"http://127.0.0.1:{server.server_port}")
        yield fake
        server.shutdown()
        serve.join()
