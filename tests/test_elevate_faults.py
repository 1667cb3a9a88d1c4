"""Elevate's rows of the fault table in docs/operations.md, on real wires.

For each fault: what the caller gets, what the registry holds, which metric moves.
"""

import contextlib
import itertools
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emulated import Clock
from endings import new_session, service_of, sweep
from handler import end
from handler.application import application as build
from invoking import Context, forget, sample
from sessions.elevate import POOL_IDLE
from sessions.session import Activity
from sessions.settings import Settings
from wire import (
    NO_CONTENT,
    PATIENCE,
    SOON,
    client,
    never,
    over_tls,
    read_request,
    reset,
    secure,
    self_signed,
    silent_port,
    wire,
)

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


def late(connection: socket.socket, number: int) -> None:
    """Answer correctly, but after the time-out."""
    read_request(connection)
    connection.recv(1)  # returns when the client has given up
    connection.sendall(NO_CONTENT)


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
    "accepts and never answers": (never, KEPT),
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

# What is sent of, or around, an answer at once, and what follows; it must not become the answer
# to the next session. And the outcome.
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CHUNKED = NO_CONTENT[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
AROUND: dict[str, tuple[bytes, bytes, tuple[int, str, str]]] = {
    "103 early hints": (EARLY_HINTS, NO_CONTENT, KEPT),
    "chunked 204": (CHUNKED, b"0\r\n\r\n", DELIVERED),
    "204 with a body": (NO_CONTENT[:-2] + b"Content-Length: 5\r\n\r\n", b"hello", DELIVERED),
    "a second answer, before the next request": (NO_CONTENT, NO_CONTENT, DELIVERED),
}
# Faults with a test of their own.
OTHERS = {
    "bad TLS certificate",
    "DNS failure",
    "closes an idle connection",
    "closes a kept connection as the next request arrives",
    "drops idle connections silently",
    "a second answer, after the next request",
    "drips its answer",
    "several silent addresses",
    "time-outs, three in a row",
}
LATE = {"accepts and never answers", "answers slower than the time-out"}


@pytest.fixture
def at_elevate(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Return a helper that points the functions at an Elevate."""

    # A busy machine may take its time between two calls.
    monkeypatch.setattr("sessions.elevate.POOL_IDLE", 10 * PATIENCE)
    monkeypatch.setattr("sessions.elevate.POOL_AGE", 10 * PATIENCE)

    def point(url: str, *, time_out: float = PATIENCE) -> None:
        monkeypatch.setenv("TABLE_NAME", settings.table_name)
        monkeypatch.setenv("ELEVATE_BASE_URL", url)
        monkeypatch.setenv("ELEVATE_READ_TIMEOUT", str(time_out))
        monkeypatch.setenv("ELEVATE_CONNECT_TIMEOUT", str(time_out))
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


def reason() -> str | None:
    (status,) = build().ending.status(KEY)
    return status.last_reason


def metrics(output: str) -> set[str]:
    """Return the names of the metrics that moved."""
    blobs = [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
    (blob,) = blobs
    names = {m["Name"] for m in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    return {name for name in names if any(blob[name])}


@pytest.mark.parametrize("fault", ELEVATE)
def test_elevate(
    fault: str, at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    serve, (status, row, metric) = ELEVATE[fault]
    with wire(serve or never) as server:
        if serve is None:
            server.close()
        at_elevate(server.url, time_out=SOON if fault in LATE else PATIENCE)
        assert end_one() == status
    assert state() == row
    assert metric in metrics(capsys.readouterr().out)


def test_bad_tls_certificate(
    tmp_path: Path, at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with wire(over_tls(self_signed(tmp_path), NO_CONTENT)) as server:
        at_elevate(secure(server.url))
        assert end_one() == 202
    assert (state(), reason()) == ("retrying", "SSLError: SSLCertVerificationError")
    assert "Unavailable" in metrics(capsys.readouterr().out)


def test_dns_failure(at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    at_elevate("https://elevate.invalid")
    assert end_one() == 202
    assert (state(), reason()) == ("retrying", "NameResolutionError: gaierror")
    assert "Unavailable" in metrics(capsys.readouterr().out)


@pytest.mark.parametrize("fault", AROUND)
def test_an_answer_is_never_taken_for_the_next_sessions(
    fault: str, at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Elevate rejects all sessions but the first."""
    at_once, rest, (status, row, metric) = AROUND[fault]
    first_taken, all_sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        if number == 0:
            read_request(connection)
            connection.sendall(at_once)
            assert first_taken.wait(PATIENCE)
            with contextlib.suppress(ConnectionError):  # as it should be
                connection.sendall(rest)
            all_sent.set()
        answer("400 Bad Request")(connection, number)

    with wire(serve) as server:
        at_elevate(server.url)
        assert end_one() == status
        assert metric in metrics(capsys.readouterr().out)
        first_taken.set()
        assert all_sent.wait(PATIENCE)
        assert end_one(str(uuid.uuid4())) == 422
    assert state() == row


def test_a_second_answer_after_the_next_request(at_elevate: Callable[..., None]) -> None:
    """It is taken for that session's, as any HTTP/1.1 client would."""

    def serve(connection: socket.socket, number: int) -> None:
        for status in ("204 No Content", "400 Bad Request"):
            read_request(connection)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        never(connection, number)

    with wire(serve) as server:
        at_elevate(server.url)
        assert [end_one(), end_one(str(uuid.uuid4()))] == [204, 422]
        assert server.connections == 1


def test_closes_an_idle_connection(at_elevate: Callable[..., None]) -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        raw(NO_CONTENT)(connection, number)
        closed.set()

    with wire(serve) as server:
        at_elevate(server.url)
        assert end_one() == 204
        assert closed.wait(PATIENCE)
        assert end_one(str(uuid.uuid4())) == 204
        assert server.connections == 2


def test_closes_a_kept_connection_as_the_next_request_arrives(
    at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        read_request(connection)

    with wire(serve) as server:
        at_elevate(server.url)
        assert end_one(str(uuid.uuid4())) == 204
        capsys.readouterr()
        assert end_one() == 202
        assert "Unavailable" in metrics(capsys.readouterr().out)
        assert server.connections == 1
    assert state() == "retrying"


def test_drops_idle_connections_silently(settings: Settings, clock: Clock) -> None:
    """While the function is frozen, as its clock tells."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        ending = service_of(settings, clock, elevate=elevate).ending
        for expected in (1, 2):
            assert ending.end(new_session(), int(clock.now), "api").result == "delivered"
            assert server.connections == expected
            clock.turn(POOL_IDLE + 1)


@pytest.mark.waits
def test_drips_its_answer(
    at_elevate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each byte within the time-out, the whole after twice as long."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        started, left = time.monotonic(), threading.Event()

        def drip_until(seconds: float, piece: bytes) -> None:
            while time.monotonic() < started + seconds:
                connection.sendall(piece)
                left.wait(0.05)

        drip_until(4, b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(NO_CONTENT[:-2] + b"X: ")
        drip_until(8, b"y")
        connection.sendall(b"\r\n\r\n")

    with wire(serve) as server:
        at_elevate(server.url, time_out=3)
        assert end_one() == 204
    assert state() == "ended"
    assert "Delivered" in metrics(capsys.readouterr().out)


def test_several_silent_addresses(
    at_elevate: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_up = socket.getaddrinfo

    def three_times(host: str, *rest: Any, **options: Any) -> Any:
        found = look_up("127.0.0.1" if host == "localhost" else host, *rest, **options)
        return found * 3 if host == "localhost" else found

    monkeypatch.setattr(socket, "getaddrinfo", three_times)
    with silent_port() as port:
        at_elevate(f"http://localhost:{port}", time_out=SOON)
        started = time.monotonic()
        assert end_one() == 202
        assert time.monotonic() - started >= 3 * SOON
    assert state() == "retrying"
    assert "Unavailable" in metrics(capsys.readouterr().out)


def test_after_a_few_time_outs_the_api_does_not_wait_again(
    at_elevate: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sessions.breaker.PAUSE", 10 * PATIENCE)
    with wire(never) as server:
        at_elevate(server.url, time_out=SOON)
        assert {end_one(str(uuid.uuid4())) for _ in range(6)} == {202}
        assert server.connections == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert [metrics(line) & {"Unavailable", "ElevateLatency"} for line in lines] == [
        *[{"Unavailable", "ElevateLatency"}] * 3,
        *[{"Unavailable"}] * 3,
    ]


def test_a_hanging_elevate_ends_a_sweep_after_its_first_small_wave(
    settings: Settings, clock: Clock
) -> None:
    with wire(never) as server:
        hanging = replace(settings, elevate_url=server.url, read_timeout=SOON)
        service = service_of(hanging, clock)
        for _ in range(60):
            service.ending.track(Activity(new_session(), int(clock.now)))
        clock.turn(settings.idle)
        report = sweep(service)
        assert (report.given_up, report.counts["left"]) == (["UK"], 60 - report.counts["due"])
        # Those that time out together are the most; a few more are claimed before they have.
        assert 16 <= report.counts["due"] == server.connections <= 25


def test_every_fault_has_its_row_in_the_operators_manual_and_every_row_its_test() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    table = manual.split("| Elevate … |", 1)[1].split("\n\n", 1)[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert {name for row in rows for name in row.split(" · ")} == {*ELEVATE, *AROUND, *OTHERS}
