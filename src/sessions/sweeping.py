"""Find the sessions that are due, and end them: pages of them, in batches, side by side.

What is done with each is ending.py's; how many, how fast and how long is decided here.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched, islice
from queue import SimpleQueue
from random import SystemRandom
from typing import Literal

from sessions.elevate import Outcome
from sessions.ending import SETTLE_RESERVE, Ending
from sessions.registry import (
    BATCH,
    Claim,
    Page,
    Registry,
    RegistryUnavailable,
    Row,
    Settlement,
    parked,
)
from sessions.settings import MAX_SHARDS
from sessions.telemetry import Notified

# As in elevate.py: copies of a snapshot must not wait in step.
_random = SystemRandom()

ALL_SHARDS = range(MAX_SHARDS)

# Sessions under way at most, for each thread: a batch in work, and one to go on with.
_WINDOW = 2 * BATCH

# The smallest batch (sessions) that is worth its two calls to DynamoDB while others are at work.
_LEAST = 8

# No line about a notification is written later than this (seconds) after the notification.
_TELL_WITHIN = 1.0


@dataclass(slots=True)
class Sweep:
    """What a sweep did. `left` names the shards that still hold due sessions.

    `backlog` is how many were due when it began, counted up to the first thousand of each shard;
    `due` how many of them it took up. `late`: there was no time for some of them.
    """

    backlog: int = 0
    due: int = 0
    claimed: int = 0
    delivered: int = 0
    rejected: int = 0
    unavailable: int = 0
    unsent: int = 0
    expired: int = 0
    skipped: int = 0
    unreadable: int = 0
    failed: int = 0
    oldest: int = 0
    late: bool = False
    stopped: Literal["", "elevate", "registry", "time"] = ""
    left: list[int] = field(default_factory=list)

    def add(self, other: "Sweep") -> None:
        """Add the counts of a part of the sweep."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS = (
    "claimed",
    "delivered",
    "rejected",
    "unavailable",
    "unsent",
    "expired",
    "skipped",
    "failed",
)


class Sweeper:
    """Sweeps under the rules of an `Ending`."""

    def __init__(self, ending: Ending) -> None:
        settings = ending.settings
        self._ending = ending
        self._threads = settings.concurrency
        # How long before the end (seconds) the last notification may go out, to be settled in time.
        self._last_call = settings.connect_timeout + settings.read_timeout + SETTLE_RESERVE
        self._pacer = Pacer(0.0)

    def sweep(self, shards: Iterable[int], until: float, correlation_id: str) -> Sweep:
        """End the sessions that are due in `shards`, until the monotonic time `until`.

        Starts with one batch and doubles while Elevate answers; when nothing gets through any more,
        no further session is tried. Never raises for a part that failed.
        """
        report = Sweep()
        self._pacer = Pacer(self._ending.settings.max_rate)
        with ThreadPoolExecutor(self._threads) as threads:
            try:
                rows = _DueRows(
                    self._ending.registry, threads, list(shards), int(self._ending.clock()), report
                )
            except RegistryUnavailable as error:
                self._ending.telemetry.registry_failed("query", error, None, correlation_id)
                report.stopped = "registry"
            else:
                self._flow(rows, threads, until, correlation_id, report)
        return report

    def retry_rejected(
        self, market: str | None, shards: Iterable[int], until: float, correlation_id: str
    ) -> Sweep:
        """Make rejected sessions due again, of one market or of all. Raises RegistryUnavailable.

        They are spread over a minute, so that the next sweep does not meet them all at once.
        """
        report = Sweep()
        now = int(self._ending.clock())
        left = list(shards)
        while left:
            for page in self._pages(parked(left[0]), now):
                rows = [r for r in page.rows if market in (None, r.session.market)]
                report.due += len(rows)
                for some in batched(rows, BATCH, strict=False):
                    written = self._ending.registry.retry_rejected(
                        some, lambda: now + _random.randint(0, 60)
                    )
                    report.claimed += len(written.done)
                    report.failed += self._ending.tell_failed(written.failed, correlation_id)
                if time.monotonic() > until - SETTLE_RESERVE:
                    report.stopped = "time"
                    report.left = left
                    return report
            left.pop(0)
        return report

    def _pages(self, shard: int, now: int) -> Iterator[Page]:
        page = self._ending.registry.due(shard, now)
        yield page
        while page.next:
            page = self._ending.registry.due(shard, now, page.next)
            yield page

    def _flow(
        self,
        rows: "_DueRows",
        threads: ThreadPoolExecutor,
        until: float,
        correlation_id: str,
        report: Sweep,
    ) -> None:
        """Keep a window of sessions under way: slow start, without waiting for the slowest.

        The window grows by what got through. While nothing does, nothing is added to it; when it
        has run empty like that, the sweep is over.
        """
        most, rate = _WINDOW * self._threads, self._ending.settings.max_rate
        if rate:
            # Claimed sessions wait for their turn: for a second, in which few come back to life.
            most = min(most, max(1, int(rate)))
        start = min(BATCH, most)
        window, flying = start, 0
        silent: Literal["", "elevate", "registry"] = ""
        under_way: dict[Future[Sweep], list[Row]] = {}
        finished: SimpleQueue[Future[Sweep]] = SimpleQueue()
        while True:
            while not silent and not report.stopped and flying < window:
                if not self._is_time_left(until):
                    report.stopped = "time"
                    break
                room = window - flying
                # A window is spread over all threads; where it is wide, in DynamoDB's full batches.
                size = min(-(-window // self._threads), BATCH)
                if room < size and len(under_way) >= self._threads:
                    break  # all threads have work: wait until there is room for a full batch
                # The last sessions are spread, so that no thread ends long after the others.
                share = max(-(-rows.ahead // self._threads), _LEAST) if rows.ahead else size
                some = self._next(rows, min(size, share, room), correlation_id, report)
                if not some:
                    break
                batch = threads.submit(self._end_batch, some, until, correlation_id)
                under_way[batch] = some
                batch.add_done_callback(finished.put)
                flying += len(some)
                report.due += len(some)
            if not under_way:
                break
            done = finished.get()
            some, part = under_way.pop(done), done.result()
            flying -= len(some)
            report.add(part)
            troubled = part.unavailable + part.unsent
            if part.delivered + part.rejected:
                silent = ""
            elif troubled or part.failed:
                silent = "elevate" if troubled else "registry"
            window = start if troubled else min(window + len(some), most)
            if part.late:
                report.stopped = "time"
                report.left += (row.shard for row in some)
        if report.stopped == "time":
            report.left = sorted({*report.left, *rows.unfinished})
        elif silent and (rows.unfinished or not report.delivered + report.rejected):
            report.stopped = silent

    def _next(
        self, rows: Iterator[Row], count: int, correlation_id: str, report: Sweep
    ) -> list[Row]:
        try:
            return list(islice(rows, count))
        except RegistryUnavailable as error:
            self._ending.telemetry.registry_failed("query", error, None, correlation_id)
            report.stopped = "registry"
            return []

    def _end_batch(self, rows: Sequence[Row], until: float, correlation_id: str) -> Sweep:
        """Claim, notify and settle a batch of due rows in this thread."""
        part = Sweep()
        past: list[Row] = []
        alive: list[Row] = []
        for row in rows:
            (past if self._ending.is_past_deadline(row) else alive).append(row)
        try:
            if past:
                expired = self._ending.registry.expire(past)
                part.expired = len(expired.done)
                part.failed = self._ending.tell_failed(expired.failed, correlation_id)
                part.skipped = len(past) - part.expired - part.failed
                self._ending.telemetry.expired(expired.done, "sweep", correlation_id)
            if not alive:
                return part
            part.late = not self._is_time_left(until)
            if part.late or self._ending.elevate.breaker.is_open:
                part.unsent = len(alive)
                return part
            claims = self._ending.registry.claim_due(alive)
        except RegistryUnavailable as error:
            self._ending.telemetry.registry_failed("claim", error, None, correlation_id)
            part.failed = len(rows) - part.expired - part.skipped
            return part
        failed = self._ending.tell_failed(claims.failed, correlation_id)
        part.claimed = len(claims.done)
        part.failed += failed
        part.skipped += len(alive) - part.claimed - failed
        self._ending.settle(
            list(self._notify(claims.done, until, correlation_id, part)), correlation_id
        )
        return part

    def _notify(
        self, claims: Sequence[Claim], until: float, correlation_id: str, part: Sweep
    ) -> Iterator[tuple[Claim, Settlement]]:
        """Notify of one after the other; yield what to write about each."""
        told: list[Notified] = []
        told_at = time.monotonic()
        for claim in claims:
            if not (self._pacer.wait(until - self._last_call) and self._is_time_left(until)):
                part.late = True
                part.unsent += 1
                yield claim, Settlement("open")
                continue
            session = claim.row.session
            try:
                outcome = self._ending.elevate.notify(session)
            except Exception as error:
                # A fault of ours: the others of the batch shall be settled, and the sweep go on.
                self._ending.telemetry.crashed(error, correlation_id)
                outcome = Outcome("unavailable", reason=type(error).__name__)
            attempt = claim.row.attempts + outcome.sent
            told.append(Notified(outcome, session, attempt, "sweep", correlation_id))
            if time.monotonic() > told_at + _TELL_WITHIN:
                self._ending.telemetry.notified(told)
                told, told_at = [], time.monotonic()
            if outcome.kind == "delivered":
                part.delivered += 1
            elif outcome.kind == "rejected":
                part.rejected += 1
            elif outcome.sent:
                part.unavailable += 1
            else:
                part.unsent += 1
            yield claim, self._ending.settlement(claim.row, outcome)
        self._ending.telemetry.notified(told)

    def _is_time_left(self, until: float) -> bool:
        """Tell whether one more notification, and its settling, fits in before `until`."""
        return time.monotonic() < until - self._last_call


class Pacer:
    """Let callers through at most `rate` times a second, evenly; a rate of 0 is no limit."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._step = 1 / rate if rate else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, latest: float) -> bool:
        """Return True when it is this caller's turn; False at once if that is not by `latest`."""
        if not self._step:
            return True
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            if turn > latest:
                return False
            self._next = turn + self._step
        if turn > now:
            self._sleep(turn - now)
        return True


class _DueRows:
    """The due rows of several shards as one stream; the first pages are fetched side by side."""

    def __init__(
        self,
        registry: Registry,
        threads: ThreadPoolExecutor,
        shards: list[int],
        now: int,
        report: Sweep,
    ) -> None:
        self._registry = registry
        self._now = now
        self._report = report
        first = threads.map(lambda shard: registry.due(shard, now), shards)
        pages = [(s, p) for s, p in zip(shards, first, strict=True) if p.rows or p.unreadable]
        # The shard that waits longest comes first: there may be no time for all.
        self._first = dict(
            sorted(pages, key=lambda one: one[1].rows[0].due_at if one[1].rows else now)
        )
        self.unfinished = list(self._first)
        # How many rows are still to come, once that is known; until then 0.
        self.ahead = 0
        due = [row.due_at for page in self._first.values() for row in page.rows]
        report.oldest = max(0, now - min(due, default=now))
        report.backlog = len(due)
        self._rows = self._stream()

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return next(self._rows)

    def _stream(self) -> Iterator[Row]:
        for shard, page in list(self._first.items()):
            del self._first[shard]
            while True:
                self._report.unreadable += page.unreadable
                is_last = not page.next and not self._first
                for index, row in enumerate(page.rows):
                    self.ahead = len(page.rows) - index - 1 if is_last else 0
                    yield row
                if not page.next:
                    break
                page = self._registry.due(shard, self._now, page.next)
            self.unfinished.remove(shard)
