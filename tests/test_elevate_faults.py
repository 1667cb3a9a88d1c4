"""Elevate's rows of the fault table in docs/operations.md, on real wires.

For each fault: what the caller gets, what the registry holds, which metric moves.
"""

import itertools
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emulated import Clock
from endings import service_of, sweep
from handler import end
from handler.application import application as build
from invoking import Context, forget, sample
from sessions.session import Activity, Session
from sessions.settings import Settings
from wire import read_request, reset, wire

ROOT = Path(__file__).parent.parent
KEY = sample("session_ended")["detail"]["sessionKey"]


def answer(status: str, *headers: str, body: bytes = b"") -> Callable[[socket.socket, int], None]:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(head.encode() + b"\r\n\r\n" + body)

    return serve


def raw(*pieces: bytes, end_with: Callable[[socket.socket], None] = socket.socket.close) -> Any:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        for piece in pieces:
            connection.sendall(piece)
        end_with(connection)

    return serve


def silent(connection: socket.socket, number: int) -> None:
    while read_request(connection):
        pass


def late(connection: socket.socket, number: int) -> None:
    """Answer correctly, but after the time-out."""
    read_request(connection)
    connection.settimeout(2)
    connection.recv(1)  # returns when the client has given up
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def endless(connection: socket.socket, number: int) -> None:
    read_request(connection)
    for piece in itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"x: y\r\n" * 500)):
        connection.sendall(piece)


def endless_body(connection: socket.socket, number: int) -> None:
    read_request(connection)
    head = b"HTTP/1.1 500 Oh\r\nContent-Length: 999999999\r\n\r\n"
    for piece in itertools.chain([head], itertools.repeat(b"x" * 4096)):
        connection.sendall(piece)


KEPT = (202, "retrying", "Unavailable")
REJECTED = (422, "rejected", "Rejected")
DELIVERED = (204, "ended", "Delivered")

# The name of the row in docs/operations.md, how Elevate behaves, and the outcome.
ELEVATE: dict[str, tuple[Any, tuple[int, str, str]]] = {
    "refuses connections": (None, KEPT),
    "accepts and never answers": (silent, KEPT),
    "answers slower than the time-out": (late, KEPT),
    "resets mid-answer": (raw(b"HTTP/1.1 204", end_with=reset), KEPT),
    "500": (answer("500 Internal Server Error"), KEPT),
    "502": (answer("502 Bad Gateway"), KEPT),
    "503": (answer("503 Service Unavailable"), KEPT),
    "503 with Retry-After": (answer("503 Service Unavailable", "Retry-After: 60"), KEPT),
    "429": (answer("429 Too Many Requests", "Retry-After: 999999999"), KEPT),
    "400": (answer("400 Bad Request", body=b"unknown market"), REJECTED),
    "403": (answer("403 Forbidden"), REJECTED),
    "404": (answer("404 Not Found"), REJECTED),
    "301": (answer("301 Moved Permanently", "Location: http://127.0.0.1:9/"), KEPT),
    "302": (answer("302 Found", "Location: http://127.0.0.1:9/"), KEPT),
    "200 with a body": (answer("200 OK", body=b"thanks"), DELIVERED),
    "garbage bytes": (raw(b"\x16\x03\x01\xff garbage\r\n"), KEPT),
    "endless header": (endless, KEPT),
    "endless body": (endless_body, KEPT),
}

# What comes around a 204, at once and later: it must not become the next session's answer.
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
AROUND_204 = {
    "103 early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + NO_CONTENT, b""),
    "chunked 204": (NO_CONTENT[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"),
    "a second answer": (NO_CONTENT + NO_CONTENT[:9], NO_CONTENT[9:]),
}


@pytest.fixture
def at_elevate(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Return a helper that points the functions at an Elevate."""

    def point(url: str) -> None:
        monkeypatch.setenv("TABLE_NAME", settings.table_name)
        monkeypatch.setenv("ELEVATE_BASE_URL", url)
        monkeypatch.setenv("ELEVATE_READ_TIMEOUT", "0.4")
        monkeypatch.setenv("ELEVATE_CONNECT_TIMEOUT", "0.4")
        forget()

    yield point
    forget()


def end_one(key: str = KEY) -> int:
    event = sample("api_end")
    event["body"] = event["body"].replace(KEY, key)
    got = end.handle(event, Context())
    assert got is not None
    assert key not in got["body"]
    return int(got["statusCode"])


def state() -> str:
    (status,) = build().ending.status(KEY)
    return status.state


def metrics(output: str) -> set[str]:
    """Return the names of the metrics that moved."""
    blobs = [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
    (blob,) = blobs
    names = {m["Name"] for m in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    return {name for name in names if any(blob[name])}


@pytest.mark.parametrize("fault", ELEVATE)
def test_elevate(
    fault: str, at_elevate: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    serve, (status, row, metric) = ELEVATE[fault]
    with wire(serve or silent) as server:
        if serve is None:
            server.close()
        at_elevate(server.url)
        assert end_one() == status
    assert state() == row
    assert metric in metrics(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("fault", "url"),
    [
        ("DNS failure", "https://elevate.invalid"),
        ("bad TLS certificate", "https://localhost:{port}"),
    ],
)
def test_elevate_cannot_be_trusted_or_found(
    fault: str, url: str, at_elevate: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with wire(raw(b"this is not TLS")) as server:
        at_elevate(url.format(port=server.url.rsplit(":", 1)[1]))
        assert end_one() == 202
    assert state() == "retrying"
    assert "Unavailable" in metrics(capsys.readouterr().out)


@pytest.mark.parametrize("fault", AROUND_204)
def test_an_answer_is_never_taken_for_the_next_sessions(
    fault: str, at_elevate: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Elevate accepts the first session and rejects all others."""

    def serve(connection: socket.socket, number: int) -> None:
        rest = b""
        if number == 0:
            at_once, rest = AROUND_204[fault]
            read_request(connection)
            connection.sendall(at_once)
        while read_request(connection):
            connection.sendall(rest + b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with wire(serve) as server:
        at_elevate(server.url)
        assert end_one() == 204
        assert "Delivered" in metrics(capsys.readouterr().out)
        assert end_one(str(uuid.uuid4())) == 422
    assert state() == "ended"


def test_a_pooled_connection_closed_while_the_function_was_frozen_is_replaced(
    at_elevate: Callable[[str], None],
) -> None:
    with wire(raw(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        at_elevate(server.url)
        assert end_one() == 204
        assert end_one(str(uuid.uuid4())) == 204
        assert server.connections == 2


def test_after_a_few_time_outs_the_api_does_not_wait_again(
    at_elevate: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def one() -> float:
        started = time.monotonic()
        assert end_one(str(uuid.uuid4())) == 202
        return time.monotonic() - started

    with wire(silent) as server:
        at_elevate(server.url)
        waited = [one() for _ in range(3)]
        held_back = min(one() for _ in range(3))
    assert min(waited) >= 0.4
    assert held_back < 0.1
    assert server.connections == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert [metrics(line) & {"Unavailable", "ElevateLatency"} for line in lines] == [
        *[{"Unavailable", "ElevateLatency"}] * 3,
        *[{"Unavailable"}] * 3,
    ]


def test_a_hanging_elevate_ends_a_sweep_after_its_first_small_wave(
    settings: Settings, clock: Clock
) -> None:
    with wire(silent) as server:
        hanging = replace(settings, elevate_url=server.url, read_timeout=0.2)
        service = service_of(hanging, clock)
        for _ in range(60):
            session = Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))
            service.ending.track(Activity(session, int(clock.now)))
        clock.turn(settings.idle)
        report = sweep(service)
        assert report.stopped == "elevate"
        assert report.counts["due"] == 25
        assert server.connections <= settings.concurrency


def test_every_fault_has_its_row_in_the_operators_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    others = ["DNS failure", "bad TLS certificate", "pooled connection"]
    rows = [*ELEVATE, *AROUND_204, *others]
    missing = [row for row in rows if row not in manual]
    assert missing == []
