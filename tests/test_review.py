"""What a stranger found who read the code: each test failed before its mend."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from emulated import Clock, FakeElevate
from endings import FOREVER, IDLE, Service, end, new_session, state, sweep, tracked
from sessions.elevate import Elevate
from sessions.ending import BACKOFF_LIMIT, Ending
from sessions.lifetime import MINUTE
from sessions.registry import Page, Registry
from sessions.session import LEASE_SECONDS, Activity
from sessions.settings import Settings
from sessions.statements import shard_of
from sessions.sweeping import ALL_SHARDS, Sweeper
from sessions.telemetry import Telemetry


class Between:
    """A DynamoDB client; `before` and `after` a call something else may happen, or an error."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.before: Callable[[str, dict[str, Any]], None] = lambda operation, arguments: None
        self.after: Callable[[str, dict[str, Any]], None] = lambda operation, arguments: None

    def __getattr__(self, operation: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.before(operation, arguments)
            answer = getattr(self._client, operation)(**arguments)
            self.after(operation, arguments)
            return answer

        return call


def second_call(act: Callable[[], object]) -> Callable[[str, dict[str, Any]], None]:
    """Return what lets somebody act before a client's second call."""
    calls = itertools.count(1)

    def before(operation: str, arguments: dict[str, Any]) -> None:
        if next(calls) == 2:
            act()

    return before


@pytest.fixture
def between(dynamodb: Any) -> Between:
    return Between(dynamodb)


@pytest.fixture
def shaky(between: Between, settings: Settings, clock: Clock) -> Service:
    registry, elevate = Registry(settings, between, clock), Elevate(settings)
    parts = (settings, registry, elevate, Telemetry(), clock)
    return Service(registry, elevate, Ending(*parts), Sweeper(*parts))


def cannot_settle(operation: str, arguments: Any) -> None:
    if operation == "batch_execute_statement":
        raise ReadTimeoutError(endpoint_url="here")


@pytest.mark.parametrize("status", [503, 400])
def test_an_end_that_is_neither_delivered_nor_written_down_is_not_called_kept(
    shaky: Service,
    service: Service,
    between: Between,
    clock: Clock,
    elevate: FakeElevate,
    status: int,
) -> None:
    """The claim has a TTL and is in no index: nothing ever picks it up."""
    elevate.statuses = [status]
    session = new_session()
    between.before = cannot_settle
    result = shaky.ending.end(session, int(clock.now), "event").result
    between.before = lambda *_: None
    elevate.statuses = [204]
    clock.turn(LEASE_SECONDS + BACKOFF_LIMIT)
    service.sweeper.retry_rejected(None, ALL_SHARDS, FOREVER)
    clock.turn(2 * MINUTE)
    sweep(service)
    assert result == "lost" or state(service, session) == "ended"


def test_an_end_whose_settlement_is_throttled_is_not_called_kept(
    service: Service, clock: Clock, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    elevate.statuses = [503]
    session = new_session()
    execute = Registry._execute

    def throttle(self: Registry, worded: Any) -> list[str | None]:
        return ["ThrottlingError"] * len(worded)

    monkeypatch.setattr(Registry, "_execute", throttle)
    result = end(service, session, clock).result
    monkeypatch.setattr(Registry, "_execute", execute)
    elevate.statuses = [204]
    clock.turn(LEASE_SECONDS + BACKOFF_LIMIT)
    sweep(service)
    assert result == "lost" or state(service, session) == "ended"


def test_two_signs_of_life_after_an_idle_end_are_both_welcome(
    shaky: Service, service: Service, between: Between, clock: Clock, elevate: FakeElevate
) -> None:
    """A visitor who comes back loads two pages at once: the second reopening finds it open."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    sweep(service)
    clock.turn(MINUTE)
    activity = Activity(session, int(clock.now))
    between.before = second_call(lambda: service.ending.track(activity))
    assert shaky.ending.track(activity) != "over"


def test_a_reopening_whose_answer_was_lost_is_no_conflict(
    shaky: Service, service: Service, between: Between, dynamodb: Any, clock: Clock
) -> None:
    """botocore makes the call again."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    sweep(service)
    clock.turn(MINUTE)

    def first(operation: str, arguments: dict[str, Any]) -> None:
        if ":ended" in arguments["ExpressionAttributeValues"]:
            dynamodb.update_item(**arguments)

    between.before = first
    assert shaky.ending.track(Activity(session, int(clock.now))) != "over"


def test_a_sign_out_that_meets_the_settlement_of_an_idle_end_is_final(
    shaky: Service, service: Service, between: Between, clock: Clock, elevate: FakeElevate
) -> None:
    """The claim is refused, the other settles, and then the wish finds a session that is over."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    results: list[str] = []

    def sign_out() -> None:
        results.append(end(shaky, session, clock).result)

    # The sweep's notification is in flight while the sign-out claims; it settles before the keep.
    claimed, settled = threading.Event(), threading.Event()

    def wait() -> None:
        claimed.set()
        assert settled.wait(10)

    between.before = second_call(wait)
    thread = threading.Thread(target=sign_out)

    def in_flight() -> None:
        thread.start()
        assert claimed.wait(10)

    elevate.before_answer = in_flight
    assert sweep(service).counts["delivered"] == 1
    settled.set()
    thread.join()
    assert results[0] in ("kept", "over")
    clock.turn(MINUTE)
    assert service.ending.track(Activity(session, int(clock.now))) == "over"


@pytest.mark.parametrize("count", [60, 600])
def test_expired_sessions_keep_no_others_waiting(
    service: Service, clock: Clock, settings: Settings, elevate: FakeElevate, count: int
) -> None:
    """After a long outage the oldest have expired, and the living ones come behind them."""
    tracked(service, clock, count)
    clock.turn(settings.session_limit + settings.slack)
    tracked(service, clock, 5)
    clock.turn(IDLE)
    report = sweep(service)
    assert (report.counts["expired"], report.counts["delivered"]) == (count, 5)


def test_reading_ends_when_the_time_does(
    service: Service, clock: Clock, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elevate is down for the only market: the backlog is not read beyond the invocation's end."""
    elevate.statuses = [503]
    tracked(service, clock, 40)
    clock.turn(IDLE)
    rows = [row for shard in ALL_SHARDS for row in service.registry.due(shard, int(clock.now)).rows]
    pages = 0

    def endless(self: Registry, shard: int, until: int, start: Any = None) -> Page:
        nonlocal pages
        pages += 1
        if pages > 2000:
            raise AssertionError("read on after its time")
        time.sleep(0.01)
        return Page(rows * 10, 0, {"at": pages} if shard == 0 else None)

    monkeypatch.setattr(Registry, "due", endless)
    started = time.monotonic()
    service.sweeper.sweep([0], started + 20 + 1)  # the settings' last call is 20 s before
    assert time.monotonic() - started < 4


def test_a_real_sweep_of_one_market_goes_to_the_end(
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


def test_a_visitor_whose_sign_out_died_unsent_is_not_forgotten(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any, settings: Settings
) -> None:
    """Nobody was told that the session is over; activity goes on under the same keys."""
    session = new_session()
    service.registry.claim(session, int(clock.now))  # and the function dies
    clock.turn(LEASE_SECONDS + MINUTE)
    answer = service.ending.track(Activity(session, int(clock.now)))
    clock.turn(IDLE)
    sweep(service)
    assert elevate.keys() == [session.session_key], answer


def test_what_was_read_ahead_is_named_as_left(
    settings: Settings, make: Callable[[Settings], Service], clock: Clock, elevate: FakeElevate
) -> None:
    """Out of time in the middle: all rows have been read, most of them wait."""
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


def test_activity_between_claim_and_settlement_that_is_heard_later_reopens(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    """An event takes a second; the others of the batch take some more before it is settled."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    elevate.before_answer = lambda: clock.turn(10)
    assert sweep(service).counts["delivered"] == 1
    assert service.ending.track(Activity(session, int(clock.now) - 5)) == "reopened"


def test_two_late_signs_of_life_count_both(
    shaky: Service, service: Service, between: Between, clock: Clock, item: Any
) -> None:
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    sweep(service)
    first = Activity(session, int(clock.now) + 60)
    second = Activity(session, int(clock.now) + 1200)
    clock.turn(1300)
    between.before = second_call(lambda: service.ending.track(first))
    assert shaky.ending.track(second) == "tracked"
    assert int(item(session)["activeAt"]["N"]) == second.at
