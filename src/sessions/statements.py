"""Every write of the registry: what it changes, and the condition that guards it.

A row is due while it has `dueAt` and `sweepShard`, the keys of the sparse index `due`. A lease
(`lease`, `leaseUntil`) lies on top of that and is not in the index, so claiming a session costs no
index write, and a crash at any line leaves the row where the next sweep finds it:

    track ──> dueAt = last activity + idle          claim ──> lease, leaseUntil = now + 90 s
    settle ─> finished: dueAt removed               crash ──> leaseUntil passes, dueAt still there
              retrying: dueAt = now + backoff

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

# Upsert by an explicit end. Protects an ended session from being ended again and a session in
# flight from a second notification; a claim whose answer was lost finds its own lease again. An
# expired session was never ended by us: who asks for its end knows of a later sign of life.
CLAIM_CONDITION = (
    "attribute_not_exists(sessionKey)"
    " OR (#state IN (:open, :retrying, :rejected, :expired) AND leaseUntil <= :now)"
    " OR lease = :lease"
)
# Record the wish to end a session that someone else is just ending: only if it is not over.
KEEP_CONDITION = (
    "attribute_not_exists(sessionKey) OR #state IN (:open, :retrying, :rejected, :expired)"
)
# Track. Protects finished and explicitly ended sessions, and the row from writes that change
# little: older news, and activity that moves by less than the slack.
TRACK_CONDITION = (
    "attribute_not_exists(sessionKey)"
    " OR (#state IN (:open, :retrying) AND attribute_not_exists(requestedAt)"
    " AND (activeAt < :stale OR (activeAt <= :activeAt AND ({changed}))))"
)
# A late event may still know that the visitor had clicked; that only ever lengthens the deadline.
INTERACTIVE_CONDITION = "#state IN (:open, :retrying) AND attribute_not_exists(requestedAt)"

# Claim by a sweep. Protects a session tracked, settled or claimed since the index was read.
DUE_CONDITION = '"dueAt" = ? AND "leaseUntil" < ?'
# Settle. Protects what another owner wrote after our lease had run out.
OURS_CONDITION = '"lease" = ?'
# Postpone. Protects the newer due time of a session that was tracked, or asked for, in flight.
OURS_UNMOVED_CONDITION = '"lease" = ? AND "dueAt" = ?'
# Retry a rejected session. Protects one that was ended or retried since the index was read.
REJECTED_CONDITION = '"state" = \'rejected\' AND "dueAt" = ?'

_STATES = ("open", "retrying", "ended", "rejected", "expired")
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
    session = activity.session
    sets = {
        "state": "open",
        "activeAt": activity.at,
        "dueAt": idle_at(activity.at, settings.idle),
        "sweepShard": shard_of(session.session_key, settings.shards),
        "attempts": 0,
    }
    defaults: dict[str, Any] = {"leaseUntil": 0}
    known, unknown = _identity(session)
    changed = [f"{name} <> :{name}" for name in known]
    changed += [f"attribute_exists({name})" for name in unknown]
    if activity.interactive:
        sets["interactive"] = True
        changed.append("interactive <> :interactive")
    elif activity.interactive is False:
        # It says "none so far" and takes nothing back: once seen is seen.
        defaults["interactive"] = False
        changed.append("attribute_not_exists(interactive)")
    condition = TRACK_CONDITION.format(changed=" OR ".join(changed))
    values = {"stale": activity.at - settings.slack}
    return _update(session, condition, sets | known, defaults, unknown, values)


def note_interactive(session: Session) -> dict[str, Any]:
    """Note that Elevate has seen an interactive notification."""
    return _update(session, INTERACTIVE_CONDITION, {"interactive": True})


def claim(
    session: Session, asked_at: int, now: int, lease: str, settings: Settings
) -> dict[str, Any]:
    """Take a lease on a session that is to be ended, tracked before or not."""
    known, unknown = _identity(session)
    sets = _asked(session, asked_at, now, settings) | known
    sets |= {"lease": lease, "leaseUntil": now + LEASE_SECONDS}
    defaults = {"activeAt": asked_at, "attempts": 0}
    removes = ["expiresAt", *unknown]
    return _update(session, CLAIM_CONDITION, sets, defaults, removes, {"now": now})


def keep(session: Session, asked_at: int, now: int, settings: Settings) -> dict[str, Any]:
    """Write down that a session is to be ended, due at once, without claiming it."""
    known, unknown = _identity(session)
    sets = _asked(session, asked_at, now, settings) | known
    defaults = {"activeAt": asked_at, "attempts": 0, "leaseUntil": 0}
    return _update(session, KEEP_CONDITION, sets, defaults, ["expiresAt", *unknown])


def _asked(session: Session, asked_at: int, now: int, settings: Settings) -> dict[str, Any]:
    return {
        "state": "open",
        "requestedAt": asked_at,
        "dueAt": now,
        "sweepShard": shard_of(session.session_key, settings.shards),
    }


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
    defaults = defaults or {}
    changes = [f"{_name(name)} = :{name}" for name in sets]
    changes += [f"{name} = if_not_exists({name}, :{name})" for name in defaults]
    expression = "SET " + ", ".join(changes)
    if gone := ", ".join(removes):
        expression += f" REMOVE {gone}"
    given = {**sets, **defaults, **(values or {})}
    # DynamoDB refuses values that nothing uses.
    given |= {state: state for state in _STATES if f":{state}" in condition}
    arguments = {
        "Key": {"sessionKey": wire(session.session_key), "market": wire(session.market)},
        "UpdateExpression": expression,
        "ConditionExpression": condition,
        "ExpressionAttributeValues": {f":{name}": wire(value) for name, value in given.items()},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if "#state" in expression + condition:
        arguments["ExpressionAttributeNames"] = {"#state": "state"}
    return arguments


def _name(attribute: str) -> str:
    return "#state" if attribute == "state" else attribute  # a reserved word


# -- pages of rows: PartiQL --------------------------------------------------------------------


def claim_due(claim: Claim, now: int) -> Statement:
    """Take a lease on a due row that has not changed since it was read."""
    sets = {"lease": claim.lease, "leaseUntil": now + LEASE_SECONDS}
    return _statement(claim.row, sets, (), DUE_CONDITION, claim.row.due_at, now)


def expire(row: Row, now: int, settings: Settings) -> Statement:
    """Settle a due row that Elevate must have ended itself, if it has not changed."""
    sets = {"state": "expired"} | _finished(now, settings)
    return _statement(row, sets, (*_INDEX, *_PERSONAL), DUE_CONDITION, row.due_at, now)


def settle(claim: Claim, settlement: Settlement, now: int, settings: Settings) -> Statement:
    """Write the outcome of a claimed session, on the condition that the lease is still ours."""
    row, ours = claim.row, (OURS_CONDITION, claim.lease)
    told: dict[str, Any] = {
        "state": settlement.state,
        "attempts": settlement.attempts,
        "lastStatus": settlement.status,
    } | _FREE
    match settlement.state:
        case "open":
            return _statement(row, _FREE, ["lease"], *ours)
        case "retrying":
            told |= {"dueAt": settlement.due_at, "lastReason": settlement.reason}
            unmoved = (OURS_UNMOVED_CONDITION, claim.lease, row.due_at)
            return _statement(row, told, ["lease"], *unmoved)
        case "rejected":
            shard = shard_of(row.session.session_key, settings.shards)
            told |= {"dueAt": now, "sweepShard": parked(shard), "lastReason": settlement.reason}
            return _statement(row, told | _finished(now, settings), ["lease"], *ours)
        case _:
            gone = ("lease", *_INDEX, *_PERSONAL)
            return _statement(row, told | _finished(now, settings), gone, *ours)


def retry_rejected(row: Row, due_at: int, settings: Settings) -> Statement:
    """Make a row due again that still is rejected."""
    shard = shard_of(row.session.session_key, settings.shards)
    sets = {"state": "retrying", "dueAt": due_at, "sweepShard": shard, "attempts": 0}
    return _statement(row, sets, ["expiresAt"], REJECTED_CONDITION, row.due_at)


def _finished(now: int, settings: Settings) -> dict[str, Any]:
    return {"settledAt": now, "expiresAt": now + settings.retention}


def _statement(
    row: Row, sets: Values, removes: Iterable[str], condition: str, *compared: Any
) -> Statement:
    text = " ".join([*(f'SET "{name}" = ?' for name in sets), *(f'REMOVE "{n}"' for n in removes)])
    key = (row.session.session_key, row.session.market)
    parameters = [wire(value) for value in (*sets.values(), *key, *compared)]
    return f'{text} WHERE "sessionKey" = ? AND "market" = ? AND {condition}', parameters
