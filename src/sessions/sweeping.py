"""Find the sessions that are due, and end them: pages of them, in batches, side by side.

ending.py decides what an outcome makes of a session, lanes.py which sessions are next; how fast
and for how long is decided here.
"""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from queue import SimpleQueue
from typing import Any, Literal

from sessions.elevate import Elevate
from sessions.ending import is_past, settle, settlement
from sessions.lanes import Lanes
from sessions.pacer import Pacer
from sessions.registry import BATCH, Page, Registry, Written
from sessions.session import (
    MAX_SHARDS,
    Claim,
    Outcome,
    RegistryUnavailable,
    Row,
    Settlement,
)
from sessions.settings import Settings
from sessions.telemetry import Telemetry

ALL_SHARDS = range(MAX_SHARDS)

# What a sweep keeps in hand (seconds) to settle what it has claimed and to hand over the rest: a
# call to DynamoDB that hangs takes twice three seconds and a pause.
SETTLE_RESERVE = 8.0

# Sessions under way at most, for each thread: a batch in work, and one to go on with.
_WINDOW = 2 * BATCH


# What becomes of due sessions, as counted and logged. `due` ones were taken up; `backlog` is how
# many were due when the sweep began, up to the first thousand of each shard.
COUNTS = (
    *("backlog", "due", "claimed", "delivered", "rejected", "retried", "held_back", "expired"),
    *("skipped", "unreadable", "failed"),
)


@dataclass(slots=True)
class Sweep:
    """What a sweep did.

    `oldest` is for how many seconds the oldest session had been due, `given_up` names the markets
    for which nothing got through, `left` the shards that still hold due sessions.
    """

    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    oldest: int = 0
    stopped: Literal["", "elevate", "registry", "time"] = ""
    given_up: list[str] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    rows: list[Row]
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    late: bool = False


class Sweeper:
    """Sweeps the registry. Never raises for a part that failed."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        elevate: Elevate,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._elevate = elevate
        self._telemetry = telemetry
        self._clock = clock
        # How long before the end (seconds) the last notification may go out, to be settled in time.
        # The last of a host's addresses may be tried at the end of its connect time-out.
        self._last_call = 2 * settings.connect_timeout + settings.read_timeout + SETTLE_RESERVE

    def sweep(self, shards: Iterable[int], until: float) -> Sweep:
        """End the sessions that are due in `shards`, until the monotonic time `until`.

        Starts with a few sessions and doubles while Elevate answers; a market for which nothing
        gets through is given up until the next sweep.
        """
        report = Sweep()
        pacer = Pacer(self._settings.max_rate)
        most = _WINDOW * self._settings.concurrency
        if self._settings.max_rate:
            # Claimed sessions wait for their turn: for a second, in which few come back to life.
            most = min(most, max(1, int(self._settings.max_rate)))
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            due = _DueRows(self._registry, self._telemetry, threads, shards, int(self._clock()))
            rows = takewhile(lambda _: self._is_time_left(until), due)
            lanes = Lanes(rows, self._settings.concurrency, most)
            late = self._flow(lanes, threads, pacer, until, report)
        report.oldest = due.oldest
        report.counts.update(due.counts)
        report.given_up = sorted(lanes.given_up)
        if late is not None:
            report.left = sorted({*late, *due.unfinished, *lanes.left})
        if report.left:
            report.stopped = "time"
        elif "elevate" in lanes.given_up.values():
            report.stopped = "elevate"
        elif lanes.given_up or due.failed:
            report.stopped = "registry"
        return report

    def _flow(
        self,
        lanes: Lanes,
        threads: ThreadPoolExecutor,
        pacer: Pacer,
        until: float,
        report: Sweep,
    ) -> set[int] | None:
        """Keep the lanes busy; return the shards for which there was no time, None if done."""
        late: set[int] | None = None
        finished: SimpleQueue[Future[_Batch]] = SimpleQueue()
        at_work = 0
        while True:
            if late is None and not self._is_time_left(until):
                late = set()
            while late is None and (rows := lanes.next(at_work)):
                batch = threads.submit(self._end_batch, rows, pacer, until)
                batch.add_done_callback(finished.put)
                at_work += 1
            if not at_work:
                return late
            done = finished.get().result()
            at_work -= 1
            report.counts.update(done.counts, due=len(done.rows))
            if done.late:
                late = (late or set()) | {row.shard for row in done.rows}
            else:
                lanes.done(done.rows, done.counts, done.seconds)

    def _end_batch(self, rows: list[Row], pacer: Pacer, until: float) -> _Batch:
        """Claim, notify and settle a batch of one market's due rows in this thread."""
        batch, started, now = _Batch(rows), time.monotonic(), self._clock()
        past = [row for row in rows if is_past(row, now, self._settings)]
        alive = [row for row in rows if row not in past] if past else rows
        try:
            if past:
                expired = self._registry.expire(past)
                self._telemetry.expired(expired.done, "sweep")
                self._count(batch, "expired", len(past), expired)
            if alive and not self._is_time_left(until):
                batch.late = True
                batch.counts["held_back"] += len(alive)
            elif alive:
                claims = self._registry.claim_due(alive)
                self._count(batch, "claimed", len(alive), claims)
                settlements: list[tuple[Claim, Settlement]] = []
                try:
                    for settled in self._notify(claims.done, pacer, until, batch):
                        settlements.append(settled)
                finally:
                    settle(self._registry, self._telemetry, settlements)
        except RegistryUnavailable as error:
            self._telemetry.registry_failed("claim", error)
            batch.counts["failed"] += len(rows) - batch.counts.total()
        batch.seconds = time.monotonic() - started
        return batch

    def _notify(
        self, claims: Sequence[Claim], pacer: Pacer, until: float, batch: _Batch
    ) -> Iterator[tuple[Claim, Settlement]]:
        """Notify of one after the other; yield what to write about each."""
        for claim in claims:
            if not (pacer.wait(until - self._last_call) and self._is_time_left(until)):
                batch.late = True
                batch.counts["held_back"] += 1
                yield claim, Settlement("open")
                continue
            session = claim.row.session
            try:
                outcome = self._elevate.notify(session)
            except Exception as error:
                # A fault of ours: the rest of the batch must be settled, and the sweep go on.
                self._telemetry.crashed(error)
                outcome = Outcome("unavailable", reason=type(error).__name__)
            settled = settlement(claim.row, outcome, self._clock(), self._settings)
            self._telemetry.notified(outcome, session, settled.attempts, "sweep")
            came_to = "retried" if outcome.kind == "unavailable" else outcome.kind
            batch.counts[came_to if outcome.sent else "held_back"] += 1
            yield claim, settled

    def _count(self, batch: _Batch, name: str, of: int, written: Written[Any]) -> None:
        """Count what came of writing so many rows; those that had changed meanwhile are skipped."""
        done, failed = len(written.done), self._failed(written.failed)
        batch.counts.update({name: done, "failed": failed, "skipped": of - done - failed})

    def _failed(self, codes: Sequence[str]) -> int:
        """Write a line for each statement that failed; return how many did."""
        for code in codes:
            self._telemetry.registry_failed("statement", code)
        return len(codes)

    def _is_time_left(self, until: float) -> bool:
        """Return whether one more notification, and its settling, fits in before `until`."""
        return time.monotonic() < until - self._last_call


class _DueRows:
    """The due rows of several shards as one stream, oldest first; first pages come side by side.

    A shard that cannot be read holds up no other; `failed` says that there was one.
    """

    def __init__(
        self,
        registry: Registry,
        telemetry: Telemetry,
        threads: ThreadPoolExecutor,
        shards: Iterable[int],
        now: int,
    ) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._now = now
        self.counts: Counter[str] = Counter()
        self.failed = False
        self.oldest = 0
        shards = list(shards)
        pages = dict(zip(shards, threads.map(self._page, shards), strict=True))
        self.unfinished = {s for s, page in pages.items() if page and (page.rows or page.next)}
        for page in pages.values():
            if page and page.rows:
                self.counts["backlog"] += len(page.rows)
                self.oldest = max(self.oldest, now - (page.rows[0].due_at or now))
        self._streams = [self._stream(shard, page) for shard, page in pages.items()]

    def __iter__(self) -> Iterator[Row]:
        return heapq.merge(*self._streams, key=lambda row: row.due_at or 0)

    def _stream(self, shard: int, page: Page | None) -> Iterator[Row]:
        while page:
            self.counts["unreadable"] += page.unreadable
            yield from page.rows
            page = self._page(shard, page.next) if page.next else None
        self.unfinished.discard(shard)

    def _page(self, shard: int, start: dict[str, Any] | None = None) -> Page | None:
        try:
            return self._registry.due(shard, self._now, start)
        except RegistryUnavailable as error:
            self._telemetry.registry_failed("query", error)
            self.failed = True
            return None
