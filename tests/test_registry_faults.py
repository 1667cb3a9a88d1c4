"""A DynamoDB that is slow, throttled or gone: what the caller gets, what the registry holds."""

import itertools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from emulated import Clock, FakeElevate, Log
from endings import ALL_SHARDS, Service, new_session, service_of, sweep, tracked
from endings import end as end_again
from faulty_dynamodb import Drop, FaultyDynamoDB
from sessions import aws
from sessions.registry import Registry
from sessions.session import Activity, Claim, RegistryUnavailable, Row, Settlement
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS


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
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate, log: Log
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
    rejections = iter([code] * 4)
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
    log: Log,
    code: str,
) -> None:
    tracked(service, clock, 12)
    clock.turn(1800)
    dynamo.statement_errors = lambda statements: {0: code}
    first = sweep(service)
    assert first.counts["delivered"] < 12
    failed = [line for line in log() if line["message"] == "registry failed"]
    assert {(line["operation"], line["error"]) for line in failed} == {("statement", code)}
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
    assert 0 < report.counts["failed"] == report.counts["due"] < 60
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


def test_of_tracks_that_run_out_of_time_the_first_is_done(service: Service, clock: Clock) -> None:
    activities = [Activity(new_session(), int(clock.now)) for _ in range(3)]
    activities.append(activities[0])
    tracked = service.ending.track_all(activities, time.monotonic())
    assert tracked == ["tracked", None, None, None]
    assert service.ending.track_all(activities, time.monotonic() + 60) == ["tracked"] * 4


def test_one_duplicate_does_not_make_a_long_list_of_tracks_run_one_by_one(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock
) -> None:
    """Two calls meet at DynamoDB; of the session that comes twice, the last activity counts."""
    calls, second, met = itertools.count(), threading.Event(), list[bool]()
    activities = [Activity(new_session(), int(clock.now)) for _ in range(8)]
    clicked = replace(activities[0], interactive=True)

    def meet(operation: str) -> None:
        if next(calls):
            second.set()
        else:
            met.append(second.wait(1.5))

    dynamo.before = meet
    tracked = service.ending.track_all([*activities[:7], clicked], time.monotonic() + 60)
    assert (tracked, met) == (["tracked"] * 8, [True])
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
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate, log: Log
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
    failed = [line for line in log() if line["message"] == "registry failed"]
    assert {(line["operation"], line["error"]) for line in failed} == {
        ("claim", "RegistryUnavailable: ConnectionClosedError")
    }
    dynamo.before = lambda operation: None
    assert sweep(service).counts["delivered"] == 5


def drop_nth(nth: int) -> Callable[[str], None]:
    count = itertools.count(1)

    def drop(operation: str) -> None:
        if next(count) == nth:
            raise Drop

    return drop


def test_a_lost_answer_to_a_claim_does_not_lose_the_claim(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    dynamo.after = drop_nth(1)
    session = new_session()
    assert service.ending.end(session, int(clock.now), "api").result == "delivered"
    assert elevate.keys() == [session.session_key]
    assert dynamo.calls[:2] == ["UpdateItem", "UpdateItem"]


def test_a_lost_answer_to_a_settlement_changes_nothing(
    service: Service, dynamo: FaultyDynamoDB, clock: Clock, elevate: FakeElevate
) -> None:
    dynamo.after = drop_nth(2)
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


@pytest.mark.parametrize(
    "garbled",
    [lambda body: body[:-1], lambda body: b"<p>" + body, lambda body: b'{"Responses": []}'],
    ids=["cut short", "no JSON", "another answer"],
)
def test_an_answer_that_is_not_whole_is_no_success(
    settings: Settings,
    dynamo: FaultyDynamoDB,
    clock: Clock,
    garbled: Callable[[bytes], bytes],
) -> None:
    """botocore makes {} of a 200 whose body is not all there, or is no JSON."""
    registry, session = Registry(settings, aws.client("dynamodb"), clock), new_session()
    row = Row(session, int(clock.now), int(clock.now))
    claimed = Claim(row, "lease", int(clock.now))
    calls: list[Callable[[], object]] = [
        lambda: registry.track(Activity(session, clock.now)),
        lambda: registry.claim(new_session(), clock.now),
        lambda: registry.keep(session, clock.now),
        lambda: registry.status(session.session_key),
        lambda: registry.due(0, int(clock.now)),
        lambda: registry.claim_due([row]),
        lambda: registry.expire([row]),
        lambda: registry.settle([(claimed, Settlement("ended"))]),
    ]
    dynamo.garbled = garbled
    for call in calls:
        with pytest.raises(RegistryUnavailable, match="IncompleteAnswer"):
            call()


def test_a_call_that_is_to_wait_ends_in_time_all_the_same(
    settings: Settings, dynamo: FaultyDynamoDB, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a call counts on HANGING_CALL, whatever DynamoDB asks for (milliseconds)."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    dynamo.throttles, dynamo.headers = 1000, {"x-amz-retry-after": "60000"}
    client = aws.client("dynamodb")
    with pytest.raises(RegistryUnavailable, match="ThrottlingException"):
        Registry(settings, client, clock).status("key")
    assert (len(dynamo.calls), len(pauses)) == (2, 1)
    config = client.meta.config
    assert 2 * (config.connect_timeout + config.read_timeout) + pauses[0] <= aws.HANGING_CALL
