"""Visitors who come back: an idle end is a guess, an explicit end is final."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from emulated import Clock, FakeElevate, Log
from endings import (
    ALL_SHARDS,
    IDLE,
    Service,
    end,
    ended_as_idle,
    new_session,
    state,
    sweep,
    tracked,
)
from sessions.lifetime import DAY, HOUR, MINUTE
from sessions.session import Activity, Session, Settlement
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS

FOREVER = 1e9


def back(service: Service, session: Session, clock: Clock) -> str:
    return service.ending.track(Activity(session, int(clock.now)))


def test_activity_after_an_idle_end_reopens_the_session_and_it_is_ended_again(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any
) -> None:
    session = ended_as_idle(service, clock)
    clock.turn(HOUR)
    assert back(service, session, clock) == "reopened"
    assert state(service, session) == "open"
    assert back(service, session, clock) == "tracked"
    clock.turn(IDLE)
    assert sweep(service).counts["delivered"] == 1
    assert elevate.keys() == [session.session_key] * 2


def test_activity_after_an_expiry_reopens_the_session(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    (session,) = tracked(service, clock, 1)
    clock.turn(settings.session_limit + settings.slack)
    assert sweep(service).counts["expired"] == 1
    assert back(service, session, clock) == "reopened"
    clock.turn(IDLE)
    assert sweep(service).counts["delivered"] == 1


def test_activity_after_a_rejected_idle_end_reopens_the_session(
    service: Service, clock: Clock, elevate: FakeElevate, retry_rejected: Callable[..., int]
) -> None:
    """So an operator who retries rejected sessions does not end an active one."""
    elevate.statuses = [400, 204]
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    assert sweep(service).counts["rejected"] == 1
    clock.turn(MINUTE)
    assert back(service, session, clock) == "reopened"
    assert retry_rejected() == 0
    clock.turn(2 * MINUTE)
    assert sweep(service).counts["due"] == 0
    assert state(service, session) == "open"


@pytest.mark.parametrize("status", [204, 400])
def test_an_explicit_end_is_final(
    service: Service, clock: Clock, elevate: FakeElevate, status: int
) -> None:
    elevate.statuses = [status]
    (session,) = tracked(service, clock, 1)
    end(service, session, clock)
    clock.turn(DAY)
    assert back(service, session, clock) == "over"


def test_an_explicit_end_of_a_session_that_had_ended_as_idle_is_sent_and_is_final(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    """A visitor who signs out must have come back, tracked or not."""
    session = ended_as_idle(service, clock)
    clock.turn(MINUTE)
    assert end(service, session, clock).result == "delivered"
    assert end(service, session, clock).result == "over"
    assert back(service, session, clock) == "over"
    assert elevate.keys() == [session.session_key] * 2


def test_a_late_explicit_end_is_not_sent_after_an_idle_end_but_is_final(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any
) -> None:
    session = ended_as_idle(service, clock)
    before = int(clock.now) - MINUTE
    clock.turn(MINUTE)
    assert service.ending.end(session, before, "event").result == "over"
    assert item(session)["requestedAt"] == {"N": str(before)}
    assert back(service, session, clock) == "over"
    assert len(elevate.received) == 1


# -- ends that come late -----------------------------------------------------------------------


def came_late(service: Service, clock: Clock, seconds: float) -> tuple[Session, str]:
    """End a session by an event that was so long (seconds) before its latest activity."""
    (session,) = tracked(service, clock, 1)
    return session, service.ending.end(session, clock.now - seconds, "event").result


def test_an_end_from_before_the_latest_activity_is_not_sent_and_not_final(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any, log: Log
) -> None:
    """A dead-letter message that is redriven after hours: its visitor has come back meanwhile."""
    session, result = came_late(service, clock, 2 * HOUR)
    assert (result, elevate.received) == ("outdated", [])
    assert "requestedAt" not in item(session)
    (line,) = log()
    assert (line["message"], line["outcome"], line["source"]) == ("outdated", "outdated", "event")
    clock.turn(2 * MINUTE)
    assert back(service, session, clock) == "tracked"
    clock.turn(IDLE)
    assert sweep(service).counts["delivered"] == 1


@pytest.mark.parametrize(("more", "result"), [(0, "delivered"), (1, "outdated")])
def test_activity_is_newer_than_an_end_by_more_than_the_slack(
    service: Service, clock: Clock, settings: Settings, more: int, result: str
) -> None:
    """Within it the order is not known: clocks differ, and a page view overtakes the sign-out."""
    assert came_late(service, clock, settings.slack + more)[1] == result


def test_an_end_from_before_the_latest_activity_is_not_final_after_an_idle_end_either(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    session = ended_as_idle(service, clock)
    assert service.ending.end(session, clock.now - 2 * HOUR, "event").result == "outdated"
    clock.turn(MINUTE)
    assert back(service, session, clock) == "reopened"
    assert len(elevate.received) == 1


@pytest.mark.parametrize("before", ["rejected", "expired"])
def test_an_end_from_before_the_latest_activity_changes_nothing_of_what_is_over(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings, item: Any, before: str
) -> None:
    elevate.statuses = [400]
    (session,) = tracked(service, clock, 1)
    clock.turn(settings.session_limit + settings.slack if before == "expired" else IDLE)
    sweep(service)
    row = item(session)
    long_ago = clock.now - settings.session_limit - 2 * HOUR
    assert service.ending.end(session, long_ago, "event").result == "outdated"
    assert (state(service, session), item(session)) == (before, row)


def test_an_end_from_before_the_latest_activity_is_not_kept_while_the_idle_end_is_in_flight(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    late: list[str] = []
    before = clock.now - 2 * HOUR
    elevate.before_answer = lambda: late.append(service.ending.end(session, before, "event").result)
    assert sweep(service).counts["delivered"] == 1
    assert (late, state(service, session)) == (["outdated"], "ended")
    clock.turn(MINUTE)
    assert back(service, session, clock) == "reopened"


def test_an_older_request_for_what_has_been_asked_for_is_not_outdated(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    """A function died between its claim and its answer: nobody else may ask again."""
    session = new_session()
    service.registry.claim(session, clock.now)
    clock.turn(LEASE_SECONDS)
    assert service.ending.end(session, clock.now - 2 * HOUR, "event").result == "delivered"


def test_old_activity_reopens_nothing(service: Service, clock: Clock, elevate: FakeElevate) -> None:
    session = ended_as_idle(service, clock)
    assert service.ending.track(Activity(session, int(clock.now) - 1)) == "over"
    assert state(service, session) == "ended"


def test_a_reopened_session_starts_afresh(service: Service, clock: Clock, item: Any) -> None:
    (session,) = tracked(service, clock, 1, interactive=True)
    clock.turn(IDLE)
    sweep(service)
    clock.turn(HOUR)
    assert back(service, session, clock) == "reopened"
    assert not {"interactive", "settledAt", "lastStatus", "lease"} & set(item(session))


@pytest.mark.parametrize("interactive", [True, False])
def test_a_session_that_was_rejected_is_reopened_as_another_visit(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any, interactive: bool
) -> None:
    """A rejected row still has what it was rejected with."""
    elevate.statuses = [400]
    session = replace(new_session(), user_context="SYNTHETIC")
    service.ending.track(Activity(session, int(clock.now)))
    clock.turn(IDLE)
    sweep(service)
    assert {"userContext", "lastReason"} <= set(item(session))
    signed_in = replace(session, user_context=None)
    clock.turn(1)
    activity = Activity(signed_in, int(clock.now), interactive)
    assert service.ending.track(activity) == "reopened"
    assert not {"userContext", "lastReason", "lastStatus", "settledAt"} & set(item(session))
    assert item(session)["interactive"] == {"BOOL": interactive}


def test_a_visitor_who_comes_back_while_the_end_is_in_flight_is_ended_again(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)

    def come_back() -> None:
        assert back(service, session, clock) == "tracked"

    elevate.before_answer = come_back
    assert sweep(service).counts["delivered"] == 1
    elevate.before_answer = lambda: None
    assert state(service, session) == "open"
    clock.turn(IDLE)
    assert sweep(service).counts["delivered"] == 1
    assert state(service, session) == "ended"


def test_a_sign_out_while_the_idle_end_is_in_flight_is_sent_and_is_final(
    service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    """Its visitor may have come back before it, so the idle end does not stand for it."""
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    asked: list[str] = []
    elevate.before_answer = lambda: asked.append(end(service, session, clock).result)
    sweep(service)
    assert asked == ["kept"]
    elevate.before_answer = lambda: None
    sweep(service)
    assert state(service, session) == "ended"
    assert back(service, session, clock) == "over"
    assert len(elevate.received) == 2


def test_a_sign_out_that_was_accepted_is_not_settled_as_expired_unsent(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings
) -> None:
    """An old event has claimed the session; the API's end meets its lease and is kept."""
    session = new_session()
    long_ago = int(clock.now) - settings.session_limit - settings.slack
    claimed = service.registry.claim(session, long_ago)
    assert not isinstance(claimed, str)
    assert end(service, session, clock).result == "kept"
    service.registry.settle([(claimed, Settlement("expired"))])
    assert state(service, session) == "open"
    assert sweep(service).counts["delivered"] == 1


def test_a_rejected_row_is_not_claimed_by_a_sweep_that_read_it_before(
    service: Service, clock: Clock, elevate: FakeElevate, item: Any
) -> None:
    """Claim, rejection and the sweep's read fall within one second."""
    session = new_session()
    service.registry.keep(session, int(clock.now))
    (row,) = [r for s in ALL_SHARDS for r in service.registry.due(s, int(clock.now)).rows]
    elevate.statuses = [400]
    assert sweep(service).counts["rejected"] == 1
    clock.turn(100)  # any lease is over
    assert service.registry.claim_due([row]).done == []
    assert service.registry.expire([row]).done == []
    assert state(service, session) == "rejected"


@pytest.mark.parametrize("before", ["ended", "rejected", "expired"])
def test_a_kept_end_opens_what_was_over_by_a_guess(
    service: Service, clock: Clock, elevate: FakeElevate, settings: Settings, before: str
) -> None:
    elevate.statuses = [400 if before == "rejected" else 204]
    (session,) = tracked(service, clock, 1)
    clock.turn(settings.session_limit + settings.slack if before == "expired" else IDLE)
    sweep(service)
    assert state(service, session) == before
    clock.turn(1)
    service.registry.keep(session, int(clock.now))
    assert state(service, session) == "open"
