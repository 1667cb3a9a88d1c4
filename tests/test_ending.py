"""Claim → notify → settle, with a real registry and an Elevate that answers as told."""

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulated import Clock, FakeElevate
from sessions.aws import DynamoDB
from sessions.elevate import Elevate, Outcome
from sessions.ending import (
    ALL_SHARDS,
    BACKOFF_LIMIT,
    SETTLE_RESERVE,
    End,
    Ending,
    Pacer,
    Sweep,
    backoff,
)
from sessions.lifetime import HOUR, MINUTE
from sessions.registry import BATCH, Registry, shard_of
from sessions.session import Activity, Session
from sessions.settings import Settings

type Log = Callable[[], list[dict[str, Any]]]

IDLE = 30 * MINUTE
FOREVER = 1e12


@pytest.fixture
def make(clock: Clock) -> Callable[[Settings], Ending]:
    return lambda settings: Ending(
        settings, Registry(settings, clock=clock), Elevate(settings), clock=clock
    )


@pytest.fixture
def ending(settings: Settings, make: Callable[[Settings], Ending]) -> Ending:
    return make(settings)


def new_session() -> Session:
    return Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))


def end(ending: Ending, session: Session, clock: Clock) -> End:
    return ending.end(session, int(clock.now), "api", "request")


def sweep(ending: Ending, until: float = FOREVER) -> Sweep:
    return ending.sweep(ALL_SHARDS, until, "tick")


def tracked(ending: Ending, clock: Clock, count: int, **changes: Any) -> list[Session]:
    sessions = [new_session() for _ in range(count)]
    for session in sessions:
        assert ending.track(Activity(session, int(clock.now), **changes))
    return sessions


def state(ending: Ending, session: Session) -> str:
    (status,) = ending.status(session.session_key)
    return status.state


# -- one explicit end --------------------------------------------------------------------------


def test_an_end_is_delivered_once_however_often_it_is_asked_for(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    session = new_session()
    assert [end(ending, session, clock).result for _ in range(3)] == ["delivered", "over", "over"]
    assert elevate.keys() == [session.session_key]


def test_an_unavailable_elevate_means_kept_and_the_sweep_delivers(
    ending: Ending, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    elevate.statuses = [503, 204]
    session = new_session()
    assert end(ending, session, clock).result == "kept"
    assert state(ending, session) == "retrying"
    clock.turn(2 * settings.retry_base)
    assert sweep(ending).delivered == 1
    assert state(ending, session) == "ended"


def test_a_rejection_is_told_with_its_status_and_may_be_asked_for_again(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    elevate.statuses = [400, 204]
    session = new_session()
    rejected = end(ending, session, clock)
    assert (rejected.result, rejected.status) == ("rejected", 400)
    assert end(ending, session, clock).result == "delivered"


def test_a_late_event_of_a_session_that_is_long_over_sends_nothing(
    ending: Ending, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    long_ago = int(clock.now) - settings.session_limit - settings.slack
    session = new_session()
    assert ending.end(session, long_ago, "event", "redriven").result == "over"
    assert state(ending, session) == "expired"
    assert elevate.received == []


def test_many_ends_at_once(ending: Ending, clock: Clock, elevate: FakeElevate) -> None:
    sessions = [(new_session(), int(clock.now)) for _ in range(60)]
    ends = ending.end_all(sessions, "event", "event", FOREVER)
    assert {e.result for e in ends} == {"delivered"}
    assert sorted(elevate.keys()) == sorted(s.session_key for s, _ in sessions)


def test_ends_for_which_there_is_no_time_are_kept_for_the_sweep(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    sessions = [(new_session(), int(clock.now)) for _ in range(3)]
    ends = ending.end_all(sessions, "event", "event", until=time.monotonic())
    assert {e.result for e in ends} == {"kept"}
    assert elevate.received == []
    assert sweep(ending).delivered == 3


# -- a registry that is down -------------------------------------------------------------------


@pytest.fixture
def without_registry(settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Ending:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    nowhere = DynamoDB(1)
    return Ending(settings, Registry(settings, nowhere, clock), Elevate(settings), clock=clock)


@pytest.mark.parametrize(
    ("status", "result"), [(204, "delivered"), (400, "rejected"), (503, "lost")]
)
def test_without_a_registry_elevate_is_notified_all_the_same(
    without_registry: Ending, clock: Clock, elevate: FakeElevate, status: int, result: str
) -> None:
    elevate.statuses = [status]
    assert end(without_registry, new_session(), clock).result == result
    assert len(elevate.received) == 1


def test_a_sweep_without_a_registry_says_so_and_does_not_raise(without_registry: Ending) -> None:
    assert sweep(without_registry).stopped == "registry"


# -- sweeps ------------------------------------------------------------------------------------


def test_quiet_sessions_are_ended_and_live_ones_are_not(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    quiet = tracked(ending, clock, 70)
    clock.turn(IDLE)
    tracked(ending, clock, 5)
    report = sweep(ending)
    assert (report.due, report.claimed, report.delivered, report.stopped) == (70, 70, 70, "")
    assert sorted(elevate.keys()) == sorted(s.session_key for s in quiet)
    assert sweep(ending).due == 0


def test_a_sweep_tells_the_age_of_the_oldest(ending: Ending, clock: Clock) -> None:
    tracked(ending, clock, 1)
    clock.turn(100)
    tracked(ending, clock, 1)
    clock.turn(IDLE)
    assert sweep(ending).oldest == 100


def test_a_sweep_that_finds_elevate_down_stops_after_its_first_batch(
    ending: Ending, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    sessions = tracked(ending, clock, 4 * BATCH)
    clock.turn(IDLE)
    elevate.statuses = [503]
    report = sweep(ending)
    assert (report.unavailable, report.stopped, report.left) == (BATCH, "elevate", [])
    assert len(elevate.received) == BATCH
    elevate.statuses = [204]
    clock.turn(2 * settings.retry_base)
    assert sweep(ending).delivered == len(sessions)


def test_a_single_failure_does_not_stop_a_sweep(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    tracked(ending, clock, 3 * BATCH)
    clock.turn(IDLE)
    elevate.statuses = [503, 400, 204]
    report = sweep(ending)
    assert (report.unavailable, report.rejected, report.delivered) == (1, 1, 3 * BATCH - 2)


def test_an_answer_lets_no_more_than_two_more_sessions_go(
    settings: Settings, make: Callable[[Settings], Ending], clock: Clock, elevate: FakeElevate
) -> None:
    """Slow start: one batch at first, however many threads there are."""
    ending = make(replace(settings, concurrency=8 * BATCH))
    tracked(ending, clock, 8 * BATCH)
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
    assert sweep(ending).delivered == 8 * BATCH
    assert not too_many


def test_out_of_time_a_sweep_sends_nothing_and_names_what_is_left(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    shards = {shard_of(s.session_key, 8) for s in tracked(ending, clock, 40)}
    clock.turn(IDLE)
    report = sweep(ending, until=time.monotonic() + 1)
    assert (report.stopped, elevate.received) == ("time", [])
    assert set(report.left) == shards
    rest = ending.sweep(report.left, FOREVER, "hand-over")
    assert rest.delivered == 40


def test_two_sweeps_at_once_send_each_session_once(
    settings: Settings,
    make: Callable[[Settings], Ending],
    clock: Clock,
    elevate: FakeElevate,
) -> None:
    several = [make(settings) for _ in range(3)]
    sessions = tracked(several[0], clock, 150)
    clock.turn(IDLE)
    with ThreadPoolExecutor() as threads:
        reports = list(threads.map(sweep, several))
    assert sum(report.delivered for report in reports) == len(sessions)
    assert sorted(elevate.keys()) == sorted(s.session_key for s in sessions)


def test_a_session_past_its_deadline_expires_without_a_call(
    settings: Settings,
    make: Callable[[Settings], Ending],
    clock: Clock,
    elevate: FakeElevate,
    log: Log,
) -> None:
    """Elevate 4 has ended a session of 20 silent minutes without a click; one with it, not yet."""
    elevate4 = make(replace(settings, dialect="storefront-v3", idle=20 * MINUTE))
    (passive,) = tracked(elevate4, clock, 1, interactive=False)
    (active,) = tracked(elevate4, clock, 1, interactive=True)
    clock.turn(20 * MINUTE)
    report = sweep(elevate4)
    assert (report.expired, report.delivered) == (1, 1)
    assert state(elevate4, passive) == "expired"
    assert state(elevate4, active) == "ended"
    assert sorted(line["outcome"] for line in log()) == ["delivered", "expired"]


def test_who_asks_for_the_end_of_an_expired_session_has_it_sent(
    ending: Ending, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    """That Elevate must have ended it was a guess; the caller knows of a later sign of life."""
    (session,) = tracked(ending, clock, 1)
    clock.turn(settings.session_limit + 2 * MINUTE)
    assert sweep(ending).expired == 1
    late = ending.end(session, int(clock.now) - settings.session_limit - 60, "event", "old news")
    assert (late.result, elevate.received) == ("over", [])
    assert end(ending, session, clock).result == "delivered"
    assert state(ending, session) == "ended"
    assert end(ending, session, clock).result == "over"
    assert len(elevate.received) == 1


def test_retries_end_at_the_deadline(
    settings: Settings, make: Callable[[Settings], Ending], clock: Clock, elevate: FakeElevate
) -> None:
    settings = replace(settings, session_limit=2 * HOUR)
    ending = make(settings)
    elevate.statuses = [503]
    session = new_session()
    end(ending, session, clock)
    for _ in range(10):
        clock.turn(BACKOFF_LIMIT)
        sweep(ending)
    assert state(ending, session) == "expired"
    assert len(elevate.received) <= settings.session_limit // BACKOFF_LIMIT + 2


def test_rejected_sessions_are_retried_by_market(
    ending: Ending, clock: Clock, elevate: FakeElevate
) -> None:
    elevate.statuses = [400]
    british, swedish = new_session(), replace(new_session(), market="SE")
    for session in (british, swedish):
        end(ending, session, clock)
    elevate.statuses = [204]
    assert ending.retry_rejected("SE", ALL_SHARDS, FOREVER, "").claimed == 1
    clock.turn(MINUTE)
    assert sweep(ending).delivered == 1
    assert (state(ending, british), state(ending, swedish)) == ("rejected", "ended")
    assert ending.retry_rejected(None, ALL_SHARDS, FOREVER, "").claimed == 1


@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8), (32, 1)])
def test_another_number_of_shards_loses_nothing(
    settings: Settings,
    make: Callable[[Settings], Ending],
    clock: Clock,
    before: int,
    after: int,
) -> None:
    tracked(make(replace(settings, shards=before)), clock, 50)
    clock.turn(IDLE)
    assert sweep(make(replace(settings, shards=after))).delivered == 50


def test_another_dialect_and_a_shorter_idle_limit_lose_nothing(
    settings: Settings, make: Callable[[Settings], Ending], clock: Clock, elevate: FakeElevate
) -> None:
    old = make(settings)
    tracked(old, clock, 5, interactive=True)
    elevate.statuses = [503]
    end(old, new_session(), clock)
    elevate.statuses = [204]
    clock.turn(IDLE)
    new = make(replace(settings, dialect="storefront-v3", idle=5 * MINUTE))
    assert sweep(new).delivered == 6


def test_a_rate_is_kept_evenly() -> None:
    """Sixteen threads share it; 500 turns at 50 a second take ten seconds, within 5 %."""
    now = [100.0]
    turns: list[float] = []
    pacer = Pacer(50, clock=lambda: now[0], sleep=lambda seconds: turns.append(now[0] + seconds))
    for _ in range(501):
        pacer.wait(FOREVER)
        now[0] += 0.001  # a caller comes every millisecond: far more than the rate
    spent = turns[-1] - 100.0
    assert spent == pytest.approx(500 / 50, rel=0.05)
    steps = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert min(steps) == pytest.approx(1 / 50)


def test_a_rate_that_was_not_used_is_not_saved_up() -> None:
    now = [100.0]
    slept: list[float] = []
    pacer = Pacer(10, clock=lambda: now[0], sleep=slept.append)
    pacer.wait(FOREVER)
    now[0] += 60
    for _ in range(3):
        pacer.wait(FOREVER)
    assert slept == pytest.approx([0.1, 0.2])


def test_a_turn_that_comes_too_late_is_not_waited_for_and_not_taken() -> None:
    slept: list[float] = []
    pacer = Pacer(10, clock=lambda: 100.0, sleep=slept.append)
    assert [pacer.wait(100.15) for _ in range(4)] == [True, True, False, False]
    assert pacer.wait(100.2)
    assert slept == pytest.approx([0.1, 0.2])


def test_a_sweep_keeps_elevates_rate(
    settings: Settings, make: Callable[[Settings], Ending], clock: Clock, elevate: FakeElevate
) -> None:
    slow = make(replace(settings, max_rate=50))
    tracked(slow, clock, 40)
    clock.turn(IDLE)
    started = time.monotonic()
    assert slow.sweep(ALL_SHARDS, FOREVER, "tick").delivered == 40
    assert time.monotonic() - started >= 39 / 50


def test_a_slow_rate_does_not_keep_a_sweep_beyond_its_time(
    settings: Settings, make: Callable[[Settings], Ending], clock: Clock, elevate: FakeElevate
) -> None:
    """Sixteen threads ask for a turn; whose turn is too late gives its session back."""
    slow = make(replace(settings, max_rate=2, connect_timeout=0.5, read_timeout=0.5))
    tracked(slow, clock, 40)
    clock.turn(IDLE)
    last_call = 0.5 + 0.5 + SETTLE_RESERVE
    started = time.monotonic()
    report = slow.sweep(ALL_SHARDS, started + last_call + 1.2, "tick")
    assert time.monotonic() - started < 2.5
    assert report.stopped == "time"
    assert report.left
    assert report.delivered == len(elevate.received) <= 4
    fast = make(settings)
    assert sweep(fast).delivered == 40 - report.delivered
    assert len(set(elevate.keys())) == len(elevate.keys()) == 40


def test_a_fault_of_ours_costs_no_other_session_its_settlement(
    ending: Ending, clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    tracked(ending, clock, 5)
    clock.turn(IDLE)
    notify, faults = ending._elevate.notify, iter([True])

    def fault(session: Session) -> Outcome:
        if next(faults, False):
            raise KeyError(session.session_key)
        return notify(session)

    ending._elevate.notify = fault  # type: ignore[method-assign]
    report = sweep(ending)
    assert (report.delivered, report.unavailable) == (4, 1)
    assert [line["error"] for line in log() if line["message"] == "crashed"] == ["KeyError"]
    clock.turn(BACKOFF_LIMIT)
    assert sweep(ending).delivered == 1
    assert len(elevate.keys()) == 5


# -- backoff and lines -------------------------------------------------------------------------


@given(st.integers(min_value=0, max_value=10_000))
def test_backoff_has_full_jitter_up_to_a_limit(attempts: int) -> None:
    assert 1 <= backoff(30, attempts) <= min(BACKOFF_LIMIT, 30 * 2**attempts)


@given(st.integers(min_value=0, max_value=BACKOFF_LIMIT))
def test_backoff_honours_elevates_wish(retry_after: int) -> None:
    assert retry_after < backoff(30, 1, retry_after) <= retry_after + 30


def test_each_notification_has_one_line_without_a_key(
    ending: Ending, clock: Clock, elevate: FakeElevate, log: Log
) -> None:
    elevate.statuses = [204, 400, 503]
    sessions = [new_session() for _ in range(3)]
    for session in sessions:
        end(ending, session, clock)
    written = log()
    assert [(w["level"], w["outcome"], w["status"]) for w in written] == [
        ("INFO", "delivered", 204),
        ("ERROR", "rejected", 400),
        ("WARNING", "unavailable", 503),
    ]
    fields = {"market", "attempt", "source", "correlation_id", "session", "customer", "latency_ms"}
    assert all(fields <= set(line) for line in written)
    for session in sessions:
        assert session.session_key not in json.dumps(written)
        assert str(session.customer_key) not in json.dumps(written)
