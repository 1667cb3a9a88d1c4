"""Every write of the registry: what it changes, beside the condition that guards it.

A row is due while it has `dueAt` and `sweepShard`, the keys of the sparse index `due`. A lease
(`lease`, `leaseUntil`) lies on top of that and is not in the index, so that claiming costs no index
write. An explicit end enters the index only if it must be tried again:

    track ──> dueAt = last activity + idle          claim ──> lease, leaseUntil = now + 90 s
    keep ───> dueAt = now                           crash ──> leaseUntil passes
    settle ─> finished: dueAt removed
              retrying: dueAt = now + backoff

Every write moves `expiresAt`, and nothing removes it: a row that nobody has touched for RETENTION
has nothing left to do. Upserts are UpdateItems; what is written to a row that has been read is a
PartiQL statement, one or 25 in a call. Statements remove only what the row is known to have.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sessions.lifetime import DAY, idle_at
from sessions.session import Activity, Claim, Row, Session, Settlement, State, hashed
from sessions.settings import Settings

type Values = Mapping[str, Any]
type Update = dict[str, Any]
type Statement = tuple[str, list[dict[str, Any]]]

# A lease must outlive the invocation that holds it: a killed function sends nothing more.
# Every function's Timeout in template.yaml is below this (a test compares them).
LEASE_SECONDS = 90

# No end has a deadline of more than 14 days (the largest SessionLimitMinutes), so a row that nobody
# has touched for longer can go (seconds). Never a timer: DynamoDB deletes when it likes.
RETENTION = 15 * DAY

# Sweeps read the due sessions in this many parts, side by side. A constant: rows stay where they
# are.
SHARDS = 8

FINISHED: tuple[State, ...] = ("ended", "rejected", "expired")
_ALIVE: tuple[State, ...] = ("open", "retrying")


def shard_of(session_key: str) -> int:
    """Return the shard of a session: a hash that is the same in every process."""
    return zlib.crc32(session_key.encode()) % SHARDS


def parked(shard: int) -> int:
    """Return the partition of the index that holds the shard's rejected sessions."""
    return -1 - shard


def ended_for(customer_key: str | None) -> str | None:
    """Return what the row of an ended session keeps of its customerKey, to tell another's.

    It is a hash, and the same for all spellings of a UUID.
    """
    return hashed(customer_key and customer_key.lower())


def wire(value: Any) -> dict[str, Any]:
    """Return a value as DynamoDB writes it."""
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case int() | float():
            return {"N": str(value)}
        case _:
            return {"S": value}


# -- one row, known or not: UpdateItem ---------------------------------------------------------


def track(activity: Activity, now: int, settings: Settings) -> Update:
    """Open a new session, keep a living one open, or reopen one that was over by a guess."""
    session = activity.session
    known, unknown = _identity(session)
    changed = [f"{name} <> :{name}" for name in known]
    changed += [f"attribute_exists({name})" for name in unknown]
    sets = known | {
        "state": "open",
        "activeAt": activity.at,
        "dueAt": idle_at(activity.at, settings.idle),
        "sweepShard": shard_of(session.session_key),
        "attempts": 0,
    }
    defaults: dict[str, Any] = {"leaseUntil": 0}
    if activity.interactive:
        sets["interactive"] = True
        changed.append("interactive <> :interactive")
    elif activity.interactive is False:
        # It says "none so far" and takes nothing back: once seen, always seen.
        defaults["interactive"] = False
        changed.append("attribute_not_exists(interactive)")
    # Protects newer activity from an older report, and saves writes that change little: activity
    # that moves by less than the slack is written only if something else changes with it.
    moved = f"(activeAt < :stale OR (activeAt <= :activeAt AND ({' OR '.join(changed)})))"
    living = f"#state IN (:open, :retrying) AND {moved}"
    # Protects a finished session from activity that was before its end.
    returned = "#state IN (:ended, :rejected, :expired) AND settledAt <= :activeAt"
    # Protects an explicit end, which is final.
    unasked = "attribute_not_exists(requestedAt)"
    return _update(
        session,
        f"attribute_not_exists(sessionKey) OR ({unasked} AND (({living}) OR ({returned})))",
        now,
        sets,
        defaults,
        removes=[*unknown, "settledAt", "endedFor", "lastStatus", "lastReason"],
        compared={"stale": activity.at - settings.slack} | _states(*_ALIVE, *FINISHED),
    )


def note_interactive(session: Session, now: int) -> Update:
    """Note that Elevate has seen an interactive notification; it only lengthens the deadline."""
    # Protects what is over: nobody asks it when it would have ended.
    living = "#state IN (:open, :retrying)"
    return _update(session, living, now, {"interactive": True}, compared=_states(*_ALIVE))


# An explicit end may be asked for, of any session but those that an explicit end has ended. After
# an idle end, which is a guess, the visitor must have been there to sign out.
_ENDABLE = (
    "(#state IN (:open, :retrying, :ending, :rejected, :expired)"
    " OR (#state = :ended AND attribute_not_exists(requestedAt) AND settledAt < :requestedAt))"
)
# Protects a visitor who was active after a request that comes late, as that of an event may; a call
# is now. What has been asked for once is to be ended, however old the next request is.
_NEWS = "(attribute_exists(requestedAt) OR activeAt <= :newest)"
_MAY_END = f"({_ENDABLE} AND {_NEWS})"


def newest(asked_at: float, slack: int) -> float:
    """Return the latest activity (epoch seconds) that an end of this time may still end.

    Activity is written down with a slack. Within it nobody knows the order: clocks differ, and a
    page view may arrive before the sign-out that it followed.
    """
    return asked_at + slack


def _may_end_values(asked_at: float, slack: int) -> dict[str, Any]:
    """Return the values that only _MAY_END names."""
    return {"newest": newest(asked_at, slack)} | _states("ending", *_ALIVE, *FINISHED)


def claim(session: Session, asked_at: float, now: int, lease: str, slack: int) -> Update:
    """Take a lease on a session that is to be ended, tracked before or not."""
    known, unknown = _identity(session)
    # Protects a session in flight from a second notification.
    free = "leaseUntil <= :now"
    # A claim whose answer was lost, and that the SDK repeats, finds its own lease again.
    ours = "lease = :lease"
    return _update(
        session,
        f"attribute_not_exists(sessionKey) OR ({free} AND {_MAY_END}) OR {ours}",
        now,
        known
        | {
            "state": "ending",
            "requestedAt": asked_at,
            "lease": lease,
            "leaseUntil": now + LEASE_SECONDS,
        },
        {"activeAt": asked_at, "attempts": 0},
        unknown,
        {"now": now} | _may_end_values(asked_at, slack),
    )


def keep(session: Session, asked_at: float, now: int, slack: int) -> Update:
    """Write down that a session is to be ended, due at once, without claiming it.

    That somebody asks is a sign of life, as of now: Elevate's own limit counts from it.
    """
    known, unknown = _identity(session)
    return _update(
        session,
        f"attribute_not_exists(sessionKey) OR {_MAY_END}",
        now,
        known
        | {
            "state": "open",
            "requestedAt": asked_at,
            "activeAt": now,
            "dueAt": now,
            "sweepShard": shard_of(session.session_key),
        },
        {"attempts": 0, "leaseUntil": 0},
        unknown,
        _may_end_values(asked_at, slack),
    )


def make_final(session: Session, asked_at: float, now: int, slack: int) -> Update:
    """Note that an explicit end was asked for of a session that has ended as idle."""
    # Protects the time of an earlier request.
    ended_as_idle = "#state = :ended AND attribute_not_exists(requestedAt)"
    compared = {"newest": newest(asked_at, slack)} | _states("ended")
    sets = {"requestedAt": asked_at}
    return _update(session, f"{ended_as_idle} AND {_NEWS}", now, sets, compared=compared)


def _identity(session: Session) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes a session has beside its key, and the names of those it has not."""
    found = {
        "customerKey": session.customer_key,
        "userContext": session.user_context,
        "givenKey": session.given_key,
    }
    known = {name: value for name, value in found.items() if value is not None}
    return known, [name for name in found if name not in known]


def _states(*states: State) -> dict[str, Any]:
    """Return the values of the states that a condition names."""
    return {state: state for state in states}


def _update(
    session: Session,
    condition: str,
    now: int,
    sets: Values,
    defaults: Values | None = None,
    removes: Collection[str] = (),
    compared: Values | None = None,
) -> Update:
    """Set, set what is missing, and remove; `compared` are values that only the condition names."""
    sets = {**sets, "expiresAt": now + RETENTION}
    defaults = defaults or {}
    # "state" is a reserved word, which all conditions name.
    changes = [f"{'#state' if name == 'state' else name} = :{name}" for name in sets]
    changes += [f"{name} = if_not_exists({name}, :{name})" for name in defaults]
    expression = "SET " + ", ".join(changes)
    if removes:
        expression += " REMOVE " + ", ".join(removes)
    values = {**sets, **defaults, **(compared or {})}
    return {
        "Key": {"sessionKey": wire(session.session_key), "market": wire(session.market)},
        "UpdateExpression": expression,
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#state": "state"},
        "ExpressionAttributeValues": {f":{name}": wire(value) for name, value in values.items()},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


# -- a row that has been read: PartiQL ---------------------------------------------------------


# Conditions: tests that must all hold, each with what it compares, or None.
type Tests = Mapping[str, Any]


def claim_due(claim: Claim) -> Statement:
    """Take a lease on a due row that has not changed since it was read."""
    row = claim.row
    sets = {"lease": claim.lease, "leaseUntil": claim.at + LEASE_SECONDS}
    return _statement(row, claim.at, sets, [], _still_due(row, claim.at))


def expire(row: Row, now: int) -> Statement:
    """Settle a due row that Elevate will already have ended itself, if it has not changed."""
    sets = {"state": "expired", "settledAt": now, "lastReason": ""}
    return _statement(row, now, sets, _forgotten(row), _still_due(row, now))


def _still_due(row: Row, now: int) -> Tests:
    """Protect a session that has changed since the index was read.

    It was tracked, asked for, settled (perhaps parked within the same second) or claimed.
    """
    return {
        '"sweepShard" =': row.shard,
        '"dueAt" =': row.due_at,
        '"activeAt" =': row.active_at,
        '"leaseUntil" <': now,
    }


def settle(claim: Claim, settlement: Settlement, now: int) -> Statement:
    """Write the outcome of a claimed session, if nothing has happened to it in flight."""
    row = claim.row
    # Protects a session that was tracked, or asked for, while its notification was in flight.
    unmoved: dict[str, Any] = {'"activeAt" =': row.active_at}
    unmoved['"dueAt" IS MISSING' if row.due_at is None else '"dueAt" ='] = row.due_at
    return _settle(claim, settlement, now, row, unmoved)


def settle_kept(claim: Claim, settlement: Settlement, now: int) -> Statement:
    """Write the delivery of an end that was asked for, and asked for again in flight.

    Both asked for the same. The second request is kept in the index, and goes with the first.
    """
    return _settle(claim, settlement, now, replace(claim.row, due_at=0), {'"dueAt" >': 0})


def _settle(claim: Claim, settlement: Settlement, now: int, row: Row, tests: Tests) -> Statement:
    """Settle as of the claim; `row` says which attributes there are.

    Any activity after the claim, even if it is reported later, means that the visitor is back.
    """
    shard = shard_of(row.session.session_key)
    sets: dict[str, Any] = {
        "state": settlement.state,
        "attempts": settlement.attempts,
        "leaseUntil": 0,
        "lastStatus": settlement.status,
        "lastReason": settlement.reason,
    }
    gone = ["lease"]
    match settlement.state:
        case "retrying":
            sets |= {"activeAt": row.alive_at, "dueAt": settlement.due_at, "sweepShard": shard}
        case "rejected":
            sets |= {"dueAt": now, "sweepShard": parked(shard), "settledAt": claim.at}
            gone += ["interactive"] if row.interactive is not None else []
        case "ended":
            sets |= {"settledAt": claim.at, "endedFor": ended_for(row.session.customer_key)}
            gone += _forgotten(row)
        case _:
            sets |= {"settledAt": claim.at}
            gone += _forgotten(row)
    return _statement(row, now, sets, gone, {**_ours(claim), **tests})


def give_back(claim: Claim, now: int) -> Statement:
    """Let go of a row; whatever else it holds stays as it is."""
    return _statement(claim.row, now, {"leaseUntil": 0}, ["lease"], _ours(claim))


def _ours(claim: Claim) -> Tests:
    """Protect what another owner wrote after our lease had run out."""
    return {'"lease" =': claim.lease}


def _forgotten(row: Row) -> list[str]:
    """Return what a session that is over no longer needs, of what its row has."""
    has = {
        "dueAt": row.due_at is not None,
        "sweepShard": row.due_at is not None,
        "customerKey": row.session.customer_key is not None,
        "userContext": row.session.user_context is not None,
        "givenKey": row.session.given_key is not None,
        "interactive": row.interactive is not None,
    }
    return [name for name, is_there in has.items() if is_there]


def _statement(
    row: Row, now: int, sets: Values, removes: Collection[str], tests: Tests
) -> Statement:
    """Return text and parameters. Whole numbers stand in the text: each parameter costs time."""
    parameters: list[dict[str, Any]] = []

    def said(value: Any) -> str:
        if type(value) is int and value >= 0:
            return str(value)
        parameters.append(wire(value))
        return "?"

    changes = [f'SET "{name}" = {said(value)}' for name, value in sets.items()]
    changes.append(f'SET "expiresAt" = {now + RETENTION}')
    changes += [f'REMOVE "{name}"' for name in removes]
    tests = {
        '"sessionKey" =': row.session.session_key,
        '"market" =': row.session.market,
        **tests,
    }
    where = [test if value is None else f"{test} {said(value)}" for test, value in tests.items()]
    return f"{' '.join(changes)} WHERE {' AND '.join(where)}", parameters
