"""Every write of the registry: what it changes, and the condition that guards it.

A row is due while it has `dueAt` and `sweepShard`, the keys of the sparse index `due`. A lease
(`lease`, `leaseUntil`) lies on top of that and is not in the index, so that claiming costs no index
write. An explicit end enters the index only if it must be tried again:

    track ──> dueAt = last activity + idle          claim ──> lease, leaseUntil = now + 90 s
    keep ───> dueAt = now                           crash ──> leaseUntil passes
    settle ─> finished: dueAt removed
              retrying: dueAt = now + backoff

An end that a caller was promised is in the index and has no TTL, whatever happens to later claims.
Finished rows have one, and a row that a claim has made, for its caller has no answer yet. A claim
that dies on a tracked session leaves one behind; the next sweep's claim takes it away.

One row is written by UpdateItem, pages of rows by PartiQL statements in batches.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from sessions.items import wire
from sessions.lifetime import idle_at
from sessions.session import LEASE_SECONDS, Activity, Claim, Row, Session, Settlement
from sessions.settings import Settings

type Values = Mapping[str, Any]
type Statement = tuple[str, list[dict[str, Any]]]

# An explicit end may be asked for, of any session but those that an explicit end has ended. After
# an idle end, which is a guess, the visitor must have been there to sign out.
_MAY_END = (
    "#state IN (:open, :retrying, :ending, :rejected, :expired)"
    " OR (#state = :ended AND attribute_not_exists(requestedAt) AND settledAt < :requestedAt)"
)
# Upsert by an explicit end. Protects an ended session from being ended again and a session in
# flight from a second notification; a claim whose answer was lost finds its own lease again.
CLAIM_CONDITION = (
    f"attribute_not_exists(sessionKey) OR (leaseUntil <= :now AND ({_MAY_END})) OR lease = :lease"
)
# Claim with a TTL. Protects an end that somebody was promised: if this claim dies too, it stays.
UNPROMISED_CONDITION = (
    f"({CLAIM_CONDITION}) AND NOT (attribute_exists(requestedAt) AND sweepShard >= :first"
    " AND #state IN (:open, :retrying, :ending))"
)
# Keep a request to end a session that someone else is ending now: only if it is not over.
KEEP_CONDITION = f"(attribute_not_exists(sessionKey) OR {_MAY_END})"
# The same, if the request is also the latest sign of life: Elevate's own limit counts from it.
KEEP_ALIVE_CONDITION = (
    f"{KEEP_CONDITION} AND (attribute_not_exists(activeAt) OR activeAt < :requestedAt)"
)
# An explicit end came after the idle one. Protects the time of an earlier request.
FINAL_CONDITION = "#state = :ended AND attribute_not_exists(requestedAt)"
# Reopen. Protects explicit ends, which are final, and a finished row from older activity.
REOPEN_CONDITION = (
    "#state IN (:ended, :rejected, :expired) AND attribute_not_exists(requestedAt)"
    " AND settledAt <= :activeAt"
)
# Track. Protects finished and explicitly ended sessions, and saves writes that change little:
# older activity, and activity that moves by less than the slack.
TRACK_CONDITION = (
    "attribute_not_exists(sessionKey)"
    " OR (#state IN (:open, :retrying) AND attribute_not_exists(requestedAt)"
    " AND (activeAt < :stale OR (activeAt <= :activeAt AND ({changed}))))"
)
# A late event may still know that the visitor had clicked; that only ever lengthens the deadline.
INTERACTIVE_CONDITION = "#state IN (:open, :retrying)"

# Claim by a sweep, or expire. Protects a session that was tracked, asked for, settled (perhaps
# parked within the same second) or claimed since the index was read.
DUE_CONDITION = '"sweepShard" = ? AND "dueAt" = ? AND "activeAt" = ? AND "leaseUntil" < ?'
# Give a row back. Protects what another owner wrote after our lease had run out.
OURS_CONDITION = '"lease" = ?'
# Settle. Protects a session that was tracked, or asked for, while its notification was in flight.
OURS_UNMOVED_CONDITION = '"lease" = ? AND "activeAt" = ? AND "dueAt" = ?'
OURS_UNINDEXED_CONDITION = '"lease" = ? AND "activeAt" = ? AND "dueAt" IS MISSING'
# Settle a delivered end that was asked for in flight: it is what was asked for.
OURS_ASKED_CONDITION = '"lease" = ? AND "requestedAt" > ?'

STATES = ("open", "retrying", "ending", "ended", "rejected", "expired")
# Sweeps read the due sessions in this many parts, side by side. A constant: rows stay where they are.
SHARDS = 8
# How long a row is kept (seconds).
RETENTION = 14 * 24 * 60 * 60
_INDEX = ("dueAt", "sweepShard")
_PERSONAL = ("customerKey", "userContext", "lastReason")
_FREE = {"leaseUntil": 0}


def shard_of(session_key: str, shards: int) -> int:
    """Return the shard of a session: a hash that is the same in every process."""
    return zlib.crc32(session_key.encode()) % shards


def parked(shard: int) -> int:
    """Return the partition of the index that holds the shard's rejected sessions."""
    return -1 - shard


# -- one row: arguments of UpdateItem ----------------------------------------------------------


def track(activity: Activity, settings: Settings) -> dict[str, Any]:
    """Note a sign of life."""
    known, unknown = _identity(activity.session)
    sets, defaults = _alive(activity, settings) | known, {"leaseUntil": 0}
    changed = [f"{name} <> :{name}" for name in known]
    changed += [f"attribute_exists({name})" for name in unknown]
    if activity.interactive:
        sets["interactive"] = True
        changed.append("interactive <> :interactive")
    elif activity.interactive is False:
        # It says "none so far" and takes nothing back: once seen, always seen.
        defaults["interactive"] = False
        changed.append("attribute_not_exists(interactive)")
    condition = TRACK_CONDITION.format(changed=" OR ".join(changed))
    stale = {"stale": activity.at - settings.slack}
    return _update(activity.session, condition, sets, defaults, unknown, stale)


def reopen(activity: Activity, settings: Settings) -> dict[str, Any]:
    """Open a session again that was over by a guess: its visitor is back."""
    known, gone = _identity(activity.session)
    sets = _alive(activity, settings) | known
    gone += ["expiresAt", "settledAt", "lastStatus", "lastReason"]
    if activity.interactive is None:
        gone.append("interactive")
    else:
        sets["interactive"] = activity.interactive
    return _update(activity.session, REOPEN_CONDITION, sets, removes=gone)


def _alive(activity: Activity, settings: Settings) -> dict[str, Any]:
    return {
        "state": "open",
        "activeAt": activity.at,
        "dueAt": idle_at(activity.at, settings.idle),
        "sweepShard": shard_of(activity.session.session_key, SHARDS),
        "attempts": 0,
    }


def note_interactive(session: Session) -> dict[str, Any]:
    """Note that Elevate has seen an interactive notification."""
    return _update(session, INTERACTIVE_CONDITION, {"interactive": True})


def claim(
    session: Session, asked_at: int, now: int, lease: str, settings: Settings, *, promised: bool
) -> dict[str, Any]:
    """Take a lease on a session that is to be ended, tracked before or not.

    `promised` claims one whose end was promised before; any other claim leaves such a row alone.
    """
    known, unknown = _identity(session)
    sets = {
        "state": "ending",
        "requestedAt": asked_at,
        "lease": lease,
        "leaseUntil": now + LEASE_SECONDS,
    } | known
    defaults = {"activeAt": asked_at, "attempts": 0}
    if promised:
        return _update(session, CLAIM_CONDITION, sets, defaults, unknown, {"now": now})
    sets["expiresAt"] = now + RETENTION
    compared = {"now": now, "first": 0}
    return _update(session, UNPROMISED_CONDITION, sets, defaults, unknown, compared)


def keep(
    session: Session, asked_at: int, now: int, settings: Settings, *, alive: bool
) -> dict[str, Any]:
    """Write down that a session is to be ended, due at once, without claiming it.

    `alive` takes the request for the latest sign of life.
    """
    known, unknown = _identity(session)
    sets = {
        "state": "open",
        "requestedAt": asked_at,
        "dueAt": now,
        "sweepShard": shard_of(session.session_key, SHARDS),
    }
    defaults = {"attempts": 0, "leaseUntil": 0}
    (sets if alive else defaults)["activeAt"] = asked_at
    condition = KEEP_ALIVE_CONDITION if alive else KEEP_CONDITION
    return _update(session, condition, sets | known, defaults, ["expiresAt", *unknown])


def make_final(session: Session, asked_at: int) -> dict[str, Any]:
    """Note that an explicit end was asked for of a session that has ended as idle."""
    return _update(session, FINAL_CONDITION, {"requestedAt": asked_at})


def _identity(session: Session) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes a session has beside its key, and the names of those it has not."""
    found = {"customerKey": session.customer_key, "userContext": session.user_context}
    known = {name: value for name, value in found.items() if value is not None}
    return known, [name for name in found if name not in known]


def _update(
    session: Session,
    condition: str,
    sets: Values,
    defaults: Values | None = None,
    removes: Iterable[str] = (),
    values: Values | None = None,
) -> dict[str, Any]:
    """Set, set what is missing, and remove; `values` are those the condition compares with."""
    # A reserved word, which all conditions name.
    changes = [f"{'#state' if name == 'state' else name} = :{name}" for name in sets]
    changes += [f"{name} = if_not_exists({name}, :{name})" for name in defaults or {}]
    gone = ", ".join(removes)
    given = {**sets, **(defaults or {}), **(values or {})}
    # DynamoDB refuses values that nothing uses.
    given |= {state: state for state in STATES if f":{state}" in condition}
    return {
        "Key": {"sessionKey": wire(session.session_key), "market": wire(session.market)},
        "UpdateExpression": "SET " + ", ".join(changes) + (f" REMOVE {gone}" if gone else ""),
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#state": "state"},
        "ExpressionAttributeValues": {f":{name}": wire(value) for name, value in given.items()},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


# -- pages of rows: PartiQL --------------------------------------------------------------------


def claim_due(claim: Claim) -> Statement:
    """Take a lease on a due row that has not changed since it was read."""
    sets = {"lease": claim.lease, "leaseUntil": claim.at + LEASE_SECONDS}
    return _statement(claim.row, sets, ["expiresAt"], *_due(claim.row, claim.at))


def expire(row: Row, now: int, settings: Settings) -> Statement:
    """Settle a due row that Elevate must have ended itself, if it has not changed."""
    sets = {"state": "expired"} | _finished(now, settings)
    return _statement(row, sets, (*_INDEX, *_PERSONAL), *_due(row, now))


def settle(
    claim: Claim, settlement: Settlement, now: int, settings: Settings, *, asked: bool = False
) -> Statement:
    """Write the outcome of a claimed session, if nothing has happened to it in flight.

    `asked` writes it if its end was asked for in flight. It is settled as of its claim: any
    activity after that, even if it is reported later, means that the visitor is back.
    """
    row = claim.row
    shard = shard_of(row.session.session_key, SHARDS)
    sets: dict[str, Any] = {"state": settlement.state, "attempts": settlement.attempts} | _FREE
    sets |= {"lastStatus": settlement.status}
    gone = ["lease"]
    match settlement.state:
        case "retrying":
            sets |= {"activeAt": row.alive_at, "dueAt": settlement.due_at, "sweepShard": shard}
            sets |= {"lastReason": settlement.reason}
            gone += ["expiresAt"]
        case "rejected":
            sets |= {"dueAt": now, "sweepShard": parked(shard), "lastReason": settlement.reason}
            sets |= _finished(now, settings) | {"settledAt": claim.at}
        case _:
            sets |= _finished(now, settings) | {"settledAt": claim.at}
            gone += [*_INDEX, *_PERSONAL]
    if asked:
        return _statement(row, sets, gone, OURS_ASKED_CONDITION, claim.lease, 0)
    if row.due_at is None:
        return _statement(row, sets, gone, OURS_UNINDEXED_CONDITION, claim.lease, row.active_at)
    unmoved = (claim.lease, row.active_at, row.due_at)
    return _statement(row, sets, gone, OURS_UNMOVED_CONDITION, *unmoved)


def give_back(claim: Claim) -> Statement:
    """Let go of a row; whatever else it holds stays as it is."""
    return _statement(claim.row, _FREE, ["lease"], OURS_CONDITION, claim.lease)


def _due(row: Row, now: int) -> tuple[Any, ...]:
    return (DUE_CONDITION, row.shard, row.due_at, row.active_at, now)


def _finished(now: int, settings: Settings) -> dict[str, Any]:
    return {"settledAt": now, "expiresAt": now + RETENTION}


def _statement(
    row: Row, sets: Values, removes: Iterable[str], condition: str, *compared: Any
) -> Statement:
    text = " ".join([*(f'SET "{name}" = ?' for name in sets), *(f'REMOVE "{n}"' for n in removes)])
    key = (row.session.session_key, row.session.market)
    parameters = [wire(value) for value in (*sets.values(), *key, *compared)]
    return f'{text} WHERE "sessionKey" = ? AND "market" = ? AND {condition}', parameters
