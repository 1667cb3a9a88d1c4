"""Fixtures: the registry's table on the emulator, a scripted Elevate, a clock set by hand."""

import contextlib
import http.server
import io
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import botocore.session
import pytest
from aws_lambda_powertools import Logger

from emulator import ministack
from registry_table import create_table
from sessions.settings import Settings
from sessions.telemetry import Telemetry

# The structured lines logged since the test began.
type Log = Callable[[], list[dict[str, Any]]]


@dataclass
class Clock:
    """A clock that stands still until it is turned forward."""

    now: float = 1_006_516_800.0  # 2001-11-23T12:00:00Z

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class FakeElevate:
    """Answers each notification with the next of `statuses`, and then repeats the last one."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [204])
    received: list[dict[str, str]] = field(default_factory=list)
    before_answer: Callable[[], None] = lambda: None
    # A market's own status, and the seconds to wait before it.
    markets: dict[str, tuple[int, float]] = field(default_factory=dict)

    def keys(self) -> list[str]:
        """Return the session keys received, in order."""
        return [query["esales.sessionKey"] for query in self.received]


@pytest.fixture
def elevate() -> Iterator[FakeElevate]:
    fake = FakeElevate()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query))
            with lock:
                fake.received.append(query)
                status = fake.statuses.pop(0) if len(fake.statuses) > 1 else fake.statuses[0]
            fake.before_answer()
            status, seconds = fake.markets.get(query.get("esales.market", ""), (status, 0.0))
            time.sleep(seconds)
            # A refusal echoes the request, keys and all, as many servers do.
            body = b"" if status == 204 else f"no: {self.path} {unquote(self.path)}".encode()
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have given up
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # the default of 5 refuses a sweep's threads

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start MiniStack for the tests that need no deployed stack; return its endpoint."""
    folder = tmp_path_factory.mktemp("ministack")
    # One may be running already, as for the many short runs of `make mutate`.
    running = os.environ.get("MINISTACK")
    with contextlib.nullcontext(running) if running else ministack(folder) as endpoint:
        credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        changes = credentials | {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "eu-west-1"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            yield endpoint


@pytest.fixture(scope="session")
def dynamodb(aws: str) -> Any:
    return botocore.session.get_session().create_client("dynamodb")


@pytest.fixture(autouse=True)
def log() -> Log:
    """Return a helper that reads the structured lines logged since the test began.

    Powertools' handler keeps the stream that was stdout when it was created, so each test sets one.
    """
    written = io.StringIO()
    Telemetry()
    handler = Logger().registered_handler
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    return lambda: [json.loads(line) for line in written.getvalue().splitlines()]


@pytest.fixture
def settings(dynamodb: Any, elevate: FakeElevate) -> Settings:
    """Return settings with an empty registry of their own; sessions idle out after 30 minutes."""
    name = f"registry-{uuid.uuid4()}"
    create_table(dynamodb, name)
    return Settings(
        table_name=name,
        event_bus_name="default",
        elevate_url=elevate.url,
        markets=("UK", "SE", "Sverige & Norge/ü"),
        connect_timeout=5,
        read_timeout=5,
    )
