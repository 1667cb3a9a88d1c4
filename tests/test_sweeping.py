"""Sweeps of a real registry: due sessions are ended once; test_sweep_loop.py has the loop alone."""

import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from emulated import Clock, FakeElevate, Log
from endings import (
    ALL_SHARDS,
    FOREVER,
    IDLE,
    Service,
    end,
    new_session,
    service_of,
    state,
    sweep,
    tracked,
)
from faulty_dynamodb import FaultyDynamoDB
from sessions.dialects import STOREFRONT_V3
from sessions.ending import BACKOFF_LIMIT
from sessions.lanes import START
from sessions.lifetime import HOUR, MINUTE
from sessions.registry import BATCH
from sessions.session import Activity, Outcome, Session, hashed
from sessions.settings import Settings
from sessions.statements import SHARDS, shard_of
from sessions.sweeping import NAMED, SETTLE_RESERVE


def test_quiet_sessions_are_ended_and_active_ones_are_not(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    quiet = tracked(service, clock, 70)
    clock.turn(IDLE)
    tracked(service, clock, 5)
    report = sweep(service)
    assert (
        report.counts["due"],
        report.counts["claimed"],
        report.counts["delivered"],
        report.stopped,
    ) == (70, 70, 70, "")
    assert sorted(elevate.keys()) == sorted(s.session_key for s in quiet)
    assert sweep(service).counts["due"] == 0


def test_a_sweep_reports_the_age_of_the_oldest_session(service: Service, clock: Clock) -> None:
    tracked(service, clock, 1)
    clock.turn(100)
    tracked(service, clock, 1)
    clock.turn(IDLE)
    assert sweep(service).oldest == 100


def test_a_sweep_that_finds_elevate_down_leaves_most_for_later(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    sessions = tracked(service, clock, 4 * BATCH)
    clock.turn(IDLE)
    elevate.statuses = [503]
    report = sweep(service)
    assert (report.counts["retried"], report.given_up, report.stopped) == (START, ["UK"], "")
    assert (report.counts["left"], report.unfinished) == (len(sessions) - START, [])
    assert len(elevate.received) == START
    elevate.statuses = [204]
    clock.turn(2 * settings.retry_base)
    assert sweep(service).counts["delivered"] == len(sessions)


def test_a_shard_that_cannot_be_read_does_not_delay_the_others(
    settings: Settings, clock: Clock, elevate: FakeElevate, dynamodb: Any, log: Log
) -> None:
    class OneShardThrottled:
        def query(self, **arguments: Any) -> Any:
            if arguments["ExpressionAttributeValues"][":shard"] == {"N": "3"}:
                error: Any = {"Error": {"Code": "ThrottlingException"}}
                raise ClientError(error, "Query")
            return dynamodb.query(**arguments)

        def __getattr__(self, operation: str) -> Any:
            return getattr(dynamodb, operation)

    service = service_of(settings, clock, OneShardThrottled())
    sessions = tracked(service, clock, 40)
    clock.turn(IDLE)
    log()
    report = sweep(service)
    readable = [s.session_key for s in sessions if shard_of(s.session_key) != 3]
    assert sorted(elevate.keys()) == sorted(readable)
    assert report.stopped == "registry"
    failed = [line for line in log() if line["message"] == "registry failed"]
    assert [(line["operation"], line["error"]) for line in failed] == [
        ("query", "RegistryUnavailable: ThrottlingException")
    ]


def test_sessions_are_settled_even_if_the_log_cannot_be_written(
    service: Service, clock: Clock, elevate: FakeElevate, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    sessions = tracked(service, clock, 5)
    clock.turn(IDLE)
    handler = Logger().registered_handler
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(Full())
    assert sweep(service).counts["delivered"] == 5
    assert end(service, new_session(), clock).result == "delivered"
    assert {state(service, session) for session in sessions} == {"ended"}
    assert not any(s.session_key in capsys.readouterr().err for s in sessions)


def test_a_single_failure_does_not_stop_a_sweep(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    tracked(service, clock, 3 * BATCH)
    clock.turn(IDLE)
    elevate.statuses = [503, 400, 204]
    report = sweep(service)
    assert (report.counts["retried"], report.counts["rejected"], report.counts["delivered"]) == (
        1,
        1,
        3 * BATCH - 2,
    )


def test_a_sweep_out_of_time_sends_nothing_and_names_the_shards_left(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    tracked(service, clock, 40)
    clock.turn(IDLE)
    report = sweep(service, until=time.monotonic() + 1)
    assert (report.stopped, elevate.received) == ("time", [])
    assert report.unfinished == list(ALL_SHARDS), "nobody has looked at them"
    rest = service.sweeper.sweep(report.unfinished, FOREVER)
    assert rest.counts["delivered"] == 40


def test_what_another_sweep_has_claimed_is_skipped(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    tracked(service, clock, 5)
    clock.turn(IDLE)
    due = [row for s in ALL_SHARDS for row in service.registry.due(s, int(clock.now)).rows]
    service.registry.claim_due(due[:2])
    counts = sweep(service).counts
    assert (counts["due"], counts["skipped"], counts["claimed"]) == (5, 2, 3)


def test_simultaneous_sweeps_send_each_session_once(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
) -> None:
    several = [make(settings) for _ in range(3)]
    sessions = tracked(several[0], clock, 150)
    clock.turn(IDLE)
    with ThreadPoolExecutor() as threads:
        reports = list(threads.map(sweep, several))
    assert sum(report.counts["delivered"] for report in reports) == len(sessions)
    assert sorted(elevate.keys()) == sorted(s.session_key for s in sessions)


def test_a_session_past_its_deadline_expires_without_a_call(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    log: Log,
) -> None:
    """After 20 quiet minutes, Elevate 4 has ended a session without a click, but not one with."""
    elevate4 = make(replace(settings, dialect=STOREFRONT_V3, idle=20 * MINUTE))
    (passive,) = tracked(elevate4, clock, 1, interactive=False)
    (active,) = tracked(elevate4, clock, 1, interactive=True)
    clock.turn(20 * MINUTE)
    report = sweep(elevate4)
    assert (report.counts["expired"], report.counts["delivered"]) == (1, 1)
    assert state(elevate4, passive) == "expired"
    assert state(elevate4, active) == "ended"
    lines = [line for line in log() if "outcome" in line]
    assert {(line["outcome"], line["source"]) for line in lines} == {
        ("delivered", "sweep"),
        ("expired", "sweep"),
    }


def test_an_explicit_end_of_an_expired_session_is_sent(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    """That Elevate must have ended it was a guess; the caller knows of later activity."""
    (session,) = tracked(service, clock, 1)
    clock.turn(settings.session_limit + 2 * MINUTE)
    assert sweep(service).counts["expired"] == 1
    late = service.ending.end(session, int(clock.now) - settings.session_limit - 60, "event")
    assert (late.result, elevate.received) == ("over", [])
    assert end(service, session, clock).result == "delivered"
    assert state(service, session) == "ended"
    assert end(service, session, clock).result == "over"
    assert len(elevate.received) == 1


def test_retries_stop_at_the_deadline(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    settings = replace(settings, session_limit=2 * HOUR)
    service = make(settings)
    elevate.statuses = [503]
    session = new_session()
    end(service, session, clock)
    for _ in range(10):
        clock.turn(BACKOFF_LIMIT)
        sweep(service)
    assert state(service, session) == "expired"
    assert len(elevate.received) <= settings.session_limit // BACKOFF_LIMIT + 2


def test_changing_the_dialect_and_the_idle_time_loses_nothing(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    old = make(settings)
    tracked(old, clock, 5, interactive=True)
    elevate.statuses = [503]
    end(old, new_session(), clock)
    elevate.statuses = [204]
    clock.turn(IDLE)
    new = make(replace(settings, dialect=STOREFRONT_V3, idle=5 * MINUTE))
    assert sweep(new).counts["delivered"] == 6


def test_a_rate_that_leaves_no_time_for_all_sends_none_twice(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """What was claimed for a turn that came too late is given back, and due again."""
    slow = make(replace(settings, max_rate=0.2, connect_timeout=0.5, read_timeout=0.5))
    tracked(slow, clock, 10)
    clock.turn(IDLE)
    report = sweep(slow, time.monotonic() + 1.5 + SETTLE_RESERVE + 0.5)
    assert (report.stopped, report.handed_over) == ("time", 0)
    assert report.counts["delivered"] == len(elevate.received) < 10
    assert sweep(make(settings)).counts["delivered"] == 10 - report.counts["delivered"]
    assert len(set(elevate.keys())) == len(elevate.keys()) == 10


def test_a_bug_of_ours_does_not_keep_other_sessions_from_being_settled(
    service: Service, clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    sessions = tracked(service, clock, 5)
    clock.turn(IDLE)
    notify, faults = service.elevate.notify, iter([True])

    def fault(session: Session) -> Outcome:
        if next(faults, False):
            raise KeyError(session.session_key)
        return notify(session)

    service.elevate.notify = fault  # type: ignore[method-assign]
    report = sweep(service)
    assert (report.counts["delivered"], report.counts["retried"]) == (4, 1)
    assert [line["error"] for line in log() if line["message"] == "crashed"] == ["KeyError"]
    left = [service.ending.status(session.session_key)[0] for session in sessions]
    assert [one.last_reason for one in left if one.state == "retrying"] == ["KeyError"]
    clock.turn(BACKOFF_LIMIT)
    assert sweep(service).counts["delivered"] == 1
    assert len(elevate.keys()) == 5


def test_the_session_that_has_waited_longest_comes_first_whatever_its_shard(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    service = make(replace(settings, concurrency=1))
    sessions: list[Session] = []
    while len({shard_of(s.session_key) for s in sessions}) < SHARDS:
        sessions.append(new_session())
    by_shard = {shard_of(s.session_key): s for s in sessions}
    for shard in reversed(ALL_SHARDS):
        service.ending.track(Activity(by_shard[shard], int(clock.now)))
        clock.turn(61)
    clock.turn(IDLE)
    sweep(service)
    assert elevate.keys() == [by_shard[shard].session_key for shard in reversed(range(8))]


def test_each_notification_is_logged_when_it_happens(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    log: Log,
) -> None:
    """So the log shows what a killed sweep had sent."""
    service, lines = make(replace(settings, concurrency=1)), list[int]()
    elevate.before_answer = lambda: lines.append(len(log()))
    sessions = tracked(service, clock, 3)
    clock.turn(IDLE)
    sweep(service)
    assert lines == [0, 1, 2]
    written = [line for line in log() if line["message"] == "notification"]
    assert {line["session"] for line in written} == {hashed(s.session_key) for s in sessions}
    assert {(line["attempt"], line["source"]) for line in written} == {(1, "sweep")}


@pytest.mark.parametrize("count", [60, 600])
def test_expired_sessions_do_not_delay_the_others(
    service: Service, clock: Clock, settings: Settings, elevate: FakeElevate, count: int
) -> None:
    """After a long outage the oldest have expired, and those still to be sent come after them."""
    tracked(service, clock, count)
    clock.turn(settings.session_limit + settings.slack)
    tracked(service, clock, 5)
    clock.turn(IDLE)
    report = sweep(service)
    assert (report.counts["expired"], report.counts["delivered"]) == (count, 5)


def test_a_shard_of_several_pages_is_swept_to_its_end(
    service: Service, clock: Clock, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.registry.PAGE", 2)
    sessions = tracked(service, clock, 60)
    clock.turn(IDLE)
    report = sweep(service)
    assert sorted(elevate.keys()) == sorted(session.session_key for session in sessions)
    assert report.counts["backlog"] <= 2 * SHARDS, "the first pages"
    assert report.counts["due"] == 60, "no page was read twice"


def test_rows_that_cannot_be_read_are_counted_and_delay_no_others(
    service: Service, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    tracked(service, clock, 20)
    clock.turn(IDLE)
    for number in range(4):
        key = {"sessionKey": {"S": str(number)}, "market": {"S": "UK"}}
        bad = key | {"sweepShard": {"N": str(number // 2)}, "dueAt": {"N": "1"}}
        dynamodb.put_item(TableName=settings.table_name, Item=bad)
    counts = sweep(service).counts
    assert (counts["unreadable"], counts["backlog"], counts["delivered"]) == (4, 20, 20)


def test_a_backlog_is_claimed_and_settled_in_large_batches(
    dynamo: FaultyDynamoDB, settings: Settings, clock: Clock, elevate: FakeElevate
) -> None:
    service = service_of(replace(settings, concurrency=4), clock)
    tracked(service, clock, 400)
    clock.turn(IDLE)
    dynamo.calls.clear()
    assert sweep(service).counts["delivered"] == 400
    assert dynamo.calls.count("BatchExecuteStatement") <= 0.2 * 400


def test_a_line_names_some_of_the_markets_in_trouble_and_counts_all(
    service: Service, clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    """Callers may have made the markets up."""
    for number in range(NAMED + 5):
        tracked(service, clock, 1, market=f"market {number:02}")
    clock.turn(IDLE)
    elevate.statuses = [503]
    sweep(service)
    (line,) = [line for line in log() if line["message"] == "sweep"]
    assert line["given_up"] == [f"market {number:02}" for number in range(NAMED)]
    assert line["given_up_markets"] == NAMED + 5
