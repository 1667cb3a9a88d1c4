"""Sweeps: due sessions are ended once, in time and at Elevate's pace; with a real registry."""

import io
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from emulated import Clock, FakeElevate, Log
from endings import FOREVER, IDLE, Service, end, new_session, state, sweep, tracked
from sessions.breaker import TIMEOUTS
from sessions.dialects import STOREFRONT_V3
from sessions.elevate import Elevate
from sessions.ending import BACKOFF_LIMIT
from sessions.lifetime import HOUR, MINUTE
from sessions.registry import BATCH, Registry
from sessions.session import Activity, Outcome, Session
from sessions.settings import Settings
from sessions.statements import shard_of
from sessions.sweeping import ALL_SHARDS, SETTLE_RESERVE, Sweeper
from sessions.telemetry import Telemetry, hashed


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


def test_a_sweep_that_finds_elevate_down_stops_after_its_first_batch(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    sessions = tracked(service, clock, 4 * BATCH)
    clock.turn(IDLE)
    elevate.statuses = [503]
    report = sweep(service)
    assert (report.counts["retried"], report.stopped, report.left) == (BATCH, "elevate", [])
    assert len(elevate.received) == BATCH
    elevate.statuses = [204]
    clock.turn(2 * settings.retry_base)
    assert sweep(service).counts["delivered"] == len(sessions)


@pytest.mark.parametrize("trouble", [(500, 0.0), (204, 1.0)], ids=["fails", "hangs"])
@pytest.mark.parametrize(("ill", "well"), [(100, 100), (900, 100)], ids=["half", "90 %"])
def test_a_market_in_trouble_does_not_delay_the_others(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    trouble: tuple[int, float],
    ill: int,
    well: int,
) -> None:
    """Its sessions are the oldest, and there are many; each tick still ends all the others."""
    service = make(replace(settings, read_timeout=0.3))
    elevate.markets = {"SE": trouble}
    tracked(service, clock, ill, market="SE")
    for _ in range(2):
        clock.turn(MINUTE)
        tracked(service, clock, well, market="UK")
        clock.turn(IDLE)
        before = len(elevate.received)
        report = sweep(service)
        assert (report.counts["delivered"], report.given_up) == (well, ["SE"])
        assert len(elevate.received) - before - well <= 30
        clock.turn(BACKOFF_LIMIT)


def test_an_outage_of_all_markets_costs_no_more_than_an_outage_of_one(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    for market in settings.markets:
        tracked(service, clock, 40, market=market)
    clock.turn(IDLE)
    elevate.statuses = [503]
    report = sweep(service)
    assert (report.counts["retried"], report.stopped) == (24, "elevate")
    assert report.given_up == sorted(settings.markets)


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

    registry = Registry(settings, OneShardThrottled(), clock)
    sweeper = Sweeper(settings, registry, Elevate(settings), Telemetry(), clock)
    sessions = [new_session() for _ in range(40)]
    for session in sessions:
        registry.track(Activity(session, int(clock.now)))
    clock.turn(IDLE)
    report = sweeper.sweep(ALL_SHARDS, FOREVER)
    readable = [s.session_key for s in sessions if shard_of(s.session_key, settings.shards) != 3]
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


def test_each_answer_releases_at_most_two_more_sessions(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """Slow start: one batch at first, however many threads there are."""
    service = make(replace(settings, concurrency=8 * BATCH))
    tracked(service, clock, 8 * BATCH)
    clock.turn(IDLE)
    changed = threading.Condition()
    arrived, answered, too_many = 0, 0, 0

    def before_answer() -> None:
        nonlocal arrived, answered, too_many
        with changed:
            arrived += 1
            changed.notify_all()
            too_many += arrived > BATCH + 2 * answered
            assert changed.wait_for(lambda: arrived >= BATCH, 10)
            answered += 1

    elevate.before_answer = before_answer
    assert sweep(service).counts["delivered"] == 8 * BATCH
    assert not too_many


def test_a_sweep_out_of_time_sends_nothing_and_names_the_shards_left(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    shards = {shard_of(s.session_key, 8) for s in tracked(service, clock, 40)}
    clock.turn(IDLE)
    report = sweep(service, until=time.monotonic() + 1)
    assert (report.stopped, elevate.received) == ("time", [])
    assert set(report.left) == shards
    rest = service.sweeper.sweep(report.left, FOREVER)
    assert rest.counts["delivered"] == 40


def test_the_last_notification_leaves_time_for_its_answer_and_for_settling(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    tracked(service, clock, 3)
    clock.turn(IDLE)
    needed = 2 * settings.connect_timeout + settings.read_timeout + SETTLE_RESERVE
    assert sweep(service, time.monotonic() + needed - 1).stopped == "time"
    assert elevate.received == []
    assert sweep(service, time.monotonic() + needed + 10).counts["delivered"] == 3


@pytest.fixture
def slowly(
    settings: Settings, make: Callable[[Settings], Service], elevate: FakeElevate
) -> tuple[Service, float]:
    """Return a sweeper with one thread, and the seconds it needs after its last notification."""
    elevate.markets = {"UK": (204, 1.2)}
    service = make(replace(settings, concurrency=1, connect_timeout=1, read_timeout=3))
    return service, 5 + SETTLE_RESERVE


def test_a_batch_is_given_back_when_time_runs_out_in_the_middle(
    slowly: tuple[Service, float], clock: Clock, elevate: FakeElevate
) -> None:
    service, needed = slowly
    sessions = tracked(service, clock, 30)
    clock.turn(IDLE)
    report = sweep(service, time.monotonic() + needed + 1)
    assert report.stopped == "time"
    assert report.counts["delivered"] == len(elevate.received) == 1
    assert report.counts["held_back"] == report.counts["due"] - 1
    due = {s.session_key for s in sessions} - set(elevate.keys())
    assert set(report.left) >= {shard_of(key, 8) for key in due}
    elevate.markets = {}
    assert service.sweeper.sweep(report.left, FOREVER).counts["delivered"] == len(due)
    assert len(set(elevate.keys())) == len(elevate.keys())


def test_a_sweep_that_finishes_just_in_time_is_not_reported_as_stopped(
    slowly: tuple[Service, float], clock: Clock
) -> None:
    """Its last answer comes when there is no time for another call."""
    service, needed = slowly
    tracked(service, clock, 1)
    clock.turn(IDLE)
    report = sweep(service, time.monotonic() + needed + 1)
    assert (report.counts["delivered"], report.stopped, report.left) == (1, "", [])


def test_each_notification_is_logged_when_it_happens(
    slowly: tuple[Service, float], clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    """So the log shows what a killed sweep had sent."""
    service, _ = slowly
    elevate.markets, lines = {}, list[int]()
    elevate.before_answer = lambda: lines.append(len(log()))
    sessions = tracked(service, clock, 3)
    clock.turn(IDLE)
    sweep(service)
    assert lines == [0, 1, 2]
    assert {line["session"] for line in log()} == {hashed(one.session_key) for one in sessions}
    assert {(line["attempt"], line["source"]) for line in log()} == {(1, "sweep")}


def test_what_is_held_back_is_not_claimed(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    item: Callable[[Session], dict[str, Any]],
) -> None:
    """Meanwhile its visitor may come back or sign out."""
    service = make(replace(settings, read_timeout=0.05))
    (session,) = tracked(service, clock, 1)
    elevate.markets = {"UK": (204, 0.3)}
    for _ in range(TIMEOUTS):
        end(service, new_session(), clock)
    clock.turn(IDLE)
    before = item(session)
    report = sweep(service)
    assert (report.counts["claimed"], report.counts["held_back"]) == (0, 1 + TIMEOUTS)
    assert report.stopped == "elevate"
    assert item(session) == before


def test_what_is_not_sent_after_a_few_time_outs_counts_as_held_back(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    service = make(replace(settings, read_timeout=0.05, concurrency=1))
    elevate.markets = {"UK": (204, 0.3)}
    tracked(service, clock, 5)
    clock.turn(IDLE)
    counts = sweep(service).counts
    assert (counts["retried"], counts["held_back"]) == (TIMEOUTS, 5 - TIMEOUTS)


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
    assert {(line["outcome"], line["source"]) for line in log()} == {
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


@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8), (32, 1)])
def test_changing_the_number_of_shards_loses_nothing(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    before: int,
    after: int,
) -> None:
    tracked(make(replace(settings, shards=before)), clock, 50)
    clock.turn(IDLE)
    assert sweep(make(replace(settings, shards=after))).counts["delivered"] == 50


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


def test_a_sweep_stays_within_elevates_rate(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    slow = make(replace(settings, max_rate=50))
    tracked(slow, clock, 40)
    clock.turn(IDLE)
    started = time.monotonic()
    assert sweep(slow).counts["delivered"] == 40
    assert time.monotonic() - started >= 39 / 50


@pytest.mark.parametrize("rate", [2, 0.2])
def test_a_low_rate_does_not_make_a_sweep_overrun_its_time(
    settings: Settings,
    make: Callable[[Settings], Service],
    clock: Clock,
    elevate: FakeElevate,
    rate: float,
) -> None:
    """Sixteen threads ask for a turn; one whose turn would be too late gives its session back."""
    slow = make(replace(settings, max_rate=rate, connect_timeout=0.5, read_timeout=0.5))
    tracked(slow, clock, 40)
    clock.turn(IDLE)
    last_call = 2 * 0.5 + 0.5 + SETTLE_RESERVE
    started = time.monotonic()
    report = sweep(slow, started + last_call + 1.2)
    assert time.monotonic() - started < 2.5
    assert report.stopped == "time"
    assert report.left
    assert report.counts["delivered"] == len(elevate.received) <= 4
    assert report.counts["claimed"] <= report.counts["delivered"] + max(1, rate)
    fast = make(settings)
    assert sweep(fast).counts["delivered"] == 40 - report.counts["delivered"]
    assert len(set(elevate.keys())) == len(elevate.keys()) == 40


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


def test_a_session_is_not_claimed_long_before_its_turn(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """Until it is claimed, its visitor can come back."""
    slow = make(replace(settings, max_rate=5, connect_timeout=0.5, read_timeout=0.5))
    tracked(slow, clock, 60)
    clock.turn(IDLE)
    report = sweep(slow, time.monotonic() + 1 + SETTLE_RESERVE + 1)
    assert 0 < report.counts["claimed"] <= report.counts["delivered"] + 5


def test_the_session_that_has_waited_longest_comes_first_whatever_its_shard(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    service = make(replace(settings, concurrency=1))
    sessions: list[Session] = []
    while len({shard_of(s.session_key, settings.shards) for s in sessions}) < settings.shards:
        sessions.append(new_session())
    by_shard = {shard_of(s.session_key, settings.shards): s for s in sessions}
    for shard in reversed(range(settings.shards)):
        service.ending.track(Activity(by_shard[shard], int(clock.now)))
        clock.turn(61)
    clock.turn(IDLE)
    sweep(service)
    assert elevate.keys() == [by_shard[shard].session_key for shard in reversed(range(8))]
