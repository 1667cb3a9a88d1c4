"""A sweep on a virtual clock: the real loop; threads, a table and an Elevate that cost no time.

Work runs when it starts; what it sleeps is the time it takes. So an hour of a sweep passes in a
second, always alike, however busy the machine is.
"""

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sessions.crew import CLERKS, Work
from sessions.registry import PAGE, BatchResult, Page
from sessions.session import Claim, Outcome, RegistryUnavailable, Row, Session, Settlement
from sessions.settings import Settings
from sessions.statements import SHARDS
from sessions.sweeping import Sweep, Sweeper
from sessions.telemetry import Telemetry

DELIVERED = Outcome("delivered", 204)
UNAVAILABLE = Outcome("unavailable", 503)


class VirtualCrew:
    """The threads of a sweep: so many notifiers and CLERKS, on one clock."""

    def __init__(self, notifiers: int = 16) -> None:
        self._time = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._idle = {"notify": notifiers, "call": CLERKS}
        self._queues: dict[str, deque[Work]] = {"notify": deque(), "call": deque()}

    def now(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> None:
        self._time += seconds

    def notify(self, work: Work) -> None:
        self._do("notify", work)

    def call(self, work: Work) -> None:
        self._do("call", work)

    def receive(self, seconds: float) -> None:
        if not self._events or self._events[0][0] > self._time + seconds:
            self._time += seconds
            return
        self._time, _, then = heapq.heappop(self._events)
        then()

    def dismiss(self) -> None:
        self._queues["notify"].clear()

    def _do(self, kind: str, work: Work) -> None:
        self._queues[kind].append(work)
        self._start(kind)

    def _start(self, kind: str) -> None:
        while self._queues[kind] and self._idle[kind]:
            self._idle[kind] -= 1
            began = self._time
            then = self._queues[kind].popleft()()
            ended, self._time = self._time, began
            heapq.heappush(self._events, (ended, next(self._order), self._then(kind, then)))

    def _then(self, kind: str, then: Callable[[], None]) -> Callable[[], None]:
        def free() -> None:
            self._idle[kind] += 1
            then()
            self._start(kind)

        return free


class World:
    """Due sessions, and how the two that a sweep calls fare; all of it may be changed by a test."""

    def __init__(self, rows: Sequence[Row], notifiers: int = 16, database: float = 0.015) -> None:
        self.crew = VirtualCrew(notifiers)
        self.notifiers = notifiers
        self.database = database
        self.markets: dict[str, Callable[[], tuple[float, Outcome]]] = {}
        self.usual: Callable[[], tuple[float, Outcome]] = lambda: (0.02, DELIVERED)
        self.settings = Settings("", "", "", concurrency=notifiers)
        self.fails: Callable[[str, int], object] = lambda call, shard: False
        self.due_rows = {
            shard: sorted((r for r in rows if r.shard == shard), key=lambda row: row.due_at or 0)
            for shard in range(SHARDS)
        }
        self.sent: Counter[str] = Counter()
        self.finished: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.claimed = 0
        self.settled: list[tuple[Claim, Settlement]] = []
        self.handed_over: list[dict[str, Any]] = []

    # -- Elevate and the registry, as a sweep calls them ----------------------------------------

    def notify(self, session: Session) -> Outcome:
        seconds, outcome = self.markets.get(session.market, self.usual)()
        self.sent[session.market] += 1
        self.crew.sleep(seconds)
        if outcome is DELIVERED:
            self.finished[session.market] = self.crew.now()
        return outcome

    def due(self, shard: int, until: int, start: Any = None) -> Page:
        self._call("due", shard)
        begin = start["at"] if start else 0
        end = begin + PAGE
        rows = self.due_rows[shard]
        return Page(rows[begin:end], 0, {"at": end} if end < len(rows) else None)

    def claim_due(self, rows: Sequence[Row]) -> BatchResult[Claim]:
        self._call("claim")
        self.claimed += len(rows)
        return BatchResult([Claim(row, "", 0) for row in rows], [])

    def expire(self, rows: Sequence[Row]) -> BatchResult[Row]:
        self._call("expire")
        return BatchResult(list(rows), [])

    def settle(self, settlements: Sequence[tuple[Claim, Settlement]]) -> list[str]:
        self._call("settle")
        self.settled += settlements
        return []

    def hand_over(self, details: list[dict[str, Any]]) -> int:
        self.handed_over += details
        return len(details)

    def _call(self, name: str, shard: int = -1) -> None:
        self.calls[name] += 1
        self.crew.sleep(self.database)
        if self.fails(name, shard):
            raise RegistryUnavailable("virtual")

    # -- the sweep ----------------------------------------------------------------------------

    def sweep(self, seconds: float = 60, depth: int = 0) -> Sweep:
        elevate: Any = self
        registry: Any = self
        now = time.time()
        sweeper = Sweeper(
            self.settings,
            registry,
            elevate,
            Telemetry("CRITICAL"),
            self.hand_over,
            clock=lambda: now + self.crew.now(),
            crew=lambda _: self.crew,
        )
        return sweeper.sweep(range(SHARDS), self.crew.now() + seconds, depth)


_numbers: Iterator[int] = itertools.count()


def due(market: str, count: int, age: int = 100) -> list[Row]:
    """Return rows that have been due for so many seconds."""
    at = int(time.time()) - age
    return [
        Row(Session(market, str(number)), at, at - 1800, number % SHARDS)
        for number in itertools.islice(_numbers, count)
    ]
