"""The fault table of docs/operations.md, row by row and on real wires.

For each fault: what the caller gets, what the registry holds, which metric moves.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emulated import Clock, FakeElevate
from endings import Service, new_session, service_of, sweep, tracked
from endings import end as end_again
from endings import state as state_of
from faulty_dynamodb import Drop, FaultyDynamoDB, faulty_dynamodb
from handler import end
from handler.application import application as build
from handlers import Context, forget, sample
from sessions.session import LEASE_SECONDS, Activity, RegistryUnavailable, Session
from sessions.settings import Settings
from sessions.sweeping import ALL_SHARDS
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


# -- DynamoDB ----------------------------------------------------------------------------------


@pytest.fixture
def dynamo(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyDynamoDB]:
    with faulty_dynamodb(aws) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        yield faulty


@pytest.fixture
def service(settings: Settings, dynamo: FaultyDynamoDB, clock: Clock) -> Service:
    """Return an application whose DynamoDB may fail; its faults are in the log."""
    return service_of(settings, clock)


def test_a_throttled_call_is_retried(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    dynamo.throttles = 2
    assert service.ending.end(new_session(), int(clock.now), "api").result == "delivered"


def test_a_call_that_stays_throttled_or_slow_does_not_keep_elevate_waiting(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate, log: Any
) -> None:
    dynamo.throttles = 1000
    assert service.ending.end(new_session(), int(clock.now), "api").result == "delivered"
    elevate.statuses = [503]
    assert service.ending.end(new_session(), int(clock.now), "api").result == "lost"
    assert {line["operation"] for line in log() if line["message"] == "registry failed"} == {
        "claim"
    }


def test_a_slow_registry_is_given_up_on(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    def slow(operation: str) -> None:
        time.sleep(2.2)  # the fault itself: longer than the SDK's read time-out

    dynamo.before = slow
    started = time.monotonic()
    assert service.ending.end(new_session(), int(clock.now), "api").result == "delivered"
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "code",
    [
        *("ThrottlingError", "ProvisionedThroughputExceeded", "RequestLimitExceeded"),
        *("InternalServerError", "TransactionConflict"),
    ],
)
def test_statements_that_fail_briefly_are_retried(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate, code: str
) -> None:
    tracked(service, clock, 30)
    clock.turn(1800)
    rejections = iter([code] * 8)
    dynamo.statement_errors = lambda statements: {
        n: code
        for n, code in zip(range(len(statements)), itertools.islice(rejections, 1), strict=False)
    }
    assert sweep(service).counts["delivered"] == 30


@pytest.mark.parametrize("code", ["ThrottlingError", "ValidationError"])
def test_statements_that_fail_for_good_leave_their_rows_due(
    service: Service,
    dynamo: FaultyDynamoDB,
    clock: Clock,
    elevate: FakeElevate,
    log: Any,
    code: str,
) -> None:
    tracked(service, clock, 12)
    clock.turn(1800)
    dynamo.statement_errors = lambda statements: {0: code}
    first = sweep(service)
    assert first.counts["delivered"] < 12
    assert any(line["message"] == "registry failed" for line in log())
    dynamo.statement_errors = lambda statements: {}
    clock.turn(LEASE_SECONDS + 1)
    sweep(service)
    assert len(set(elevate.keys())) == 12


def test_a_sweep_whose_every_statement_is_refused_stops_and_says_so(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    """For want of a privilege, say: the calls succeed, but no statement in them does."""
    tracked(service, clock, 60)
    clock.turn(1800)
    dynamo.statement_errors = lambda statements: dict.fromkeys(range(len(statements)), "Denied")
    report = sweep(service)
    assert (report.stopped, report.counts["skipped"], report.counts["claimed"]) == (
        "registry",
        0,
        0,
    )
    assert 0 < report.counts["failed"] < 60
    assert elevate.received == []
    dynamo.statement_errors = lambda statements: {}
    assert sweep(service).counts["delivered"] == 60


def test_what_was_written_before_the_registry_failed_is_not_forgotten(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, settings: Settings
) -> None:
    tracked(service, clock, 12)
    clock.turn(settings.session_limit + 1800)
    registry, now = service.registry, int(clock.now)
    rows = [row for shard in ALL_SHARDS for row in registry.due(shard, now).rows]

    def throttle(statements: Any) -> dict[int, str]:
        dynamo.throttles = 1000  # from the next call on, whole calls
        return {0: "ThrottlingError"}

    dynamo.statement_errors = throttle
    written = registry.expire(rows)
    assert (written.done, written.failed) == (rows[1:], ["ThrottlingException"])


def test_tracks_that_run_out_of_time_are_lost_and_can_be_sent_again(
    service: Service, clock: Clock
) -> None:
    activities = [Activity(new_session(), int(clock.now)) for _ in range(3)]
    activities.append(activities[0])
    assert service.ending.track_all(activities, time.monotonic()) == ["lost"] * 4
    assert service.ending.track_all(activities, time.monotonic() + 60) == ["tracked"] * 4


def test_one_duplicate_does_not_make_a_long_list_of_tracks_run_one_by_one(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock
) -> None:
    """All threads meet at DynamoDB; of the session that comes twice, the last activity counts."""
    meeting = threading.Barrier(4, timeout=10)
    activities = [Activity(new_session(), int(clock.now)) for _ in range(8)]
    clicked = replace(activities[0], interactive=True)

    def meet(operation: str) -> None:
        meeting.wait()

    dynamo.before = meet
    tracked = service.ending.track_all([*activities[:7], clicked], time.monotonic() + 60)
    assert (tracked, meeting.broken) == (["tracked"] * 8, False)
    dynamo.before = lambda operation: None
    clock.turn(1800)
    rows = [row for shard in ALL_SHARDS for row in service.registry.due(shard, int(clock())).rows]
    assert [row.interactive for row in rows if row.session == clicked.session] == [True]


def test_tracks_of_one_session_keep_their_order(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock
) -> None:
    """The first is slow; the second, a sign-in, still has the last word."""
    first, second = itertools.count(), threading.Event()

    def hold_the_first(operation: str) -> None:
        if next(first):
            second.set()
        else:
            second.wait(0.5)

    dynamo.before = hold_the_first
    session = new_session()
    signed_in = replace(session, customer_key=str(uuid.uuid4()))
    activities = [Activity(one, int(clock.now)) for one in (session, signed_in)]
    service.ending.track_all(activities, time.monotonic() + 60)
    clock.turn(1800)
    rows = [row for shard in ALL_SHARDS for row in service.registry.due(shard, int(clock())).rows]
    assert [row.session for row in rows] == [signed_in]


def test_a_batch_that_fails_as_a_whole_leaves_its_rows_due(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    tracked(service, clock, 5)
    clock.turn(1800)

    def drop(operation: str) -> None:
        if operation == "BatchExecuteStatement":
            raise Drop

    dynamo.before = drop
    report = sweep(service)
    assert (report.counts["delivered"], report.counts["failed"], report.stopped) == (
        0,
        5,
        "registry",
    )
    dynamo.before = lambda operation: None
    assert sweep(service).counts["delivered"] == 5


def test_a_lost_answer_to_a_claim_does_not_lose_the_claim(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    lose = iter([True])

    def drop(operation: str) -> None:
        if next(lose, False):
            raise Drop

    dynamo.after = drop
    session = new_session()
    assert service.ending.end(session, int(clock.now), "api").result == "delivered"
    assert elevate.keys() == [session.session_key]
    assert dynamo.calls[:2] == ["UpdateItem", "UpdateItem"]


def test_a_lost_answer_to_a_settlement_changes_nothing(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    lose = iter([False, True])

    def drop(operation: str) -> None:
        if next(lose, False):
            raise Drop

    dynamo.after = drop
    session = new_session()
    assert service.ending.end(session, int(clock.now), "api").result == "delivered"
    (status,) = service.ending.status(session.session_key)
    assert status.state == "ended"


@pytest.mark.parametrize("fault", ["call", "statement"])
@pytest.mark.parametrize(
    ("status", "result"), [(204, "delivered"), (400, "rejected"), (503, "lost")]
)
def test_an_end_whose_outcome_cannot_be_written_is_not_reported_as_kept(
    service: Service,
    dynamo: FaultyDynamoDB,
    clock: Clock,
    elevate: FakeElevate,
    fault: str,
    status: int,
    result: str,
) -> None:
    """Its claim is not in the due index: nothing would ever try it again."""

    def drop(operation: str) -> None:
        if operation == "BatchExecuteStatement":
            raise Drop

    if fault == "call":
        dynamo.before = drop
    else:
        dynamo.statement_errors = lambda batch: dict.fromkeys(range(len(batch)), "AccessDenied")
    elevate.statuses = [status]
    session = new_session()
    assert end_again(service, session, clock).result == result
    dynamo.before, dynamo.statement_errors = lambda operation: None, lambda batch: {}
    clock.turn(1)
    assert end_again(service, session, clock).result == "kept", "a repeated end is kept"


def test_a_registry_that_fails_while_tracking_is_reported_to_the_caller(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock
) -> None:
    dynamo.throttles = 1000
    with pytest.raises(RegistryUnavailable, match="ThrottlingException"):
        tracked(service, clock, 1)


# -- Lambda ------------------------------------------------------------------------------------

VICTIM = """
from handler import end, sweep
from handlers import Context, sample
function, event = {"end": (end, "api_end"), "sweep": (sweep, "scheduled_sweep")}[NAME]
function.handle(sample(event), Context())
"""


@pytest.fixture
def victim(settings: Settings, dynamo: FaultyDynamoDB, elevate: FakeElevate) -> Iterator[Any]:
    """Return a helper that starts a function in a process of its own, to be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
            "TABLE_NAME": settings.table_name,
            "EVENT_BUS_NAME": "default",
            "ELEVATE_BASE_URL": elevate.url,
            "AWS_ENDPOINT_URL": dynamo.url,
        }
        code = f"NAME = {name!r}{VICTIM}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def kill_at(
    operation: str, after: bool, dynamo: FaultyDynamoDB, process: Callable[[], Any], nth: int = 1
) -> None:
    count = itertools.count(1)

    def kill(seen: str) -> None:
        if seen == operation and next(count) == nth:
            os.kill(process().pid, signal.SIGKILL)
            raise Drop

    if after:
        dynamo.after = kill
    else:
        dynamo.before = kill


@pytest.mark.parametrize(
    ("operation", "after", "sent", "repeated", "sent_in_all"),
    [
        ("UpdateItem", False, 0, "delivered", 1),  # nothing was written
        ("UpdateItem", True, 0, "kept", 1),  # claimed, not notified
        ("BatchExecuteStatement", False, 1, "kept", 2),  # not settled: the one duplicate
        ("BatchExecuteStatement", True, 1, "over", 1),  # settled
    ],
    ids=["before claim", "between claim and notify", "between notify and settle", "after settle"],
)
def test_a_function_killed_between_two_steps(
    settings: Settings,
    dynamo: FaultyDynamoDB,
    elevate: FakeElevate,
    victim: Any,
    operation: str,
    after: bool,
    sent: int,
    repeated: str,
    sent_in_all: int,
) -> None:
    """Its caller gets no answer, and so calls again: nothing had been accepted."""
    processes: list[Any] = []
    kill_at(operation, after, dynamo, lambda: processes[0])
    processes.append(victim("end"))
    assert processes[0].wait(30) == -signal.SIGKILL
    assert len(elevate.received) == sent
    dynamo.before = dynamo.after = lambda operation: None
    later = Clock(time.time())
    survivor = service_of(settings, later)
    body = json.loads(sample("api_end")["body"])
    session = Session("UK", KEY, body["customerKey"])
    assert end_again(survivor, session, later).result == repeated
    sweep(survivor)
    assert len(elevate.received) == sent + (repeated == "delivered"), "a lease still holds"
    later.turn(LEASE_SECONDS + 1)
    sweep(survivor)
    assert len(elevate.received) == sent_in_all
    assert state_of(survivor, session) == "ended"


def test_a_sweep_that_is_killed_in_the_middle_loses_nothing(
    settings: Settings, dynamo: FaultyDynamoDB, elevate: FakeElevate, victim: Any
) -> None:
    """At most what was in flight is sent twice: a batch of 25 in each thread."""
    now = Clock(time.time())
    survivor = service_of(settings, now)
    sessions = [new_session() for _ in range(200)]
    for session in sessions:
        survivor.ending.track(Activity(session, int(now.now) - settings.idle - 1))
    processes: list[Any] = []
    kill_at("BatchExecuteStatement", False, dynamo, lambda: processes[0], nth=40)
    processes.append(victim("sweep"))
    assert processes[0].wait(30) == -signal.SIGKILL
    before = len(elevate.received)
    assert before > 0
    now.now = time.time() + LEASE_SECONDS + 1
    sweep(survivor)
    assert set(elevate.keys()) == {session.session_key for session in sessions}
    twice = len(elevate.received) - len(sessions)
    assert twice <= settings.concurrency * 25


def test_every_fault_has_its_row_in_the_operators_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    others = ["DNS failure", "bad TLS certificate", "pooled connection"]
    rows = [*ELEVATE, *AROUND_204, *others]
    missing = [row for row in rows if row not in manual]
    assert missing == []
