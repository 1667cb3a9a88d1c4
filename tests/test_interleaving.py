"""What others may do between two calls to DynamoDB, and what a failed call leaves behind."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from emulated import Clock, FakeElevate
from endings import (
    IDLE,
    Service,
    end,
    ended_as_idle,
    new_session,
    service_of,
    state,
    sweep,
    tracked,
)
from sessions.ending import BACKOFF_LIMIT
from sessions.lifetime import MINUTE
from sessions.registry import Registry
from sessions.session import Activity
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS


class Between:
    """A DynamoDB client with hooks `before` and `after` each call, which may act or raise."""

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
    """Return a hook that acts before a client's second call."""
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
    return service_of(settings, clock, between)


def cannot_settle(operation: str, arguments: Any) -> None:
    if operation == "batch_execute_statement":
        raise ReadTimeoutError(endpoint_url="here")


@pytest.mark.parametrize("status", [503, 400])
def test_an_end_that_is_neither_delivered_nor_recorded_is_not_reported_as_kept(
    shaky: Service,
    service: Service,
    between: Between,
    clock: Clock,
    elevate: FakeElevate,
    retry_rejected: Callable[..., int],
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
    retry_rejected()
    clock.turn(2 * MINUTE)
    sweep(service)
    assert result == "lost" or state(service, session) == "ended"


def test_an_end_whose_settlement_is_throttled_is_not_reported_as_kept(
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


def test_a_reopening_whose_answer_was_lost_is_not_a_conflict(
    shaky: Service, service: Service, between: Between, dynamodb: Any, clock: Clock
) -> None:
    """botocore repeats the call."""
    session = ended_as_idle(service, clock)
    clock.turn(MINUTE)

    def first(operation: str, arguments: dict[str, Any]) -> None:
        if ":ended" in arguments["ExpressionAttributeValues"]:
            dynamodb.update_item(**arguments)

    between.before = first
    assert shaky.ending.track(Activity(session, int(clock.now))) != "over"


def test_a_sign_out_during_the_settlement_of_an_idle_end_is_final(
    shaky: Service,
    service: Service,
    between: Between,
    clock: Clock,
    elevate: FakeElevate,
    item: Any,
) -> None:
    """Its claim is refused, the sweep settles, and then the sign-out finds the session over."""
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
    assert item(session)["requestedAt"] == {"N": str(int(clock.now))}
    clock.turn(MINUTE)
    assert service.ending.track(Activity(session, int(clock.now))) == "over"


def test_activity_between_a_refused_claim_and_its_keep_outdates_an_old_end(
    shaky: Service, service: Service, between: Between, clock: Clock, elevate: FakeElevate
) -> None:
    """An old event meets a sweep's lease; before it is kept, the visitor comes back."""
    (session,) = tracked(service, clock, 1)
    asked_at = clock.now
    clock.turn(IDLE)

    def come_back() -> None:
        assert service.ending.track(Activity(session, int(clock.now))) == "tracked"

    between.before = second_call(come_back)

    def old_end() -> None:
        shaky.ending.end(session, asked_at, "event")

    elevate.before_answer = old_end
    sweep(service)
    elevate.before_answer = lambda: None
    assert state(service, session) == "open"
    clock.turn(2 * MINUTE)
    assert service.ending.track(Activity(session, int(clock.now))) == "tracked"


def test_activity_between_claim_and_settlement_that_arrives_later_reopens(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    """An event takes a second; the rest of the batch takes longer before the session is settled."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    elevate.before_answer = lambda: clock.turn(10)
    assert sweep(service).counts["delivered"] == 1
    assert service.ending.track(Activity(session, int(clock.now) - 5)) == "reopened"


def test_an_end_that_is_asked_for_again_costs_one_refused_write(
    shaky: Service, between: Between, clock: Clock, elevate: FakeElevate
) -> None:
    session = new_session()
    end(shaky, session, clock)
    calls: list[str] = []
    between.before = lambda operation, _: calls.append(operation)
    assert end(shaky, session, clock).result == "over"
    assert calls == ["update_item"]


def test_a_click_soon_after_another_costs_one_refused_write(
    shaky: Service, between: Between, clock: Clock
) -> None:
    session, now = new_session(), int(clock.now)
    shaky.ending.track(Activity(session, now, interactive=True))
    calls: list[str] = []
    between.before = lambda operation, _: calls.append(operation)
    assert shaky.ending.track(Activity(session, now + 1, interactive=True)) == "tracked"
    assert calls == ["update_item"]


def test_a_status_shows_what_was_just_written(
    shaky: Service, between: Between, clock: Clock, elevate: FakeElevate
) -> None:
    """The emulator's reads are always consistent, so this looks at what is asked for."""
    session = new_session()
    end(shaky, session, clock)
    asked: list[dict[str, Any]] = []
    between.before = lambda _, arguments: asked.append(arguments)
    assert state(shaky, session) == "ended"
    assert asked[0]["ConsistentRead"] is True


def test_an_expiry_that_cannot_be_written_is_not_a_crash(
    shaky: Service, between: Between, clock: Clock, settings: Settings, log: Any
) -> None:
    """Elevate has ended the session, whether we have written it down or not."""
    long_ago = int(clock.now) - settings.session_limit - settings.slack
    between.before = cannot_settle
    assert shaky.ending.end(new_session(), long_ago, "event").result == "over"
    failed = log()[0]
    assert failed["operation"] == "settle"
    assert failed["error"] == "RegistryUnavailable: ReadTimeoutError"


def test_a_visitor_whose_sign_out_was_never_sent_is_not_forgotten(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any, settings: Settings
) -> None:
    """Nobody learned that the session was over; activity goes on under the same keys."""
    session, asked_at = new_session(), int(clock.now)
    service.registry.claim(session, asked_at)  # and the function dies
    clock.turn(LEASE_SECONDS)
    answer = service.ending.track(Activity(session, int(clock.now)))
    assert item(session)["requestedAt"] == {"N": str(asked_at)}
    clock.turn(IDLE)
    sweep(service)
    assert elevate.keys() == [session.session_key], answer
