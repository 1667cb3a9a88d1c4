"""The simulated Elevate, and helpers that talk to it over the wire."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from local.simulated_elevate import SimulatedElevate

CUSTOMER = "d9528030-509c-4e0f-b585-7168f1e9feca"
SESSION = "b106299c-eac0-4f6f-96d2-93e57c255784"
V2 = {"esales.market": "UK", "esales.customerKey": CUSTOMER, "esales.sessionKey": SESSION}
V3 = {"market": "UK", "customerKey": "visitor 7", "sessionKey": "session/7"}
KEYS = {"customerKey": "visitor", "sessionKey": "session"}


@pytest.fixture
def simulated() -> Iterator[SimulatedElevate]:
    with SimulatedElevate(markets=("UK", "Sverige & Norge/ü")) as elevate:
        yield elevate


@contextlib.contextmanager
def connected(simulated: SimulatedElevate) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(simulated.url).netloc, timeout=10)
    with contextlib.closing(connection):
        yield connection


@contextlib.contextmanager
def raw(simulated: SimulatedElevate) -> Iterator[socket.socket]:
    address = urlsplit(simulated.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        yield connection


def send(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection.request(method, target, body)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def ask(simulated: SimulatedElevate, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    with connected(simulated) as connection:
        given = None if body is None else json.dumps(body).encode()
        status, answer, _ = send(connection, method, target, given)
        return status, json.loads(answer) if answer.startswith(b"{") else answer


def end(simulated: SimulatedElevate, path: str, query: dict[str, str] | str) -> int:
    text = query if isinstance(query, str) else urlencode(query, quote_via=quote, safe="")
    status, body = ask(simulated, "POST", f"{path}?{text}")
    assert len(body) < 200
    assert bool(body) == (status != 204)
    return status


def wait_for_one(simulated: SimulatedElevate) -> dict[str, Any]:
    """Return the only notification, as soon as there is one."""
    deadline = time.monotonic() + 10
    while not (received := simulated.notifications()) and time.monotonic() < deadline:
        time.sleep(0.01)
    (one,) = received
    return one
