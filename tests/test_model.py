"""A model of all that can happen to sessions: any order of calls, crashes and lost answers.

The real use case runs on the emulator's DynamoDB with a clock that is set by hand. Elevate is part
of the model: while a notification is in flight, it may let others in, give any answer or die.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import hypothesis
from botocore.exceptions import EndpointConnectionError
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emulated import Clock
from endings import ALL_SHARDS, Service
from in_process_dynamodb import InProcessDynamoDB
from ops.rejected import rejected, retry
from registry_table import create_table
from sessions.elevate import Elevate
from sessions.ending import Ending
from sessions.registry import Registry
from sessions.session import Activity, Outcome, RegistryUnavailable, Session
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS
from sessions.sweeping import Sweeper
from sessions.telemetry import Telemetry
from virtual import VirtualCrew

_tables = itertools.count()
FOREVER = 1e9
IDLE = 600
ANSWERS = {
    "delivered": Outcome("delivered", 204),
    "rejected": Outcome("rejected", 400, "no"),
    "unavailable": Outcome("unavailable", 503, "busy"),
    "told to wait": Outcome("unavailable", 503, "busy", retry_after=900),
    "held back": Outcome("unavailable", reason="not sent", sent=False),
}


class Crash(BaseException):
    """The process is killed here."""


class Troubled:
    """DynamoDB, where another process may act before a call, and a call may fail."""

    def __init__(self, model: "Sessions") -> None:
        self._client = InProcessDynamoDB()
        self._model = model
        self._trouble = model.trouble

    def __getattr__(self, operation: str) -> Any:
        def call(**arguments: Any) -> Any:
            fault = next(self._trouble, "")
            if fault == "other":
                self._model.another_process_acts()
            # Without a registry an explicit end is sent anyway, under no lease.
            self._model.blind = self._model.blind or fault.startswith("cut")
            _fail(fault, "before")
            self._model.known = dict(self._model.tracked_at)
            answer = getattr(self._client, operation)(**arguments)
            _fail(fault, "after")
            return answer

        return call


def _fail(fault: str, when: str) -> None:
    if fault == f"crash {when}":
        raise Crash
    if fault == f"cut {when}":
        raise EndpointConnectionError(endpoint_url="model")


class ModelElevate(Elevate):
    """Elevate, as the model wants it."""

    def __init__(self, model: "Sessions") -> None:
        self._model = model

    def notify(self, session: Session) -> Outcome:
        return self._model.notified(session)


FAULTS = ("crash before", "crash after", "cut before", "cut after")
KEYS = st.sampled_from([0, 1])
# What happens before, or to, each of the next calls to DynamoDB.
TROUBLE = st.lists(st.sampled_from(("", "", "other", "other", *FAULTS)), max_size=5)
MINUTES = [0.02, 0.5, 1.5, 1.6, 4, 10, 11, 30]


class Sessions(RuleBasedStateMachine):
    """Whatever happens, an accepted session is ended once, and no active one is."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.settings = Settings(
            table_name=f"model-{next(_tables)}",
            event_bus_name="",
            elevate_url="http://127.0.0.1:9",
            idle=IDLE,
            session_limit=7200,
            concurrency=1,
        )
        create_table(InProcessDynamoDB(), self.settings.table_name)
        self.trouble: Iterator[str] = iter(())
        self.sessions = [Session("UK", f"session {n}", f"customer {n}") for n in range(2)]
        self.answer = "delivered"
        self.dies = ""
        self.blind = False
        self.others: list[Callable[[], None]] = []
        self.in_flight: set[str] = set()
        self.delivered: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.kept: set[str] = set()
        self.over: set[str] = set()
        # A sweep continues after any exception, so violations are collected here.
        self.wrong: list[str] = []
        self.tracked_at: dict[str, float] = {}
        # Of any track, also of those whose process was killed or got no answer.
        self.active_at: dict[str, float] = {}
        # What a process could know of them: the tracks before its last call, which is its claim.
        self.known: dict[str, float] = {}

    def run(self, trouble: list[str], use: Callable[[Service], object]) -> None:
        """Run one process until it is done, or killed."""
        outer = self.trouble, self.blind, self.known
        self.trouble, self.blind = iter(trouble), False
        if any(fault in FAULTS for fault in trouble):
            # A lost settle may cost one more notification.
            for session in self.sessions:
                self.excused[session.session_key] += 1
        registry, elevate = Registry(self.settings, Troubled(self), self.clock), ModelElevate(self)
        # It sends many thousands of notifications: do not log them.
        parts = (self.settings, registry, elevate, Telemetry("CRITICAL"))
        ending = Ending(*parts, self.clock)
        with suppress(Crash, RegistryUnavailable):
            use(Service(registry, elevate, ending, Sweeper(*parts, len, self.clock, VirtualCrew)))
        self.trouble, self.blind, self.known = outer

    def another_process_acts(self) -> None:
        if self.others:
            self.others.pop(0)()

    def notified(self, session: Session) -> Outcome:
        key = session.session_key
        claimed = not self.blind
        if claimed and key in self.in_flight:
            self.wrong.append("two notifications in flight")
        if not self.asked[key]:
            quiet = self.clock.now - self.known.get(key, 0)
            if quiet < IDLE - self.settings.slack:
                self.wrong.append("an active session was ended")
        dies, self.dies = self.dies, ""
        if dies == "before":
            raise Crash
        if claimed:
            self.in_flight.add(key)
        self.another_process_acts()
        if claimed:
            self.in_flight.remove(key)
        outcome = ANSWERS[self.answer]
        if outcome.kind == "delivered":
            self.delivered[key] += 1
        if dies == "after":
            self.excused[key] += 1
            raise Crash
        return outcome

    # -- what can happen -------------------------------------------------------------------

    @rule(number=KEYS, trouble=TROUBLE, interactive=st.sampled_from([True, False, None]))
    def track(self, number: int, trouble: list[str], interactive: bool | None) -> None:
        session = self.sessions[number]

        def use(service: Service) -> None:
            key = session.session_key
            self.active_at[key] = self.clock.now
            if service.ending.track(Activity(session, int(self.clock.now), interactive)) != "over":
                assert key not in self.kept, "a sign-out was undone"
                self.accepted.add(key)
                self.over.discard(key)
                self.tracked_at[key] = self.clock.now
                if self.delivered[key] or key in self.in_flight:
                    self.excused[key] += 1  # another visit, another end

        self.run(trouble, use)

    @rule(number=KEYS, trouble=TROUBLE, late=st.integers(min_value=0, max_value=3 * IDLE))
    def end(self, number: int, trouble: list[str], late: int) -> None:
        session = self.sessions[number]
        key = session.session_key
        if self.delivered[key] and not self.asked[key]:
            self.excused[key] += 1  # a visitor who signs out had come back
        newest = int(self.clock.now) - late + self.settings.slack
        is_old = not self.asked[key] and self.tracked_at.get(key, 0) > newest
        self.asked[key] += 1

        def use(service: Service) -> None:
            result = service.ending.end(session, int(self.clock.now) - late, "event").result
            if result == "outdated":
                assert self.active_at.get(key, 0) > newest, "an end was dropped"
                self.asked[key] -= 1
            assert result == "outdated" or not is_old or trouble, "an old end was taken"
            # "delivered" and "rejected" are outcomes, known to the caller; "kept" is a promise.
            if result == "kept":
                self.accepted.add(session.session_key)
                self.kept.add(session.session_key)
                self.over.discard(session.session_key)

        self.run(trouble, use)

    @rule(trouble=TROUBLE)
    def sweep(self, trouble: list[str]) -> None:
        self.run(trouble, lambda service: service.sweeper.sweep(ALL_SHARDS, FOREVER))

    @rule(trouble=TROUBLE)
    def retry_rejected(self, trouble: list[str]) -> None:
        """An operator does this: with a client of their own, and errors are shown to them."""
        client, table = Troubled(self), self.settings.table_name

        def use(service: Service) -> None:
            with suppress(EndpointConnectionError):
                for row in rejected(client, table):
                    retry(client, table, row, int(self.clock.now))

        self.run(trouble, use)

    @rule(minutes=st.sampled_from(MINUTES))
    def time_passes(self, minutes: float) -> None:
        self.clock.turn(int(60 * minutes))

    @initialize(answer=st.sampled_from(sorted(ANSWERS)))
    def elevate_is(self, answer: str) -> None:
        self.answer = answer

    @rule(answer=st.sampled_from(sorted(ANSWERS)))
    def elevate_changes(self, answer: str) -> None:
        self.answer = answer

    @rule(when=st.sampled_from(["before", "after"]))
    def the_next_notification_is_the_last_of_its_process(self, when: str) -> None:
        self.dies = when

    @rule(number=KEYS, what=st.sampled_from(["track", "end", "sweep"]))
    def another_process_stands_by(self, number: int, what: str) -> None:
        """It acts between two steps of a process to come: a second Lambda, a second tick."""
        act: dict[str, Callable[[], None]] = {
            "track": lambda: self.track(number, [], None),
            "end": lambda: self.end(number, [], 0),
            "sweep": lambda: self.sweep([]),
        }
        self.others.append(act[what])

    # -- what must hold --------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = InProcessDynamoDB().scan(TableName=self.settings.table_name)[
            "Items"
        ]
        return found

    @invariant()
    def every_row_leads_somewhere(self) -> None:
        for row in self.rows():
            state = row["state"]["S"]
            if state in ("ended", "expired", "rejected"):
                self.over.add(row["sessionKey"]["S"])
            if state == "ended":
                assert self.delivered[row["sessionKey"]["S"]] > 0, "ended without being delivered"
            assert "expiresAt" in row
            if state in ("ended", "expired"):
                assert "dueAt" not in row
            elif state == "rejected":
                assert int(row["sweepShard"]["N"]) < 0
            elif state == "ending":
                # The claim alone promised nothing to anybody.
                is_promised = row["sessionKey"]["S"] in self.kept - self.over
                assert "dueAt" in row or not is_promised
            else:
                assert state in ("open", "retrying")
                assert int(row["sweepShard"]["N"]) in ALL_SHARDS
                assert "dueAt" in row

    @invariant()
    def nothing_wrong_was_sent(self) -> None:
        assert not self.wrong

    @invariant()
    def nothing_is_sent_twice_without_a_crash(self) -> None:
        for key, times in self.delivered.items():
            assert times <= 1 + self.excused[key]

    def teardown(self) -> None:
        """In the end Elevate recovers and time passes: then nothing may be left."""
        self.answer, self.dies, self.others = "delivered", "", []
        self.clock.turn(LEASE_SECONDS + 1)
        self.retry_rejected([])
        for _ in range(6):
            self.clock.turn(3 * IDLE)
            self.run([], lambda service: service.sweeper.sweep(ALL_SHARDS, FOREVER))
        states = {row["sessionKey"]["S"]: row["state"]["S"] for row in self.rows()}
        assert self.accepted <= set(states), "an accepted session was forgotten"
        for key, state in states.items():
            nobody_was_told = key in self.over or key not in self.accepted
            assert state in ("ended", "expired") or (state == "ending" and nobody_was_told)
        InProcessDynamoDB().delete_table(TableName=self.settings.table_name)


TestSessions = Sessions.TestCase
TestSessions.settings = hypothesis.settings(
    max_examples=max(200, hypothesis.settings().max_examples), stateful_step_count=40
)
