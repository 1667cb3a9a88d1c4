"""Sessions that Elevate rejected and an operator makes due again."""

from collections.abc import Callable
from typing import Any

import pytest

from emulated import Clock, FakeElevate
from endings import Service, end, new_session, state, sweep
from ops.rejected import SPREAD, rejected, retry
from sessions.registry import PAGE
from sessions.session import Activity
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS

type Retry = Callable[..., int]


@pytest.fixture(autouse=True)
def _elevate_rejects(elevate: FakeElevate) -> None:
    elevate.statuses = [400]


def test_rejected_sessions_of_a_market_are_due_again_and_delivered(
    service: Service, clock: Clock, elevate: FakeElevate, retry_rejected: Retry
) -> None:
    british, swedish = new_session("UK"), new_session("SE")
    for session in (british, swedish):
        end(service, session, clock)
    assert sweep(service).counts["due"] == 0
    assert retry_rejected("SE") == 1
    assert service.ending.status(swedish.session_key)[0].attempts == 0
    elevate.statuses = [204]
    clock.turn(SPREAD)
    assert sweep(service).counts["delivered"] == 1
    assert (state(service, british), state(service, swedish)) == ("rejected", "ended")
    assert [retry_rejected(), retry_rejected()] == [1, 0]


def test_retried_sessions_are_spread_over_a_minute(
    service: Service, clock: Clock, elevate: FakeElevate, retry_rejected: Retry
) -> None:
    for session in (sessions := [new_session() for _ in range(40)]):
        end(service, session, clock)
    assert retry_rejected() == 40
    due = [service.ending.status(session.session_key)[0].due_at for session in sessions]
    assert {at - int(clock.now) for at in due if at} <= set(range(SPREAD + 1))
    assert len(set(due)) > 10


def test_a_session_that_is_being_ended_is_left_alone(
    service: Service, clock: Clock, retry_rejected: Retry
) -> None:
    session = new_session()
    end(service, session, clock)
    clock.turn(1)
    service.registry.claim(session, int(clock.now))
    assert retry_rejected() == 0
    clock.turn(LEASE_SECONDS + 1)
    assert retry_rejected() == 1, "the process that claimed it died"


def test_a_session_reopened_since_the_index_was_read_is_left_alone(
    service: Service, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    """Its visitor is back: retrying the rejected end would end an active session."""
    session = new_session()
    service.ending.track(Activity(session, int(clock.now)))
    clock.turn(settings.idle)
    sweep(service)
    (row,) = rejected(dynamodb, settings.table_name)
    clock.turn(1)
    assert service.ending.track(Activity(session, int(clock.now))) == "reopened"
    assert retry(dynamodb, settings.table_name, row, int(clock.now)) is False
    assert state(service, session) == "open"


def test_each_page_starts_where_the_last_one_stopped(
    service: Service, clock: Clock, retry_rejected: Retry, dynamodb: Any, settings: Settings
) -> None:
    """A DynamoDB page holds at most 1 MB."""
    end(service, session := new_session(), clock)
    key = {"sessionKey": {"S": session.session_key}, "market": {"S": session.market}}
    row = dynamodb.get_item(TableName=settings.table_name, Key=key)["Item"]
    for number in range(PAGE + 1):
        longer = row | {"sessionKey": {"S": f"{number:01000}"}}
        dynamodb.put_item(TableName=settings.table_name, Item=longer)
    assert len(list(rejected(dynamodb, settings.table_name))) == PAGE + 2
