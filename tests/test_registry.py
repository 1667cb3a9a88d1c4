"""The registry on the emulator's DynamoDB: what each condition protects."""

import itertools
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest

from emulated import Clock
from sessions import aws
from sessions.lifetime import DAY
from sessions.registry import BATCH, BatchResult, Registry
from sessions.session import (
    Activity,
    Claim,
    Row,
    Session,
    Settlement,
    UnreadableRow,
)
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS, RETENTION, SHARDS, parked, shard_of

IDLE = 30 * 60


@pytest.fixture
def registry(settings: Settings, clock: Clock) -> Registry:
    return Registry(settings, aws.client("dynamodb"), clock)


def new_session(market: str = "UK") -> Session:
    return Session(market, str(uuid.uuid4()), str(uuid.uuid4()))


def track(registry: Registry, session: Session, clock: Clock, **changes: Any) -> bool:
    return registry.track(Activity(session, **({"at": int(clock.now)} | changes))) == "tracked"


def due(registry: Registry, clock: Clock, *, rejected: bool = False) -> list[Row]:
    shards = [parked(s) if rejected else s for s in range(SHARDS)]
    return [row for shard in shards for row in registry.due(shard, int(clock.now)).rows]


def item(dynamodb: Any, settings: Settings, session: Session) -> dict[str, Any]:
    key = {"sessionKey": {"S": session.session_key}, "market": {"S": session.market}}
    answer = dynamodb.get_item(TableName=settings.table_name, Key=key)
    return dict(answer.get("Item", {}))


def state(registry: Registry, session: Session) -> str:
    (status,) = registry.status(session.session_key)
    return status.state


def claim(registry: Registry, session: Session, clock: Clock) -> Claim:
    claimed = registry.claim(session, int(clock.now))
    assert isinstance(claimed, Claim)
    return claimed


def claimed_as_idle(registry: Registry, session: Session, clock: Clock) -> Claim:
    """Track a session, let it go quiet, and claim it as a sweep does."""
    track(registry, session, clock)
    clock.turn(IDLE)
    (claimed,) = registry.claim_due(due(registry, clock)).done
    return claimed


# -- track -------------------------------------------------------------------------------------


def test_a_tracked_session_is_due_after_the_idle_time(registry: Registry, clock: Clock) -> None:
    session = new_session()
    assert track(registry, session, clock, interactive=True)
    clock.turn(IDLE - 1)
    assert due(registry, clock) == []
    clock.turn(1)
    (row,) = due(registry, clock)
    assert row.session == session
    assert (row.due_at, row.attempts, row.interactive) == (int(clock.now), 0, True)


def test_activity_within_the_slack_is_not_written(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    track(registry, session, clock)
    before = item(dynamodb, settings, session)
    clock.turn(settings.slack)
    assert track(registry, session, clock)
    assert item(dynamodb, settings, session) == before
    clock.turn(1)
    assert track(registry, session, clock)
    assert item(dynamodb, settings, session)["activeAt"]["N"] == str(int(clock.now))


def test_the_slack_is_a_tenth_of_a_short_idle_time(settings: Settings, clock: Clock) -> None:
    registry = Registry(replace(settings, idle=100), aws.client("dynamodb"), clock)
    session = new_session()
    track(registry, session, clock)
    clock.turn(11)
    track(registry, session, clock)
    clock.turn(99)
    assert due(registry, clock) == []


def test_sign_in_replaces_the_customer_key_at_once(registry: Registry, clock: Clock) -> None:
    before = new_session()
    after = replace(before, customer_key=str(uuid.uuid4()))
    track(registry, before, clock)
    assert track(registry, after, clock)
    clock.turn(IDLE)
    (row,) = due(registry, clock)
    assert row.session == after


@pytest.mark.parametrize("known", [False, None])
def test_older_activity_changes_nothing_but_may_add_a_click(
    registry: Registry, clock: Clock, known: bool | None
) -> None:
    session = new_session()
    track(registry, session, clock, interactive=known)
    older = replace(session, customer_key=str(uuid.uuid4()))
    assert track(registry, older, clock, at=int(clock.now) - 100, interactive=True)
    clock.turn(IDLE)
    (row,) = due(registry, clock)
    assert (row.session, row.interactive) == (session, True)


def test_interactive_is_never_reset(registry: Registry, clock: Clock) -> None:
    session = new_session()
    track(registry, session, clock)
    for known in (True, False, None):
        clock.turn(100)
        track(registry, session, clock, interactive=known)
    clock.turn(IDLE)
    assert [row.interactive for row in due(registry, clock)] == [True]


def test_the_same_key_in_two_markets_is_two_sessions(registry: Registry, clock: Clock) -> None:
    session = new_session()
    track(registry, session, clock)
    track(registry, replace(session, market="SE"), clock)
    assert {s.market for s in registry.status(session.session_key)} == {"UK", "SE"}


def test_a_user_context_can_replace_the_customer_key(registry: Registry, clock: Clock) -> None:
    session = Session("Sverige & Norge/ü", "s/ü", None, "UNPERSONALIZED")
    track(registry, replace(session, customer_key="c", user_context=None), clock)
    track(registry, session, clock)
    clock.turn(IDLE)
    assert [row.session for row in due(registry, clock)] == [session]


# -- claim, settle -----------------------------------------------------------------------------


def test_only_one_caller_gets_the_lease_and_the_others_request_is_kept(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    track(registry, session, clock)
    clock.turn(IDLE)
    assert len(registry.claim_due(due(registry, clock)).done) == 1
    assert registry.claim(session, int(clock.now)) == "in flight"
    assert "requestedAt" in item(dynamodb, settings, session)
    assert registry.claim_due(due(registry, clock)) == BatchResult([], [])
    assert state(registry, session) == "ending"


def test_a_lease_runs_out(registry: Registry, clock: Clock) -> None:
    """Its owner crashed: the next sweep finds the row."""
    session = new_session()
    track(registry, session, clock)
    clock.turn(IDLE)
    assert len(registry.claim_due(due(registry, clock)).done) == 1
    clock.turn(LEASE_SECONDS)
    assert registry.claim_due(due(registry, clock)) == BatchResult([], [])
    clock.turn(1)
    assert state(registry, session) == "open"
    assert len(registry.claim_due(due(registry, clock)).done) == 1


def test_an_explicit_claim_is_not_indexed(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    """Its caller has no answer yet, and calls again if the owner crashes."""
    session = new_session()
    claim(registry, session, clock)
    assert not {"dueAt", "sweepShard"} & set(item(dynamodb, settings, session))
    assert registry.claim(session, int(clock.now)) == "in flight"
    kept = item(dynamodb, settings, session)
    assert {"dueAt", "sweepShard"} <= set(kept), "an end requested while it is in flight is kept"


def test_every_write_moves_the_ttl_and_none_removes_it(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    """No end has a deadline of more than 14 days: an untouched row has nothing left to do."""
    session = new_session()

    def written(*_: Any) -> None:
        expires_at = int(item(dynamodb, settings, session)["expiresAt"]["N"])
        assert expires_at == int(clock.now) + RETENTION > int(clock.now) + 14 * DAY
        clock.turn(100)

    def due_row() -> Row:
        (row,) = due(registry, clock)
        return row

    def claim_due() -> Claim:
        (claimed,) = registry.claim_due([due_row()]).done
        return claimed

    later = int(clock.now) + IDLE
    written(track(registry, session, clock, interactive=False))
    written(track(registry, session, clock, at=int(clock.now) - 200, interactive=True))
    clock.turn(IDLE)
    claimed = claim_due()
    written()
    written(registry.settle([(claimed, Settlement("open"))]))
    claimed = claim_due()
    written(registry.settle([(claimed, Settlement("retrying", later, 1, 503))]))
    written(registry.settle([(claim_due(), Settlement("rejected", None, 1, 400))]))
    written(track(registry, session, clock))
    clock.turn(IDLE)
    written(registry.expire([due_row()]))
    registry.keep(session, int(clock.now))
    written()
    claimed = claim_due()
    written(registry.settle([(claimed, Settlement("ended", None, 1, 204))]))
    again = new_session()
    claimed = claimed_as_idle(registry, again, clock)
    registry.settle([(claimed, Settlement("ended", None, 1, 204))])
    session = again
    clock.turn(100)
    assert registry.claim(session, int(clock.now) - 1000) == "over"
    written()


def test_an_outcome_is_dated_by_its_claim_and_leaves_no_lease(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    """Activity after the claim is of a visitor who is back, however long the answer took."""
    session = new_session()
    claimed = claim(registry, session, clock)
    clock.turn(10)
    registry.settle([(claimed, Settlement("rejected", None, 1, 400, "no"))])
    settled = item(dynamodb, settings, session)
    assert settled["settledAt"] == {"N": str(int(clock.now) - 10)}
    assert "lease" not in settled
    # Rejected sessions wait below zero; deployed tables have rows there.
    assert settled["sweepShard"] == {"N": str(-1 - shard_of(session.session_key))}


def test_a_session_that_is_given_back_has_no_lease_and_is_due(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    claimed = claimed_as_idle(registry, session, clock)
    registry.settle([(claimed, Settlement("open"))])
    assert "lease" not in item(dynamodb, settings, session)
    assert state(registry, session) == "open"
    assert [row.session for row in due(registry, clock)] == [session]


def test_older_activity_of_a_session_that_is_being_retried_is_fine(
    registry: Registry, clock: Clock
) -> None:
    session = new_session()
    claimed = claimed_as_idle(registry, session, clock)
    later = int(clock.now) + 60
    registry.settle([(claimed, Settlement("retrying", later, 1, 503))])
    assert track(registry, session, clock, at=int(clock.now) - IDLE - 100)
    clock.turn(60)
    assert len(registry.claim_due(due(registry, clock)).done) == 1
    assert registry.claim(session, int(clock.now)) == "in flight", "of a sweep"


def test_an_expired_lease_settles_nothing(registry: Registry, clock: Clock) -> None:
    session = new_session()
    first = claim(registry, session, clock)
    clock.turn(LEASE_SECONDS + 1)
    second = claim(registry, session, clock)
    registry.settle([(first, Settlement("ended", None, 1, 204))])
    assert state(registry, session) == "ending"
    registry.settle([(second, Settlement("rejected", None, 1, 400, "no"))])
    assert state(registry, session) == "rejected"


def test_a_sweep_does_not_settle_what_another_has_claimed_since(
    registry: Registry, clock: Clock
) -> None:
    session = new_session()
    first = claimed_as_idle(registry, session, clock)
    clock.turn(LEASE_SECONDS + 1)
    (second,) = registry.claim_due(due(registry, clock)).done
    registry.settle([(first, Settlement("rejected", None, 1, 400, "no"))])
    assert state(registry, session) == "ending"
    registry.settle([(second, Settlement("ended", None, 1, 204))])
    assert state(registry, session) == "ended"


@pytest.mark.parametrize("final", ["ended", "expired"])
def test_what_is_over_leaves_a_tombstone_without_personal_data(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings, final: Any
) -> None:
    session = new_session()
    track(registry, session, clock)
    registry.settle([(claim(registry, session, clock), Settlement(final, None, 1, 204))])
    assert state(registry, session) == final
    assert track(registry, session, clock) is False
    left = item(dynamodb, settings, session)
    assert not {"customerKey", "userContext", "dueAt", "sweepShard", "lease"} & set(left)
    assert int(left["expiresAt"]["N"]) == int(clock.now) + RETENTION
    clock.turn(IDLE)
    assert due(registry, clock) == []
    # Only what was delivered is over for good.
    assert (registry.claim(session, int(clock.now)) == "over") is (final == "ended")


def test_a_postponed_session_is_due_again_and_keeps_its_last_failure(
    registry: Registry, clock: Clock
) -> None:
    session = new_session()
    again = int(clock.now) + 40
    settlement = Settlement("retrying", again, 1, 503, "busy")
    registry.settle([(claim(registry, session, clock), settlement)])
    (status,) = registry.status(session.session_key)
    assert (status.state, status.due_at, status.attempts) == ("retrying", again, 1)
    assert (status.last_status, status.last_reason) == (503, "busy")
    assert due(registry, clock) == []
    clock.turn(40)
    assert [row.attempts for row in due(registry, clock)] == [1]


def test_a_session_tracked_in_flight_keeps_its_newer_due_time(
    registry: Registry, clock: Clock
) -> None:
    session = new_session()
    claimed = claimed_as_idle(registry, session, clock)
    assert track(registry, session, clock)
    registry.settle([(claimed, Settlement("retrying", int(clock.now) + 5, 1, 503))])
    (status,) = registry.status(session.session_key)
    assert (status.state, status.due_at) == ("open", int(clock.now) + IDLE)


def test_a_visitor_who_comes_back_reopens_an_idle_end_but_not_a_sign_out(
    registry: Registry, clock: Clock
) -> None:
    idle, signed_out = new_session(), new_session()
    claimed = claimed_as_idle(registry, idle, clock)
    later = int(clock.now) + 60
    registry.settle(
        [
            (claimed, Settlement("retrying", later, 1, 503)),
            (claim(registry, signed_out, clock), Settlement("retrying", later, 1, 503)),
        ]
    )
    clock.turn(100)
    assert track(registry, idle, clock) is True
    assert track(registry, signed_out, clock) is False
    assert [row.session for row in due(registry, clock)] == [signed_out]


def test_a_claim_whose_answer_was_lost_is_recognised(
    settings: Settings, clock: Clock, dynamodb: Any
) -> None:
    """The SDK sends the write a second time; its condition must recognise our own lease."""

    class Twice:
        def update_item(self, **arguments: Any) -> Any:
            dynamodb.update_item(**arguments)
            return dynamodb.update_item(**arguments)

    registry = Registry(settings, Twice(), clock)
    claimed = registry.claim(new_session(), int(clock.now))
    assert isinstance(claimed, Claim)


def test_the_statements_of_a_batch_succeed_or_fail_independently(
    registry: Registry, clock: Clock
) -> None:
    sessions = [new_session() for _ in range(BATCH)]
    for session in sessions:
        track(registry, session, clock)
    clock.turn(IDLE)
    rows = due(registry, clock)
    for session in sessions[::5]:
        track(registry, session, clock)  # their visitors come back after the index was read
    claimed = {claim.row.session.session_key for claim in registry.claim_due(rows).done}
    assert claimed == {s.session_key for s in sessions} - {s.session_key for s in sessions[::5]}


def test_throttled_statements_wait_longer_each_time(
    settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a random time (full jitter), so that sweeps side by side do not all come back at once."""

    class Throttled:
        def batch_execute_statement(self, Statements: list[Any]) -> Any:
            return {"Responses": [{"Error": {"Code": "ThrottlingError"}} for _ in Statements]}

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    registry = Registry(settings, Throttled(), clock)
    row = Row(new_session(), int(clock.now), int(clock.now))
    for _ in range(200):
        assert registry.claim_due([row]) == BatchResult([], ["ThrottlingError"])
    for tries, limit in enumerate([0.05, 0.1, 0.2, 0.4]):
        each = waits[tries::4]
        assert 0 <= min(each) < limit / 4
        assert limit * 3 / 4 < max(each) <= limit


def test_a_statement_that_gets_through_at_the_last_try_has_not_failed(
    settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttled = {"Error": {"Code": "ThrottlingError"}}
    answers = iter([throttled, throttled, throttled, throttled, {}])

    class AtLast:
        def batch_execute_statement(self, Statements: list[Any]) -> Any:
            return {"Responses": [next(answers) for _ in Statements]}

    monkeypatch.setattr(time, "sleep", lambda _: None)
    row = Row(new_session(), int(clock.now), int(clock.now))
    claimed = Registry(settings, AtLast(), clock).claim_due([row])
    assert ([claim.row for claim in claimed.done], claimed.failed) == ([row], [])


def test_a_statement_that_fails_without_a_code_has_failed(settings: Settings, clock: Clock) -> None:
    class Vague:
        def batch_execute_statement(self, Statements: list[Any]) -> Any:
            return {"Responses": [{"Error": {"Message": "?"}} for _ in Statements]}

    row = Row(new_session(), int(clock.now), int(clock.now))
    assert Registry(settings, Vague(), clock).claim_due([row]) == BatchResult([], ["unknown"])


def test_each_page_starts_where_the_last_one_stopped(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.registry.PAGE", 3)
    in_one_shard = (s for s in iter(new_session, None) if shard_of(s.session_key) == 0)
    for session in itertools.islice(in_one_shard, 4):
        track(registry, session, clock)
    clock.turn(IDLE)
    first = registry.due(0, int(clock.now))
    assert len(first.rows) == 3
    second = registry.due(0, int(clock.now), first.next)
    assert (len(second.rows), second.next) == (1, None)


# -- the rest ----------------------------------------------------------------------------------


def test_a_kept_end_is_due_at_once(registry: Registry, clock: Clock) -> None:
    session = new_session()
    registry.keep(session, int(clock.now))
    (row,) = due(registry, clock)
    assert (row.session, row.active_at) == (session, int(clock.now))
    assert track(registry, session, clock) is False


def test_that_somebody_asks_is_a_sign_of_life_as_of_now(registry: Registry, clock: Clock) -> None:
    """Elevate's own limit counts from it, however old the request is."""
    session = new_session()
    track(registry, session, clock)
    clock.turn(120)
    registry.keep(session, int(clock.now) - 60)
    assert [row.active_at for row in due(registry, clock)] == [int(clock.now)]


def test_expired_rows_are_counted_once_and_hold_no_personal_data(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    track(registry, session, clock)
    clock.turn(IDLE)
    rows = due(registry, clock)
    assert [row.session for row in registry.expire(rows).done] == [session]
    assert registry.expire(rows) == BatchResult([], [])
    assert state(registry, session) == "expired"
    left = item(dynamodb, settings, session)
    assert not {"customerKey", "userContext", "dueAt", "sweepShard"} & set(left)
    assert int(left["expiresAt"]["N"]) == int(clock.now) + RETENTION


@pytest.mark.parametrize(
    "damage",
    [
        {"activeAt": None},
        {"attempts": {"S": "many"}},
        {"customerKey": {"N": "7"}},
        {"interactive": {"S": "yes"}},
    ],
)
def test_a_row_that_cannot_be_read_is_left_and_counted(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings, damage: dict[str, Any]
) -> None:
    session = new_session()
    registry.keep(session, int(clock.now))
    damaged = item(dynamodb, settings, session) | damage
    damaged = {name: value for name, value in damaged.items() if value is not None}
    dynamodb.put_item(TableName=settings.table_name, Item=damaged)
    another = replace(session, market="SE")
    dynamodb.put_item(
        TableName=settings.table_name, Item=damaged | {"market": {"S": another.market}}
    )
    page = registry.due(shard_of(session.session_key), int(clock.now))
    assert (page.rows, page.unreadable) == ([], 2)
    assert item(dynamodb, settings, session) == damaged


def test_a_state_from_a_later_version_is_not_touched(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    registry.keep(session, int(clock.now))
    future = item(dynamodb, settings, session) | {"state": {"S": "paused"}}
    dynamodb.put_item(TableName=settings.table_name, Item=future)
    with pytest.raises(UnreadableRow, match="state is not known to this version"):
        registry.claim(session, int(clock.now))
    assert track(registry, session, clock) is False
    assert item(dynamodb, settings, session) == future


def test_a_row_without_a_state_is_not_touched(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = new_session()
    registry.keep(session, int(clock.now))
    damaged = item(dynamodb, settings, session)
    del damaged["state"]
    dynamodb.put_item(TableName=settings.table_name, Item=damaged)
    with pytest.raises(UnreadableRow):
        registry.claim(session, int(clock.now))
    assert track(registry, session, clock) is False
    assert item(dynamodb, settings, session) == damaged


def test_times_keep_their_milliseconds(registry: Registry, clock: Clock) -> None:
    """A page view and a sign-in in one second, which arrive in the wrong order."""
    anonymous = new_session()
    signed_in = replace(anonymous, customer_key=str(uuid.uuid4()))
    at = clock.now
    assert track(registry, signed_in, clock, at=at + 0.7)
    assert track(registry, anonymous, clock, at=at + 0.1)
    clock.turn(IDLE)
    (row,) = due(registry, clock)
    assert (row.session, row.active_at, row.due_at) == (signed_in, at + 0.7, int(at) + IDLE)
    (claimed,) = registry.claim_due([row]).done
    assert registry.settle([(claimed, Settlement("ended", None, 1, 204))]) == []
    assert state(registry, signed_in) == "ended"


def test_a_key_is_remembered_as_its_caller_spelled_it(
    registry: Registry, clock: Clock, dynamodb: Any, settings: Settings
) -> None:
    session = replace(new_session(), given_key="AS GIVEN")
    registry.keep(session, int(clock.now))
    (row,) = due(registry, clock)
    assert row.session == session
    (claimed,) = registry.claim_due([row]).done
    registry.settle([(claimed, Settlement("ended", None, 1, 204))])
    assert "givenKey" not in item(dynamodb, settings, session)


def test_every_shard_is_used_and_a_keys_shard_never_changes() -> None:
    assert {shard_of(str(n)) for n in range(200)} == set(range(8))
    assert shard_of("b106299c-eac0-4f6f-96d2-93e57c255784") == 6
