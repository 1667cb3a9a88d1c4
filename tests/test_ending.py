"""Claim → notify → settle, with a real registry and an Elevate whose answers the test sets."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulated import Clock, FakeElevate, Log
from endings import FOREVER, Service, end, ended_as_idle, new_session, service_of, state, sweep
from sessions.breaker import TIMEOUTS
from sessions.ending import BACKOFF_LIMIT, End, backoff, settlement
from sessions.session import Activity, Outcome, Row, Session, Settlement, Source, hashed
from sessions.settings import Settings
from wire import read_request, wire

# -- one explicit end --------------------------------------------------------------------------


def test_an_end_is_delivered_once_however_often_it_is_asked_for(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    session = new_session()
    assert [end(service, session, clock).result for _ in range(3)] == ["delivered", "over", "over"]
    assert elevate.keys() == [session.session_key]


def test_if_elevate_is_unavailable_the_end_is_kept_and_the_sweep_delivers_it(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    elevate.statuses = [503, 204]
    session = new_session()
    kept = end(service, session, clock)
    assert (kept.result, kept.status, kept.reason[:4]) == ("kept", 503, "no: ")
    assert state(service, session) == "retrying"
    clock.turn(2 * settings.retry_base)
    assert sweep(service).counts["delivered"] == 1
    assert state(service, session) == "ended"


def test_what_was_not_sent_does_not_count_as_an_attempt(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """The number of attempts decides how long the next one has to wait."""
    service = make(replace(settings, read_timeout=0.05))
    elevate.markets = {"UK": (204, 0.3)}
    sessions = [new_session() for _ in range(TIMEOUTS + 1)]
    assert {end(service, session, clock).result for session in sessions} == {"kept"}
    attempts = [service.ending.status(s.session_key)[0].attempts for s in sessions]
    assert attempts == [1] * TIMEOUTS + [0]


def test_a_rejection_is_reported_with_its_status_and_the_end_can_be_retried(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    elevate.statuses = [400, 204]
    session = new_session()
    rejected = end(service, session, clock)
    assert (rejected.result, rejected.status) == ("rejected", 400)
    assert end(service, session, clock).result == "delivered"


def test_a_late_event_for_a_session_that_is_long_over_sends_nothing(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings, log: Log
) -> None:
    long_ago = int(clock.now) - settings.session_limit - settings.slack
    session = new_session()
    assert service.ending.end(session, long_ago, "event").result == "over"
    assert state(service, session) == "expired"
    assert elevate.received == []
    (line,) = log()
    assert (line["outcome"], line["source"]) == ("expired", "event")


def test_many_ends_at_once(service: Service, clock: Clock, elevate: FakeElevate) -> None:
    sessions = [(new_session(), int(clock.now)) for _ in range(60)]
    ends = service.ending.end_all(sessions, "event", FOREVER)
    assert set(ends) == {End("delivered", 204)}
    assert sorted(elevate.keys()) == sorted(s.session_key for s, _ in sessions)


def test_a_list_is_ended_by_as_many_threads_as_are_configured(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    service = make(replace(settings, concurrency=2))
    changed, at_once, most = threading.Condition(), 0, 0

    def meet() -> None:
        nonlocal at_once, most
        with changed:
            at_once += 1
            most = max(most, at_once)
            changed.notify_all()
            changed.wait_for(lambda: most > 2, 0.1)
            at_once -= 1

    elevate.before_answer = meet
    service.ending.end_all([(new_session(), int(clock.now)) for _ in range(12)], "event", FOREVER)
    assert most == 2


def test_of_ends_that_run_out_of_time_the_first_is_done(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    sessions = [(new_session(), int(clock.now)) for _ in range(3)]
    ends = service.ending.end_all(sessions, "event", until=time.monotonic())
    assert ends == [End("delivered", 204), None, None]
    assert elevate.keys() == [sessions[0][0].session_key]


# -- a registry that is down -------------------------------------------------------------------


@pytest.fixture
def without_registry(
    settings: Settings, make: Callable[[Settings], Service], monkeypatch: pytest.MonkeyPatch
) -> Service:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    return make(settings)


@pytest.mark.parametrize(
    ("status", "result"), [(204, "delivered"), (400, "rejected"), (503, "lost")]
)
def test_without_a_registry_elevate_is_still_notified(
    without_registry: Service, clock: Clock, elevate: FakeElevate, status: int, result: str
) -> None:
    elevate.statuses = [status]
    assert end(without_registry, new_session(), clock).result == result
    assert len(elevate.received) == 1


def test_without_a_registry_the_caller_learns_when_to_try_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, clock: Clock, elevate: FakeElevate
) -> None:
    """After the time that Elevate asks for, or else that of a first retry."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    def busy(connection: socket.socket, number: int) -> None:
        header = b"" if number else b"Retry-After: 77\r\n"
        read_request(connection)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n" + header + b"\r\n")

    with wire(busy) as server:
        service = service_of(replace(settings, elevate_url=server.url), clock)
        told = [end(service, new_session(), clock).retry_after for _ in range(2)]
    assert told == [77, settings.retry_base]


@pytest.mark.parametrize(
    ("status", "source", "expected"),
    [
        (204, "event", End("delivered", 204)),
        (400, "api", End("rejected", 400, "no: …")),
        # Nobody would ever retry it, and an event has no caller: it must come again.
        (400, "event", End("lost", retry_after=30)),
        (503, "api", End("lost", retry_after=30)),
    ],
)
def test_an_end_without_a_registry_is_logged_and_reported(
    without_registry: Service,
    clock: Clock,
    elevate: FakeElevate,
    log: Log,
    status: int,
    source: Source,
    expected: End,
) -> None:
    elevate.statuses = [status]
    session = new_session()
    result = without_registry.ending.end(session, int(clock.now), source)
    assert replace(result, reason=result.reason[:5]) == expected
    failed, notified = log()
    assert (failed["operation"], failed["session"]) == ("claim", hashed(session.session_key))
    assert failed["error"] == "RegistryUnavailable: EndpointConnectionError"
    assert (notified["session"], notified["customer"]) == (
        hashed(session.session_key),
        hashed(session.customer_key),
    )
    assert (notified["attempt"], notified["source"]) == (1, source)


def test_a_track_that_cannot_be_written_down_is_lost_and_logged(
    without_registry: Service, clock: Clock, log: Log
) -> None:
    session = new_session()
    activities = [Activity(session, int(clock.now))]
    assert without_registry.ending.track_all(activities, FOREVER) == ["lost"]
    (line,) = log()
    assert (line["operation"], line["session"]) == ("track", hashed(session.session_key))
    assert line["error"] == "RegistryUnavailable: EndpointConnectionError"


def test_a_sweep_without_a_registry_reports_it_and_does_not_raise(
    without_registry: Service,
) -> None:
    assert sweep(without_registry).stopped == "registry"


# -- backoff and log lines ---------------------------------------------------------------------


TRIED_TWICE = Row(Session("UK", "session"), due_at=None, active_at=0, attempts=2)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("delivered", 204), Settlement("ended", None, 3, 204)),
        (Outcome("rejected", 400, "no"), Settlement("rejected", None, 3, 400, "no")),
        (Outcome("unavailable", 503, "busy"), Settlement("retrying", 0, 3, 503, "busy")),
        (
            Outcome("unavailable", reason="not sent", sent=False),
            Settlement("retrying", 0, 2, None, "not sent"),
        ),
    ],
)
def test_what_an_outcome_makes_of_a_session(
    settings: Settings, outcome: Outcome, expected: Settlement
) -> None:
    settled = settlement(TRIED_TWICE, outcome, 1000.9, settings)
    if expected.state == "retrying":
        assert settled.due_at in range(1001, 1000 + 30 * 2**3 + 1)
        settled = replace(settled, due_at=0)
    assert settled == expected


def test_a_retry_is_due_when_elevate_asked_for_it(settings: Settings) -> None:
    busy = Outcome("unavailable", 503, retry_after=600)
    assert settlement(TRIED_TWICE, busy, 1000.9, settings).due_at in range(1601, 1631)


@given(st.integers(min_value=0, max_value=10_000))
def test_backoff_has_full_jitter_up_to_a_limit(attempts: int) -> None:
    assert 1 <= backoff(30, attempts) <= min(BACKOFF_LIMIT, 30 * 2**attempts)


@given(st.integers(min_value=0, max_value=BACKOFF_LIMIT))
def test_backoff_honours_retry_after(retry_after: int) -> None:
    assert retry_after < backoff(30, 1, retry_after) <= retry_after + 30


def test_sessions_that_elevate_asked_to_wait_are_not_all_retried_at_once() -> None:
    assert {backoff(30, 1, 60) for _ in range(2000)} == set(range(61, 91))
    assert {backoff(30, 1) for _ in range(4000)} == set(range(1, 61))


def test_each_notification_is_logged_in_one_line_without_keys(
    service: Service, clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    elevate.statuses = [204, 400, 503]
    sessions = [new_session() for _ in range(3)]
    for session in sessions:
        end(service, session, clock)
    written = log()
    assert [(w["level"], w["outcome"], w["status"]) for w in written] == [
        ("INFO", "delivered", 204),
        ("ERROR", "rejected", 400),
        ("WARNING", "unavailable", 503),
    ]
    fields = {"market", "attempt", "source", "session", "customer", "latency_ms"}
    assert all(fields <= set(line) for line in written)
    for session in sessions:
        assert session.session_key not in json.dumps(written)
        assert str(session.customer_key) not in json.dumps(written)


# -- one key of many visitors ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["asked for", "quiet"])
def test_an_end_of_a_session_that_was_ended_for_another_visitor_is_seen(
    how: str,
    service: Service,
    clock: Clock,
    log: Log,
    elevate: FakeElevate,
) -> None:
    """A shop whose visitors share a key: only the first one's sign-out is sent."""
    first = ended_as_idle(service, clock) if how == "quiet" else new_session()
    if how == "asked for":
        end(service, first, clock)
    assert end(service, replace(first, customer_key=str(uuid.uuid4())), clock).result == "over"
    assert len(elevate.received) == 1
    line = log()[-1]
    assert (line["message"], line["level"]) == ("repeated end", "WARNING")
    assert line["result"] == "over for another"


def test_a_visitors_own_repeated_end_is_no_warning(
    service: Service, clock: Clock, log: Log, elevate: FakeElevate
) -> None:
    session = new_session()
    end(service, session, clock)
    same = replace(session, customer_key=str(session.customer_key).upper())
    for again in (session, same, replace(session, customer_key=None)):
        assert end(service, again, clock).result == "over"
    assert [line["message"] for line in log()] == ["notification"]
