"""The registry: the DynamoDB table of sessions. Calls, batches and rows; statements.py words them.

BatchExecuteStatement answers 200 with an error *per statement*; `_write` reads each of them.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from sessions import aws, statements
from sessions.items import Item, row_of, status_of, wire
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
from sessions.statements import Statement

# The system's: a generator's own state would be the same in all copies of a snapshot (SnapStart).
_random = SystemRandom()

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


@dataclass(frozen=True, slots=True)
class Page:
    """One page of due rows, with where the next one starts."""

    rows: list[Row]
    unreadable: int
    next: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Written[T]:
    """What came of writing many: `done`, and a code for each that failed.

    The others' conditions did not hold, which is not a failure.
    """

    done: list[T]
    failed: list[str]


class Registry:
    """The table of sessions. All methods raise RegistryUnavailable when DynamoDB fails."""

    def __init__(
        self,
        settings: Settings,
        client: Any = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._table = settings.table_name
        self._client = client or aws.client("dynamodb", settings.concurrency)
        self._clock = clock

    # -- one session -------------------------------------------------------------------------

    def track(self, activity: Activity) -> Literal["tracked", "reopened", "over"]:
        """Note that a session is alive.

        "reopened": it was over, by a guess. "over": its end has been asked for.
        """
        for _ in range(2):
            tracked, item = self._update(statements.track(activity, self._settings))
            if tracked:
                return "tracked"
            if _is_alive(item):
                break
            reopened, item = self._update(statements.reopen(activity, self._settings))
            if reopened:
                return "reopened"
            if not _is_alive(item):
                is_claimed = item.get("state") == {"S": "ending"}
                if is_claimed and int(item["leaseUntil"]["N"]) <= self._now():
                    # The caller who asked for its end may not ask again.
                    self.keep(activity.session, int(item["requestedAt"]["N"]))
                return "over"
            # Another call has reopened it, or this one did and its answer was lost.
        if activity.interactive and not item.get("interactive", {}).get("BOOL"):
            self._update(statements.note_interactive(activity.session))
        return "tracked"

    def claim(self, session: Session, asked_at: int) -> Claim | Literal["over", "in flight"]:
        """Take a lease on a session that is to be ended, tracked before or not.

        "over": it has been ended already. "in flight": someone else holds the lease; the request
        is written down, so that it survives if they fail. Raises UnreadableRow.
        """
        now, lease = self._now(), uuid.uuid4().hex
        wanted = session, asked_at, now, lease, self._settings
        # Only an end that was promised before needs the second, which sets no TTL.
        for promised in (False, True):
            claimed, item = self._update(statements.claim(*wanted, promised=promised), "ALL_NEW")
            if claimed:
                return Claim(row_of(item), lease, now)
            if not {"requestedAt", "dueAt"} <= item.keys():
                break
        state = item.get("state", {}).get("S")
        if state == "ended":
            if "requestedAt" not in item:
                self._update(statements.make_final(session, asked_at))
            return "over"
        if state not in statements.STATES:
            raise UnreadableRow("state is not known to this version")
        self.keep(session, asked_at)
        return "in flight"

    def keep(self, session: Session, asked_at: int) -> None:
        """Write down that a session is to be ended, due at once, without claiming it."""
        for alive in (True, False):
            kept = statements.keep(session, asked_at, self._now(), self._settings, alive=alive)
            if self._update(kept)[0]:
                return
        # It has ended meanwhile: as idle, perhaps, which this makes final.
        self._update(statements.make_final(session, asked_at))

    def status(self, session_key: str) -> list[Status]:
        """Return the states of a session, one for each market it is known in."""
        answer = self._call(
            "query",
            TableName=self._table,
            KeyConditionExpression="sessionKey = :key",
            ExpressionAttributeValues={":key": wire(session_key)},
            ConsistentRead=True,
        )
        return [status_of(item, self._clock()) for item in answer["Items"]]

    # -- pages of sessions -------------------------------------------------------------------

    def due(self, shard: int, until: int, start: dict[str, Any] | None = None) -> Page:
        """Return a page of the shard's rows that are due at `until`, oldest first."""
        where = {"ExclusiveStartKey": start} if start else {}
        answer = self._call(
            "query",
            TableName=self._table,
            IndexName=DUE_INDEX,
            KeyConditionExpression="sweepShard = :shard AND dueAt <= :until",
            ExpressionAttributeValues={":shard": wire(shard), ":until": wire(until)},
            Limit=PAGE,
            **where,
        )
        rows, unreadable = [], 0
        for item in answer["Items"]:
            try:
                rows.append(row_of(item))
            except UnreadableRow:
                unreadable += 1
        return Page(rows, unreadable, answer.get("LastEvaluatedKey"))

    def claim_due(self, rows: Sequence[Row]) -> Written[Claim]:
        """Take leases on due rows that have not changed since they were read."""
        now, lease = self._now(), uuid.uuid4().hex
        claims = [Claim(row, lease, now) for row in rows]
        return self._write(claims, statements.claim_due)

    def expire(self, rows: Sequence[Row]) -> Written[Row]:
        """Settle rows that Elevate must have ended itself, if they have not changed."""
        now = self._now()
        return self._write(rows, lambda row: statements.expire(row, now, self._settings))

    def settle(self, settlements: Sequence[tuple[Claim, Settlement]]) -> list[str]:
        """Write outcomes, each if its lease is still ours; return the codes of those that failed.

        A session that was asked for in flight is ended all the same if its end was delivered; else
        what has happened to it in flight counts, and it only loses the lease.
        """
        now, settings = self._now(), self._settings
        written = self._write(
            [one for one in settlements if one[1].state != "open"],
            lambda one: statements.settle(*one, now, settings),
        )
        if len(written.done) == len(settlements):
            return []
        left = [one for one in settlements if one not in written.done]
        asked = self._write(
            [one for one in left if one[1].state == "ended"],
            lambda one: statements.settle(*one, now, settings, asked=True),
        )
        given_back = self._write(
            [one for one in left if one not in asked.done],
            lambda one: statements.give_back(one[0]),
        )
        return [*written.failed, *asked.failed, *given_back.failed]

    # -- calls -------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._clock())

    def _update(self, update: dict[str, Any], returned: str = "NONE") -> tuple[bool, Item]:
        """Write one row; return whether its condition held, and the row as written or as it was."""
        try:
            answer = self._call(
                "update_item", TableName=self._table, ReturnValues=returned, **update
            )
        except ClientError as refused:
            return False, refused.response.get("Item", {})  # type: ignore[return-value]
        return True, answer.get("Attributes", {})

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call DynamoDB; raises RegistryUnavailable, and ClientError where a condition fails."""
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "ConditionalCheckFailedException":
                raise
            raise RegistryUnavailable(code) from None
        except BotoCoreError as error:
            raise RegistryUnavailable(type(error).__name__) from None
        return answer

    def _write[T](self, many: Sequence[T], statement: Callable[[T], Statement]) -> Written[T]:
        """Run a statement for each of at most 25.

        A throttled one is tried again with backoff. One that fails in the end leaves its row as it
        was, and so due. Raises RegistryUnavailable only if nothing was written.
        """
        written: Written[T] = Written([], [])
        left = [(one, statement(one)) for one in many]
        for tries in range(_BATCH_TRIES):
            if not left:
                break
            if tries:
                time.sleep(_random.uniform(0, 0.025 * 2**tries))
            try:
                answers = self._execute([worded for _, worded in left])
            except RegistryUnavailable as error:
                if not written.done:
                    raise
                answers = [str(error)] * len(left)
            again = [one for one, code in zip(left, answers, strict=True) if code in _MOMENTARY]
            for (one, _), code in zip(left, answers, strict=True):
                if code is None:
                    written.done.append(one)
                elif code != _REFUSED and (code not in _MOMENTARY or tries == _BATCH_TRIES - 1):
                    written.failed.append(code)
            left = again
        return written

    def _execute(self, worded: list[Statement]) -> list[str | None]:
        batch = [
            {"Statement": f'UPDATE "{self._table}" {text}', "Parameters": parameters}
            for text, parameters in worded
        ]
        answers = self._call("batch_execute_statement", Statements=batch)["Responses"]
        errors = [answer.get("Error") for answer in answers]
        return [error.get("Code", "unknown") if error else None for error in errors]


def _is_alive(item: Item) -> bool:
    return item.get("state", {}).get("S") in {"open", "retrying"} and "requestedAt" not in item
