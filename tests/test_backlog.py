"""Sweeps with more to do than fits in one batch, one page or one invocation."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from emulated import Clock, FakeElevate
from endings import IDLE, Service, new_session, service_of, state, sweep, tracked
from faulty_dynamodb import FaultyDynamoDB
from sessions.registry import Page, Registry
from sessions.settings import Settings
from sessions.statements import shard_of
from sessions.sweeping import ALL_SHARDS


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
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sessions.registry.PAGE", 4)
    service = make(replace(settings, shards=2))
    sessions = tracked(service, clock, 30)
    clock.turn(IDLE)
    report = sweep(service)
    assert sorted(elevate.keys()) == sorted(session.session_key for session in sessions)
    assert report.counts["backlog"] == 8, "the first pages of two shards"
    assert report.counts["due"] == 30, "no page was read twice"


def test_rows_that_cannot_be_read_are_counted_and_delay_no_others(
    service: Service, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    put_due(dynamodb, settings, clock, 20)
    for number in range(4):
        key = {"sessionKey": {"S": str(number)}, "market": {"S": "UK"}}
        bad = key | {"sweepShard": {"N": str(number // 2)}, "dueAt": {"N": "1"}}
        dynamodb.put_item(TableName=settings.table_name, Item=bad)
    counts = sweep(service).counts
    assert (counts["unreadable"], counts["backlog"], counts["delivered"]) == (4, 20, 20)


def test_a_backlog_is_claimed_and_settled_in_large_batches(
    dynamo: FaultyDynamoDB, settings: Settings, clock: Clock, elevate: FakeElevate
) -> None:
    """Each batch costs two calls; twenty at a time would be 0.1 a session."""
    service = service_of(replace(settings, concurrency=4), clock)
    tracked(service, clock, 400)
    clock.turn(IDLE)
    dynamo.calls.clear()
    assert sweep(service).counts["delivered"] == 400
    assert dynamo.calls.count("BatchExecuteStatement") <= 0.15 * 400


def test_reading_stops_when_time_runs_out(
    service: Service, clock: Clock, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elevate is down for the only market: reading the backlog stops in time."""
    elevate.statuses = [503]
    tracked(service, clock, 40)
    clock.turn(IDLE)
    rows = [row for shard in ALL_SHARDS for row in service.registry.due(shard, int(clock.now)).rows]
    pages = 0

    def endless(self: Registry, shard: int, until: int, start: Any = None) -> Page:
        nonlocal pages
        pages += 1
        if pages > 2000:
            raise AssertionError("kept reading after its time was up")
        time.sleep(0.01)
        return Page(rows * 10, 0, {"at": pages} if shard == 0 else None)

    monkeypatch.setattr(Registry, "due", endless)
    started = time.monotonic()
    service.sweeper.sweep([0], started + 20 + 1)  # the last call starts 20 s before the end
    assert time.monotonic() - started < 4


def test_a_real_sweep_of_one_large_market_is_completed(
    service: Service, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    put_due(dynamodb, settings, clock, 2500)
    report = sweep(service)
    assert (report.counts["delivered"], report.left) == (2500, [])


def put_due(dynamodb: Any, settings: Settings, clock: Clock, count: int, **more: Any) -> None:
    for at in range(0, count, 25):
        requests = []
        for _ in range(min(25, count - at)):
            s = new_session()
            shard = shard_of(s.session_key, settings.shards)
            item = {
                "sessionKey": {"S": s.session_key},
                "market": {"S": s.market},
                "customerKey": {"S": s.customer_key},
                "state": {"S": "open"},
                "activeAt": {"N": str(int(clock.now) - IDLE)},
                "dueAt": {"N": str(int(clock.now))},
                "sweepShard": {"N": str(shard)},
                "attempts": {"N": "0"},
                "leaseUntil": {"N": "0"},
            } | more
            requests.append({"PutRequest": {"Item": item}})
        dynamodb.batch_write_item(RequestItems={settings.table_name: requests})


def test_sessions_that_were_read_ahead_are_reported_as_left(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """Time runs out in the middle: all rows have been read, but most still wait."""
    service = make(replace(settings, concurrency=1, connect_timeout=0.1, read_timeout=0.3))
    sessions = tracked(service, clock, 60)
    clock.turn(IDLE)
    elevate.markets = {"UK": (204, 0.1)}
    report = sweep(service, time.monotonic() + 8.5 + 1.0)
    waiting = {
        shard_of(s.session_key, settings.shards) for s in sessions if state(service, s) == "open"
    }
    assert report.stopped == "time"
    assert set(report.left) >= waiting
    assert report.given_up == []
