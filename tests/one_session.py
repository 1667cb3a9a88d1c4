"""One session, its row and its Elevate, under a clock set by hand: plays what happens to it.

The real use case runs on the real statements. Nothing counts but the row and the time, so what an
event makes of them is played once, and what a call to DynamoDB makes of a row is asked once.
"""

import itertools
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Literal, NamedTuple

import pytest
from botocore.exceptions import ClientError

from emulated import Clock
from in_process_dynamodb import InProcessDynamoDB
from registry_table import create_table
from sessions.elevate import Elevate
from sessions.ending import Ending, is_past, settlement
from sessions.lifetime import HOUR, MINUTE
from sessions.registry import Registry
from sessions.session import Activity, Outcome, Session
from sessions.settings import Settings
from sessions.telemetry import Telemetry

type Row = str | None  # the item as JSON, so that rows can be compared and looked up
type Verb = Literal["track", "late track", "end", "late end", "sweep"]

SESSION = Session("UK", "a session", "a customer")
SHARD = 5  # of this session key
KEY = {"sessionKey": {"S": SESSION.session_key}, "market": {"S": SESSION.market}}

LATE = 40 * MINUTE  # how old a late event is
TICK = MINUTE
LIMIT = HOUR  # after which Elevate ends a session itself

_tables = itertools.count()
_OUTCOMES = {
    "delivered": Outcome("delivered", 204),
    "rejected": Outcome("rejected", 400, "no"),
    # With a base of one second this makes the next try due after exactly 61 seconds.
    "unavailable": Outcome("unavailable", 503, "busy", retry_after=60),
}


class Event(NamedTuple):
    """What happens. If it sends a notification, that meets `in_flight` and has an `outcome`.

    An outcome may also be "crash before" or "crash after": of the process, and its POST.
    """

    verb: Verb
    in_flight: tuple[Verb, ...] = ()
    outcome: str = "delivered"


# -- what an onlooker sees, in this order; times in epoch seconds --------------------------------


class Tracked(NamedTuple):
    """A sign of life at `dated` was reported at `at`."""

    at: int
    dated: int
    answer: str


class Ended(NamedTuple):
    """An end of `dated` was answered at `at`; with "", if the process was killed instead."""

    at: int
    dated: int
    answer: str


class Sent(NamedTuple):
    """A notification was sent."""

    at: int
    by: Verb


class Answered(NamedTuple):
    """Elevate answered; if the process had been killed, nobody heard it."""

    outcome: str
    heard: bool


class Expired(NamedTuple):
    """The session was written off, for Elevate must have ended it itself."""

    at: int


class Written(NamedTuple):
    """The row was written; DynamoDB deletes it after so many seconds (None: never)."""

    deleted_after: int | None


class Left(NamedTuple):
    """In the end this row was still due."""

    row: str


type Fact = Tracked | Ended | Sent | Answered | Expired | Written | Left


class Played(NamedTuple):
    """The time and the row after an event, and what was seen of it."""

    now: int
    row: Row
    facts: tuple[Fact, ...]


class Crash(BaseException):
    """The process is killed here."""


class OneSession:
    """Plays events of one session, from any row and time.

    What arrives while a notification is in flight arrives `flight` seconds after it was sent.
    """

    def __init__(self, flight: int, patch: pytest.MonkeyPatch) -> None:
        self._flight = flight
        self._settings = Settings(
            table_name=f"one-session-{next(_tables)}",
            event_bus_name="",
            elevate_url="http://127.0.0.1:9",
            session_limit=LIMIT,
            retry_base=1,
        )
        self._clock = Clock()
        self._table = _Table(self._settings.table_name)
        self._registry = Registry(self._settings, self._table, self._clock)
        self._elevate = _Elevate(self)
        self._ending = Ending(
            self._settings, self._registry, self._elevate, Telemetry("CRITICAL"), self._clock
        )
        self._event = Event("sweep")
        self._facts: list[Fact] = []
        self._leases: Iterator[int] = iter(())
        # The same leases each time, or no call would be one that was asked before.
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=self.now * 1000 + next(self._leases)))
        self.play = cache(self._play)
        self.wait_long = cache(self._wait_long)

    @property
    def now(self) -> int:
        """Return the time (epoch seconds)."""
        return int(self._clock.now)

    def _play(self, now: int, row: Row, event: Event) -> Played:
        """Let an event happen to a row at `now`."""
        self._clock.now, self._table.row, self._event = now, row, event
        self._facts, self._leases = [], itertools.count()
        with suppress(Crash):
            self._do(event.verb)
        written = self._table.row
        if written and written != row:
            item = json.loads(written)
            if item["state"] == {"S": "expired"} != json.loads(row or "{}").get("state"):
                self._facts.append(Expired(self.now))
            expires_at = item.get("expiresAt")
            self._facts.append(Written(int(expires_at["N"]) - now if expires_at else None))
        return Played(self.now, written, tuple(self._facts))

    def _wait_long(self, now: int, row: Row) -> tuple[Fact, ...]:
        """Let sweeps run at each tick, with an Elevate that is well, until nothing is due."""
        facts: tuple[Fact, ...] = ()
        for _ in range(10):
            item = json.loads(row or "{}")
            if "dueAt" not in item or int(item["sweepShard"]["N"]) < 0:
                return facts
            # A tick before that would find nothing.
            due_at = max(int(item[name]["N"]) for name in ("dueAt", "leaseUntil"))
            ticks = max(1, -(-(due_at - now) // TICK))
            now, row, seen = self.play(now + ticks * TICK, row, Event("sweep"))
            facts += seen
        return (*facts, Left(row or ""))

    def _do(self, verb: Verb) -> None:
        dated = self.now - LATE if verb.startswith("late ") else self.now
        match verb:
            case "track" | "late track":
                answer: str = self._ending.track(Activity(SESSION, dated))
                self._facts.append(Tracked(self.now, dated, answer))
            case "end" | "late end":
                answer = ""
                try:
                    answer = self._ending.end(SESSION, dated, "event").result
                finally:
                    self._facts.append(Ended(self.now, dated, answer))
            case "sweep":
                self._sweep()

    def _sweep(self) -> None:
        """End what is due, as the Sweeper does, but in this thread."""
        rows = self._registry.due(SHARD, self.now).rows
        past = [row for row in rows if is_past(row, self._clock(), self._settings)]
        if past:
            self._registry.expire(past)
        elif rows:
            for claim in self._registry.claim_due(rows).done:
                outcome = self._elevate.notify(claim.row.session)
                settled = settlement(claim.row, outcome, self._clock(), self._settings)
                assert not self._registry.settle([(claim, settled)])

    def notified(self) -> Outcome:
        """Be Elevate: let in who comes while the notification is in flight, then answer."""
        verb, in_flight, outcome = self._event
        if outcome == "crash before":
            raise Crash
        self._facts.append(Sent(self.now, verb))
        # A second one in flight would be a fault; it meets nobody.
        self._event = Event(verb, (), outcome)
        self._clock.turn(self._flight if in_flight else 0)
        for other in in_flight:
            self._do(other)
        if outcome == "crash after":
            self._facts.append(Answered("delivered", heard=False))
            raise Crash
        self._facts.append(Answered(outcome, heard=True))
        return _OUTCOMES[outcome]


class _Elevate(Elevate):
    """Elevate, as the event wants it."""

    def __init__(self, session: OneSession) -> None:
        self._session = session

    def notify(self, session: Session) -> Outcome:
        return self._session.notified()


class _Table:
    """The in-process DynamoDB with one row, asked only what it was not asked before."""

    def __init__(self, name: str) -> None:
        self._client, self._name = InProcessDynamoDB(), name
        create_table(self._client, name)
        self.row: Row = None
        self._held: Row = None
        self._known: dict[str, tuple[dict[str, Any], bool, Row]] = {}

    def __getattr__(self, operation: str) -> Any:
        def call(**arguments: Any) -> dict[str, Any]:
            asked = f"{operation} {arguments} {self.row}"
            if asked not in self._known:
                self._known[asked] = self._ask(operation, arguments)
            answer, is_refused, self.row = self._known[asked]
            if is_refused:
                raise ClientError(answer, operation)  # type: ignore[arg-type]
            return answer

        return call

    def _ask(self, operation: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool, Row]:
        if self.row != self._held:
            if self.row is None:
                self._client.delete_item(TableName=self._name, Key=KEY)
            else:
                self._client.put_item(TableName=self._name, Item=json.loads(self.row))
        answer, is_refused = {}, False
        try:
            answer = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            answer, is_refused = dict(error.response), True
        item = self._client.get_item(TableName=self._name, Key=KEY).get("Item")
        self._held = json.dumps(item, sort_keys=True) if item else None
        return answer, is_refused, self._held
