"""The registry: the DynamoDB table of sessions, and every condition that guards it.

A row is due while it has `dueAt` and `sweepShard`, the keys of the sparse index `due`. A lease
(`lease`, `leaseUntil`) lies on top of that and is not in the index, so claiming a session costs no
index write, and a crash at any line leaves the row where the next sweep finds it:

    track ──> dueAt = last activity + idle          claim ──> lease, leaseUntil = now + 90 s
    settle ─> finished: dueAt removed               crash ──> leaseUntil passes, dueAt still there
              retrying: dueAt = now + backoff

BatchExecuteStatement answers 200 with an error *per statement*; `_write` reads each of them.
"""

import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import batched
from random import SystemRandom
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from sessions.aws import DynamoDB
from sessions.session import Activity, Session, State
from sessions.settings import LEASE_SECONDS, Settings

# As in elevate.py: copies of a snapshot must not wait in step.
_random = SystemRandom()

DUE_INDEX = "due"
BATCH = 25  # DynamoDB's limit of statements in one BatchExecuteStatement
PAGE = 1000

_FINISHED = {"ended", "expired"}

# Upsert by an explicit end. Protects an ended session from being ended again and a session in
# flight from a second notification; a claim whose answer was lost finds its own lease again. An
# expired session was never ended by us: who asks for its end knows of a later sign of life.
CLAIM_CONDITION = (
    "attribute_not_exists(sessionKey)"
    " OR (#state IN (:open, :retrying, :rejected, :expired) AND leaseUntil <= :now)"
    " OR lease = :lease"
)
# Record the wish to end a session that someone else is just ending: only if it is not over.
ASK_CONDITION = "#state IN (:open, :retrying, :rejected, :expired)"
# Claim by a sweep. Protects a session tracked, settled or claimed since the index was read.
DUE_CONDITION = "dueAt = ? AND leaseUntil < ?"
# Settle. Protects what another owner wrote after our lease had run out.
OURS_CONDITION = "lease = ?"
# Postpone. Protects the newer due time of a session that was tracked, or asked for, in flight.
OURS_UNMOVED_CONDITION = "lease = ? AND dueAt = ?"
# Track. Protects finished and explicitly ended sessions, and the row from writes that change
# little: older news, and activity that moves by less than the slack.
TRACK_CONDITION = (
    "attribute_not_exists(sessionKey)"
    " OR (#state IN (:open, :retrying) AND attribute_not_exists(requestedAt)"
    " AND (activeAt < :stale OR (activeAt <= :at AND ({changed}))))"
)
# A late event may still know that the visitor had clicked; that only ever lengthens the deadline.
INTERACTIVE_CONDITION = "#state IN (:open, :retrying) AND attribute_not_exists(requestedAt)"
# Retry a rejected session. Protects one that was ended or retried since the index was read.
REJECTED_CONDITION = "\"state\" = 'rejected' AND dueAt = ?"

_KEY = "sessionKey = ? AND market = ?"
_FORGET = "REMOVE customerKey REMOVE userContext REMOVE lastReason"
_LEAVE_INDEX = "REMOVE dueAt REMOVE sweepShard"
_GIVE_BACK = "SET leaseUntil = 0 REMOVE lease"


class RegistryUnavailable(Exception):
    """DynamoDB did not take a call, retries included; the message names the error only."""


class UnreadableRow(Exception):
    """A row has attributes or a state that this version does not understand."""


@dataclass(frozen=True, slots=True)
class Row:
    """A session with what a decision about it needs; times in epoch seconds."""

    session: Session
    due_at: int
    active_at: int
    shard: int = 0
    attempts: int = 0
    interactive: bool | None = None
    requested_at: int | None = None

    @property
    def alive_at(self) -> int:
        """Return the last moment at which the session is known to have been alive."""
        return max(self.active_at, self.requested_at or 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A row under our lease."""

    row: Row
    lease: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to write about a claimed session.

    State `open` gives the row back as it was. `due_at` is for `retrying` only.
    """

    state: State
    due_at: int | None = None
    attempts: int = 0
    status: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of due rows, with where the next one starts."""

    rows: list[Row]
    unreadable: int
    next: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Written[T]:
    """What came of writing many: `done`, and a code for each that failed.

    The condition of all others did not hold; that is no failure.
    """

    done: list[T]
    failed: list[str]


@dataclass(frozen=True, slots=True)
class Status:
    """What may be told about a session: everything but the customerKey."""

    market: str
    state: State
    due_at: int | None
    attempts: int
    last_status: int | None
    last_reason: str | None


def shard_of(session_key: str, shards: int) -> int:
    """Return the shard of a session: a hash that is the same in every process."""
    return zlib.crc32(session_key.encode()) % shards


def parked(shard: int) -> int:
    """Return the partition of the index that holds the shard's rejected sessions."""
    return -1 - shard


class Registry:
    """The table of sessions. All methods raise RegistryUnavailable when DynamoDB is."""

    def __init__(
        self,
        settings: Settings,
        client: Any = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._table = settings.table_name
        self._client = client or DynamoDB(settings.concurrency)
        self._clock = clock

    # -- one session -------------------------------------------------------------------------

    def track(self, activity: Activity) -> bool:
        """Note that a session is alive; False if it is over, or its end has been asked for."""
        session = activity.session
        values: dict[str, Any] = {
            ":open": _s("open"),
            ":retrying": _s("retrying"),
            ":at": _n(activity.at),
            ":stale": _n(activity.at - self._settings.slack),
            ":due": _n(activity.at + self._settings.idle),
            ":shard": _n(shard_of(session.session_key, self._settings.shards)),
            ":zero": _n(0),
        }
        update = (
            "SET #state = :open, activeAt = :at, dueAt = :due, sweepShard = :shard,"
            " attempts = :zero, leaseUntil = if_not_exists(leaseUntil, :zero)"
        )
        removes, changed = [], []
        for name, value in _identity(session).items():
            if value is None:
                removes.append(name)
                changed.append(f"attribute_exists({name})")
            else:
                values[f":{name}"] = _s(value)
                update += f", {name} = :{name}"
                changed.append(f"{name} <> :{name}")
        if activity.interactive is not None:
            values[":interactive"] = {"BOOL": activity.interactive}
            # Once seen is seen: false says "none so far" and takes nothing back.
            update += ", interactive = " + (
                ":interactive"
                if activity.interactive
                else "if_not_exists(interactive, :interactive)"
            )
            changed.append(
                "interactive <> :interactive"
                if activity.interactive
                else "attribute_not_exists(interactive)"
            )
        if removes:
            update += " REMOVE " + ", ".join(removes)
        condition = TRACK_CONDITION.format(changed=" OR ".join(changed))
        refused = self._update(session, update, condition, values)
        if refused is None:
            return True
        if not _is_open(refused):
            return False
        if activity.interactive and not refused.get("interactive", {}).get("BOOL"):
            self._update(
                session,
                "SET interactive = :true",
                INTERACTIVE_CONDITION,
                {":true": {"BOOL": True}, ":open": _s("open"), ":retrying": _s("retrying")},
            )
        return True

    def claim(self, session: Session, asked_at: int) -> Claim | Literal["over", "in flight"]:
        """Take a lease on a session that is to be ended, tracked before or not.

        "over": it has been ended already. "in flight": someone else holds the lease; the wish is
        written down, so that it outlives a failure of theirs. Raises UnreadableRow.
        """
        now = int(self._clock())
        lease = uuid.uuid4().hex
        values = self._asked(session, asked_at, now) | {
            ":lease": _s(lease),
            ":until": _n(now + LEASE_SECONDS),
            ":now": _n(now),
        }
        update = self._ask(session) + ", lease = :lease, leaseUntil = :until REMOVE expiresAt"
        update += "".join(f", {name}" for name, v in _identity(session).items() if v is None)
        returned: dict[str, Any] = {}
        refused = self._update(session, update, CLAIM_CONDITION, values, returned)
        if refused is None:
            return Claim(_row(returned), lease)
        return self._refused(session, asked_at, refused)

    def keep(self, session: Session, asked_at: int) -> None:
        """Write down that a session is to be ended, due at once, without claiming it."""
        now = int(self._clock())
        values = self._asked(session, asked_at, now)
        condition = f"attribute_not_exists(sessionKey) OR {ASK_CONDITION}"
        update = self._ask(session) + ", leaseUntil = if_not_exists(leaseUntil, :zero)"
        removes = ["expiresAt", *(n for n, v in _identity(session).items() if v is None)]
        self._update(session, update + " REMOVE " + ", ".join(removes), condition, values)

    def status(self, session_key: str) -> list[Status]:
        """Return the states of a session, one for each market it is known in."""
        answer = self._call(
            "query",
            KeyConditionExpression="sessionKey = :key",
            ExpressionAttributeValues={":key": _s(session_key)},
            ConsistentRead=True,
        )
        return [self._status(item) for item in answer["Items"]]

    # -- pages of sessions -------------------------------------------------------------------

    def due(self, shard: int, until: int, start: dict[str, Any] | None = None) -> Page:
        """Return a page of the shard's rows that are due at `until`, oldest first."""
        where = {"ExclusiveStartKey": start} if start else {}
        answer = self._call(
            "query",
            IndexName=DUE_INDEX,
            KeyConditionExpression="sweepShard = :shard AND dueAt <= :until",
            ExpressionAttributeValues={":shard": _n(shard), ":until": _n(until)},
            Limit=PAGE,
            **where,
        )
        rows, unreadable = [], 0
        for item in answer["Items"]:
            try:
                rows.append(_row(item))
            except UnreadableRow:
                unreadable += 1
        return Page(rows, unreadable, answer.get("LastEvaluatedKey"))

    def claim_due(self, rows: Sequence[Row]) -> Written[Claim]:
        """Take leases on due rows that have not changed since they were read."""
        now = int(self._clock())
        lease = uuid.uuid4().hex
        claims = [Claim(row, lease) for row in rows]
        update = f"SET lease = ? SET leaseUntil = ? WHERE {_KEY} AND {DUE_CONDITION}"
        return self._write(
            claims,
            lambda claim: (
                update,
                [_s(lease), _n(now + LEASE_SECONDS)],
                claim.row,
                [_n(claim.row.due_at), _n(now)],
            ),
        )

    def expire(self, rows: Sequence[Row]) -> Written[Row]:
        """Settle rows that Elevate must have ended itself, if they have not changed."""
        now = int(self._clock())
        return self._write(
            rows,
            lambda row: (
                f"SET \"state\" = 'expired' SET settledAt = ? SET expiresAt = ?"
                f" {_LEAVE_INDEX} {_FORGET} WHERE {_KEY} AND {DUE_CONDITION}",
                [_n(now), _n(now + self._settings.retention)],
                row,
                [_n(row.due_at), _n(now)],
            ),
        )

    def settle(
        self, settlements: Sequence[tuple[Claim, Settlement]]
    ) -> Written[tuple[Claim, Settlement]]:
        """Write outcomes, each on the condition that its lease is still ours."""
        written = self._write(settlements, self._settlement)
        # A postponed row that has moved meanwhile keeps its newer due time and loses the lease.
        moved = [
            (settled[0], Settlement("open"))
            for settled in settlements
            if settled[1].state == "retrying" and settled not in written.done
        ]
        if moved:
            written.failed.extend(self._write(moved, self._settlement).failed)
        return written

    def retry_rejected(self, rows: Sequence[Row], due_at: Callable[[], int]) -> Written[Row]:
        """Make rows due again that still are rejected."""
        return self._write(
            rows,
            lambda row: (
                "SET \"state\" = 'retrying' SET dueAt = ? SET sweepShard = ? SET attempts = 0"
                f" REMOVE expiresAt WHERE {_KEY} AND {REJECTED_CONDITION}",
                [_n(due_at()), _n(shard_of(row.session.session_key, self._settings.shards))],
                row,
                [_n(row.due_at)],
            ),
        )

    # -- wording -----------------------------------------------------------------------------

    def _asked(self, session: Session, asked_at: int, now: int) -> dict[str, Any]:
        values = {
            ":asked": _n(asked_at),
            ":due": _n(now),
            ":shard": _n(shard_of(session.session_key, self._settings.shards)),
            ":zero": _n(0),
            ":open": _s("open"),
            ":retrying": _s("retrying"),
            ":rejected": _s("rejected"),
            ":expired": _s("expired"),
        }
        return values | {f":{n}": _s(v) for n, v in _identity(session).items() if v is not None}

    def _ask(self, session: Session) -> str:
        update = (
            "SET #state = :open, requestedAt = :asked, activeAt = if_not_exists(activeAt, :asked),"
            " dueAt = :due, sweepShard = :shard, attempts = if_not_exists(attempts, :zero)"
        )
        return update + "".join(
            f", {name} = :{name}" for name, v in _identity(session).items() if v is not None
        )

    def _refused(
        self, session: Session, asked_at: int, item: dict[str, Any]
    ) -> Literal["over", "in flight"]:
        state = item.get("state", {}).get("S")
        if state == "ended":
            return "over"
        if state not in {"open", "retrying", "rejected", "expired"}:
            raise UnreadableRow("state is not known to this version")
        self.keep(session, asked_at)
        return "in flight"

    def _settlement(self, settled: tuple[Claim, Settlement]) -> "_Statement":
        claim, settlement = settled
        now = int(self._clock())
        status = _n(settlement.status) if settlement.status is not None else {"NULL": True}
        kept_until = _n(now + self._settings.retention)
        lease = [_s(claim.lease)]
        match settlement.state:
            case "open":
                return (f"{_GIVE_BACK} WHERE {_KEY} AND {OURS_CONDITION}", [], claim.row, lease)
            case "retrying":
                return (
                    "SET \"state\" = 'retrying' SET dueAt = ? SET attempts = ? SET lastStatus = ?"
                    f" SET lastReason = ? {_GIVE_BACK} WHERE {_KEY} AND {OURS_UNMOVED_CONDITION}",
                    [
                        _n(settlement.due_at or now),
                        _n(settlement.attempts),
                        status,
                        _s(settlement.reason),
                    ],
                    claim.row,
                    [*lease, _n(claim.row.due_at)],
                )
            case "rejected":
                shard = shard_of(claim.row.session.session_key, self._settings.shards)
                return (
                    "SET \"state\" = 'rejected' SET dueAt = ? SET sweepShard = ? SET attempts = ?"
                    " SET lastStatus = ? SET lastReason = ? SET settledAt = ? SET expiresAt = ?"
                    f" {_GIVE_BACK} WHERE {_KEY} AND {OURS_CONDITION}",
                    [
                        _n(now),
                        _n(parked(shard)),
                        _n(settlement.attempts),
                        status,
                        _s(settlement.reason),
                        _n(now),
                        kept_until,
                    ],
                    claim.row,
                    lease,
                )
            case _:
                return (
                    'SET "state" = ? SET attempts = ? SET lastStatus = ? SET settledAt = ?'
                    f" SET expiresAt = ? {_GIVE_BACK} {_LEAVE_INDEX} {_FORGET}"
                    f" WHERE {_KEY} AND {OURS_CONDITION}",
                    [
                        _s(settlement.state),
                        _n(settlement.attempts),
                        status,
                        _n(now),
                        kept_until,
                    ],
                    claim.row,
                    lease,
                )

    def _status(self, item: dict[str, Any]) -> Status:
        try:
            state: State = item["state"]["S"]
            leased = int(item["leaseUntil"]["N"]) > self._clock()
            finished = state in _FINISHED
            due = None if finished or state == "rejected" else int(item["dueAt"]["N"])
            return Status(
                market=item["market"]["S"],
                state="ending" if leased and not finished else state,
                due_at=due,
                attempts=int(item["attempts"]["N"]),
                last_status=_optional_int(item, "lastStatus"),
                last_reason=item["lastReason"]["S"] or None if "lastReason" in item else None,
            )
        except (KeyError, TypeError, ValueError):
            raise UnreadableRow("a row of the session cannot be read") from None

    # -- calls -------------------------------------------------------------------------------

    def _update(
        self,
        session: Session,
        update: str,
        condition: str,
        values: dict[str, Any],
        returned: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Write one row; return the row that failed the condition, None when written.

        `returned`, when given, is filled with the row as written.
        """
        try:
            answer = self._call(
                "update_item",
                Key={"sessionKey": _s(session.session_key), "market": _s(session.market)},
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames={"#state": "state"},
                ExpressionAttributeValues=values,
                ReturnValues="NONE" if returned is None else "ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except _ConditionFailed as failed:
            return failed.item
        if returned is not None:
            returned.update(answer["Attributes"])
        return None

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(
                TableName=self._table, **arguments
            )
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "ConditionalCheckFailedException":
                raise _ConditionFailed(error.response.get("Item", {})) from None  # type: ignore[arg-type]
            raise RegistryUnavailable(code) from None
        except BotoCoreError as error:
            raise RegistryUnavailable(type(error).__name__) from None
        return answer

    def _write[T](self, many: Sequence[T], statement: "Callable[[T], _Statement]") -> Written[T]:
        """Run a statement for each, 25 at a time.

        A throttled one is tried again with backoff. One that fails in the end leaves its row as it
        was, and so due. Raises RegistryUnavailable only if nothing was written.
        """
        wording = [self._wording(*statement(one)) for one in many]
        written: Written[T] = Written([], [])
        left = list(range(len(wording)))
        open_ = set(left)
        for tries in range(_BATCH_TRIES):
            throttled: list[int] = []
            codes: list[str] = []
            for chunk in batched(left, BATCH, strict=False):
                try:
                    answers = self._execute([wording[index] for index in chunk])
                except RegistryUnavailable as error:
                    if not written.done:
                        raise
                    written.failed.extend([str(error)] * len(open_))
                    return written
                for index, code in zip(chunk, answers, strict=True):
                    if code not in _THROTTLED:
                        open_.remove(index)
                    if code is None:
                        written.done.append(many[index])
                    elif code in _THROTTLED:
                        throttled.append(index)
                        codes.append(code)
                    elif code != "ConditionalCheckFailed":
                        written.failed.append(code)
            if not throttled:
                return written
            left = throttled
            if tries + 1 < _BATCH_TRIES:
                time.sleep(_random.uniform(0, 0.05 * 2**tries))
        written.failed.extend(codes)
        return written

    def _wording(
        self, text: str, assigned: list[dict[str, Any]], row: Row, compared: list[dict[str, Any]]
    ) -> dict[str, Any]:
        key = [_s(row.session.session_key), _s(row.session.market)]
        return {
            "Statement": f'UPDATE "{self._table}" {text}',
            "Parameters": [*assigned, *key, *compared],
        }

    def _execute(self, statements: list[dict[str, Any]]) -> list[str | None]:
        try:
            answer = self._client.batch_execute_statement(Statements=statements)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise RegistryUnavailable(code) from None
        except BotoCoreError as error:
            raise RegistryUnavailable(type(error).__name__) from None
        errors = [r.get("Error") for r in answer["Responses"]]
        return [e.get("Code", "unknown") if e else None for e in errors]


type _Statement = tuple[str, list[dict[str, Any]], Row, list[dict[str, Any]]]

_BATCH_TRIES = 5
# The codes BatchExecuteStatement gives a statement that may succeed a moment later.
_THROTTLED = {
    "ThrottlingError",
    "ProvisionedThroughputExceeded",
    "RequestLimitExceeded",
    "InternalServerError",
    "TransactionConflict",
}


class _ConditionFailed(Exception):
    def __init__(self, item: dict[str, Any]) -> None:
        self.item = item


def _identity(session: Session) -> dict[str, str | None]:
    return {"customerKey": session.customer_key, "userContext": session.user_context}


def _is_open(item: dict[str, Any]) -> bool:
    return item.get("state", {}).get("S") in {"open", "retrying"} and "requestedAt" not in item


def _row(item: dict[str, Any]) -> Row:
    try:
        return Row(
            session=Session(
                market=item["market"]["S"],
                session_key=item["sessionKey"]["S"],
                customer_key=item["customerKey"]["S"] if "customerKey" in item else None,
                user_context=item["userContext"]["S"] if "userContext" in item else None,
            ),
            due_at=int(item["dueAt"]["N"]),
            active_at=int(item["activeAt"]["N"]),
            shard=int(item["sweepShard"]["N"]),
            attempts=int(item["attempts"]["N"]),
            interactive=item["interactive"]["BOOL"] if "interactive" in item else None,
            requested_at=_optional_int(item, "requestedAt"),
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row cannot be read") from None


def _optional_int(item: dict[str, Any], name: str) -> int | None:
    return int(item[name]["N"]) if "N" in item.get(name, {}) else None


def _s(text: str) -> dict[str, str]:
    return {"S": text}


def _n(number: int) -> dict[str, str]:
    return {"N": str(number)}
