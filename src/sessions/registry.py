"""The registry: the DynamoDB table of sessions. Calls, batches and rows; statements.py words them.

BatchExecuteStatement answers 200 with an error *per statement*; `_write` reads each of them.
"""

import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from sessions import statements
from sessions.aws import Client
from sessions.session import (
    Activity,
    Claim,
    RegistryUnavailable,
    Row,
    Session,
    Settlement,
    Status,
    UnreadableRow,
)
from sessions.settings import Settings
from sessions.statements import FINISHED, Statement, Update, wire

type Item = dict[str, dict[str, Any]]

DUE_INDEX = "due"
BATCH = 25  # DynamoDB's limit of statements in one BatchExecuteStatement
PAGE = 1000

_BATCH_TRIES = 5
# The codes BatchExecuteStatement gives a statement that may succeed a moment later.
_MOMENTARY = {
    "ThrottlingError",
    "ProvisionedThroughputExceeded",
    "RequestLimitExceeded",
    "InternalServerError",
    "TransactionConflict",
}
_REFUSED = "ConditionalCheckFailed"

_STATES = ("open", "retrying", "ending", *FINISHED)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of due rows, with where the next one starts."""

    rows: list[Row]
    unreadable: int
    next: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class BatchResult[T]:
    """What came of writing many: `done`, and a code for each that failed.

    The others' conditions did not hold, which is not a failure.
    """

    done: list[T]
    failed: list[str]


class Registry:
    """The table of sessions. All methods raise RegistryUnavailable when DynamoDB fails."""

    def __init__(
        self, settings: Settings, client: Client, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._table = settings.table_name
        self._client = client
        self._clock = clock

    # -- one session -------------------------------------------------------------------------

    def track(self, activity: Activity) -> Literal["tracked", "reopened", "over"]:
        """Note that a session is alive.

        "reopened": it was over, by a guess. "over": its end has been asked for.
        """
        now = self._now()
        update = statements.track(activity, now, self._settings)
        tracked, before = self._update(update, "ALL_OLD")
        state = _state_of(before)
        if tracked:
            return "reopened" if state in FINISHED else "tracked"
        if state in ("open", "retrying") and "requestedAt" not in before:
            if activity.interactive and not before.get("interactive", {}).get("BOOL"):
                self._update(statements.note_interactive(activity.session, now))
            return "tracked"
        if state == "ending" and int(before["leaseUntil"]["N"]) <= now:
            # The caller who asked for its end may not ask again.
            self.keep(activity.session, _number(before["requestedAt"]))
        return "over"

    def claim(
        self, session: Session, asked_at: float
    ) -> Claim | Literal["over", "over for another", "in flight", "outdated"]:
        """Take a lease on a session that is to be ended, tracked before or not.

        "over": it has been ended already, perhaps "for another" customerKey. "in flight": someone
        else holds the lease; the request is written down, so that it survives if they fail.
        "outdated": its visitor was active after the request. Raises UnreadableRow.
        """
        now, lease, slack = self._now(), uuid.uuid4().hex, self._settings.slack
        update = statements.claim(session, asked_at, now, lease, slack)
        claimed, item = self._update(update, "ALL_NEW")
        if claimed:
            return Claim(_row_of(item), lease, now)
        state = _state_of(item)
        if state not in _STATES:
            raise UnreadableRow("state is not known to this version")
        if _active_unasked(item) > statements.newest(asked_at, slack):
            return "outdated"
        if state == "ended":
            if "requestedAt" not in item:
                self._update(statements.make_final(session, asked_at, now, slack))
            theirs = item.get("endedFor", {}).get("S")
            ours = statements.ended_for(session.customer_key)
            return "over for another" if theirs and ours and theirs != ours else "over"
        self.keep(session, asked_at)
        return "in flight"

    def keep(self, session: Session, asked_at: float) -> None:
        """Write down that a session is to be ended, due at once, without claiming it."""
        now, slack = self._now(), self._settings.slack
        kept, _ = self._update(statements.keep(session, asked_at, now, slack))
        if not kept:
            # It has ended meanwhile: as idle, perhaps, which this makes final.
            self._update(statements.make_final(session, asked_at, now, slack))

    def status(self, session_key: str) -> list[Status]:
        """Return the states of a session, one for each market it is known in."""
        answer = self._call(
            "query",
            "Items",
            KeyConditionExpression="sessionKey = :key",
            ExpressionAttributeValues={":key": wire(session_key)},
            ConsistentRead=True,
        )
        return [_status_of(item, self._clock()) for item in answer["Items"]]

    # -- pages of sessions -------------------------------------------------------------------

    def due(self, shard: int, until: int, start: dict[str, Any] | None = None) -> Page:
        """Return a page of the shard's rows that are due at `until`, oldest first."""
        where = {"ExclusiveStartKey": start} if start else {}
        answer = self._call(
            "query",
            "Items",
            IndexName=DUE_INDEX,
            KeyConditionExpression="sweepShard = :shard AND dueAt <= :until",
            ExpressionAttributeValues={":shard": wire(shard), ":until": wire(until)},
            Limit=PAGE,
            **where,
        )
        rows, unreadable = [], 0
        for item in answer["Items"]:
            try:
                rows.append(_row_of(item))
            except UnreadableRow:
                unreadable += 1
        return Page(rows, unreadable, answer.get("LastEvaluatedKey"))

    def claim_due(self, rows: Sequence[Row]) -> BatchResult[Claim]:
        """Take leases on due rows that have not changed since they were read."""
        now, lease = self._now(), uuid.uuid4().hex
        claims = [Claim(row, lease, now) for row in rows]
        return self._write(claims, statements.claim_due)

    def expire(self, rows: Sequence[Row]) -> BatchResult[Row]:
        """Settle rows that Elevate will already have ended itself, if they have not changed."""
        now = self._now()
        return self._write(rows, lambda row: statements.expire(row, now))

    def settle(self, settlements: Sequence[tuple[Claim, Settlement]]) -> list[str]:
        """Write outcomes, each if its lease is still ours; return the codes of those that failed.

        A session to which something happened in flight only loses the lease, and stays due; but not
        one whose end was asked for before it was claimed, and asked for again.
        """
        now = self._now()
        outcomes = [one for one in settlements if one[1].state != "open"]
        written = self._write(outcomes, lambda one: statements.settle(*one, now))
        if len(written.done) == len(settlements):
            return []
        left = [one for one in settlements if one not in written.done]
        asked = [one for one in left if _is_delivered_request(*one)]
        kept = self._write(asked, lambda one: statements.settle_kept(*one, now))
        left = [one for one in left if one not in kept.done]
        given_back = self._write(left, lambda one: statements.give_back(one[0], now))
        return [*written.failed, *kept.failed, *given_back.failed]

    # -- calls -------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._clock())

    def _update(self, update: Update, returned: str = "NONE") -> tuple[bool, Item]:
        """Write one row; return whether its condition held, and the row, if one was asked for.

        A row whose condition did not hold is returned as it is.
        """
        try:
            answer = self._call(
                "update_item",
                # What it returns may be nothing: what it consumed tells a whole answer from none.
                "ConsumedCapacity",
                ReturnConsumedCapacity="TOTAL",
                ReturnValues=returned,
                **update,
            )
        except ClientError as refused:
            return False, refused.response.get("Item", {})  # type: ignore[return-value]
        return True, answer.get("Attributes", {})

    def _call(self, operation: str, member: str, **arguments: Any) -> dict[str, Any]:
        """Call DynamoDB for the table; return an answer that has the `member`.

        Raises RegistryUnavailable, and ClientError where a condition fails.
        """
        if operation != "batch_execute_statement":
            arguments["TableName"] = self._table
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "ConditionalCheckFailedException":
                raise
            raise RegistryUnavailable(code) from None
        except BotoCoreError as error:
            raise RegistryUnavailable(type(error).__name__) from None
        if member not in answer:
            # botocore makes {} of a 200 that was cut short, or is no JSON.
            raise RegistryUnavailable("IncompleteAnswer")
        return answer

    def _write[T](self, many: Sequence[T], statement: Callable[[T], Statement]) -> BatchResult[T]:
        """Run a statement for each of at most 25.

        A throttled one is tried again with backoff. One that fails in the end leaves its row as it
        was, and so due. Raises RegistryUnavailable only if nothing was written.
        """
        result: BatchResult[T] = BatchResult([], [])
        left = [(one, statement(one)) for one in many]
        for tries in range(_BATCH_TRIES):
            if not left:
                break
            if tries:
                time.sleep(random.uniform(0, 0.025 * 2**tries))
            try:
                codes = self._execute([worded for _, worded in left])
            except RegistryUnavailable as error:
                if not result.done:
                    raise
                codes = [str(error)] * len(left)
            again = [one for one, code in zip(left, codes, strict=True) if code in _MOMENTARY]
            for (one, _), code in zip(left, codes, strict=True):
                if code is None:
                    result.done.append(one)
                elif code != _REFUSED and (code not in _MOMENTARY or tries == _BATCH_TRIES - 1):
                    result.failed.append(code)
            left = again
        return result

    def _execute(self, worded: list[Statement]) -> list[str | None]:
        """Return the error code of each statement, None where it was done."""
        batch = [
            {"Statement": f'UPDATE "{self._table}" {text}', "Parameters": parameters}
            for text, parameters in worded
        ]
        responses = self._call("batch_execute_statement", "Responses", Statements=batch)[
            "Responses"
        ]
        if len(responses) != len(batch):
            raise RegistryUnavailable("IncompleteAnswer")
        errors = [response.get("Error") for response in responses]
        return [error.get("Code", "unknown") if error else None for error in errors]


# -- rows as the table holds them --------------------------------------------------------------


def _row_of(item: Item) -> Row:
    """Return a row to decide about; raises UnreadableRow."""
    try:
        return Row(
            session=Session(
                # A sweep keeps thousands of rows ready, of few markets.
                market=sys.intern(item["market"]["S"]),
                session_key=item["sessionKey"]["S"],
                customer_key=item["customerKey"]["S"] if "customerKey" in item else None,
                user_context=item["userContext"]["S"] if "userContext" in item else None,
                given_key=item["givenKey"]["S"] if "givenKey" in item else None,
            ),
            due_at=_optional_int(item, "dueAt"),
            active_at=_number(item["activeAt"]),
            shard=_optional_int(item, "sweepShard") or 0,
            attempts=int(item["attempts"]["N"]),
            interactive=item["interactive"]["BOOL"] if "interactive" in item else None,
            requested_at=_number(item["requestedAt"]) if "requestedAt" in item else None,
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row cannot be read") from None


def _active_unasked(item: Item) -> float:
    """Return when a session was last active, 0 where its end has been asked for.

    Raises UnreadableRow.
    """
    if "requestedAt" in item:
        return 0
    try:
        return _number(item["activeAt"])
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row cannot be read") from None


def _status_of(item: Item, now: float) -> Status:
    """Return what may be shown of a row at `now` (epoch seconds); raises UnreadableRow."""
    try:
        state: Any = item["state"]["S"]
        is_over = state in ("ended", "expired")
        is_leased = int(item["leaseUntil"]["N"]) > now
        return Status(
            market=item["market"]["S"],
            state="ending" if is_leased and not is_over else state,
            due_at=None if is_over or state == "rejected" else _optional_int(item, "dueAt"),
            attempts=int(item["attempts"]["N"]),
            last_status=_optional_int(item, "lastStatus"),
            last_reason=item["lastReason"]["S"] or None if "lastReason" in item else None,
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row of the session cannot be read") from None


def _is_delivered_request(claim: Claim, settlement: Settlement) -> bool:
    return settlement.state == "ended" and claim.row.requested_at is not None


def _state_of(item: Item) -> str:
    return str(item.get("state", {}).get("S", ""))


def _number(value: dict[str, str]) -> float:
    """Return a time as it was written: whole seconds, or with milliseconds."""
    text = value["N"]
    return float(text) if "." in text else int(text)


def _optional_int(item: Item, name: str) -> int | None:
    return int(item[name]["N"]) if "N" in item.get(name, {}) else None
