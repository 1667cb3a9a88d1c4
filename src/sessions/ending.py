"""Claim → notify → settle: the one use case, for one session, for many, and for all that are due.

    claim    one conditional write takes a lease, before anything is sent
    notify   one POST to Elevate
    settle   the outcome is written, if the lease is still ours

A crash between any two of these leaves a row that is due when its lease has run out, so a session
is notified again rather than forgotten. The only owner of retries is the row's due time.
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

from sessions import lifetime
from sessions.elevate import Elevate, Outcome
from sessions.registry import (
    BATCH,
    Claim,
    Page,
    Registry,
    RegistryUnavailable,
    Row,
    Settlement,
    Status,
    UnreadableRow,
    parked,
)
from sessions.session import Activity, Session
from sessions.settings import MAX_SHARDS, Settings
from sessions.telemetry import Notified, Source, Telemetry

# As in elevate.py: copies of a snapshot must not wait in step.
_random = SystemRandom()

# No retry waits longer than this (seconds), whatever the attempts.
BACKOFF_LIMIT = 15 * 60

# What a sweep keeps in hand (seconds) to settle what it has claimed and to hand over the rest.
SETTLE_RESERVE = 5.0

# Sessions under way at most, for each thread: a batch in work, and one to go on with.
_WINDOW = 2 * BATCH

# The smallest batch (sessions) that is worth its two calls to DynamoDB while others are at work.
_LEAST = 8

# No line about a notification is written later than this (seconds) after the notification.
_TELL_WITHIN = 1.0

type Ended = Literal["delivered", "over", "rejected", "kept", "lost"]
type Tracked = Literal["tracked", "over", "lost"]


@dataclass(frozen=True, slots=True)
class End:
    """What became of one explicit end.

    `over`: Elevate had ended the session before. `kept`: written down and due again. `lost`:
    neither Elevate nor the registry took it; the caller must try again after `retry_after` seconds.
    """

    result: Ended
    status: int | None = None
    reason: str = ""
    retry_after: int = 1


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


class Ending:
    """The application: registry and Elevate put together under the rules of this service."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry | None = None,
        elevate: Elevate | None = None,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry or Telemetry()
        self._registry = registry or Registry(settings)
        self._elevate = elevate or Elevate(settings)
        self._clock = clock
        self._threads = settings.concurrency
        # How long before the end (seconds) the last notification may go out, to be settled in time.
        self._last_call = settings.connect_timeout + settings.read_timeout + SETTLE_RESERVE
        self._pacer = Pacer(0.0)

    # -- told -------------------------------------------------------------------------------

    def track(self, activity: Activity) -> bool:
        """Note that a session is alive; False if it is over. Raises RegistryUnavailable."""
        return self._registry.track(activity)

    def track_all(
        self, activities: Sequence[Activity], correlation_id: str, until: float
    ) -> list[Tracked]:
        """Track many; what there is no time for before `until` (monotonic seconds) is `lost`."""

        def track(activity: Activity) -> Tracked:
            if time.monotonic() >= until:
                return "lost"
            try:
                return "tracked" if self.track(activity) else "over"
            except RegistryUnavailable as error:
                self._telemetry.registry_failed("track", error, activity.session, correlation_id)
                return "lost"

        return self._each(activities, track)

    def status(self, session_key: str) -> list[Status]:
        """Return the session's state in each market. Raises RegistryUnavailable, UnreadableRow."""
        return self._registry.status(session_key)

    def end(self, session: Session, asked_at: int, source: Source, correlation_id: str) -> End:
        """End one session now, whether it was tracked before or not."""
        try:
            claim = self._registry.claim(session, asked_at)
        except (RegistryUnavailable, UnreadableRow) as error:
            self._telemetry.registry_failed("claim", error, session, correlation_id)
            return self._end_unclaimed(session, source, correlation_id)
        if claim == "over":
            return End("over")
        if claim == "in flight":
            return End("kept")
        if self._is_past_deadline(claim.row):
            self._settle([(claim, Settlement("expired"))], correlation_id)
            self._telemetry.expired([claim.row], source, correlation_id)
            return End("over")
        outcome = self._elevate.notify(session)
        attempt = claim.row.attempts + outcome.sent
        self._telemetry.notified([Notified(outcome, session, attempt, source, correlation_id)])
        self._settle([(claim, self._settlement(claim.row, outcome))], correlation_id)
        match outcome.kind:
            case "delivered":
                return End("delivered", outcome.status)
            case "rejected":
                return End("rejected", outcome.status, outcome.reason)
            case _:
                return End("kept", outcome.status, outcome.reason)

    def end_all(
        self,
        sessions: Sequence[tuple[Session, int]],
        source: Source,
        correlation_id: str,
        until: float,
    ) -> list[End]:
        """End many sessions; from `until` on (monotonic seconds) only write them down as due."""

        def end(one: tuple[Session, int]) -> End:
            session, asked_at = one
            if time.monotonic() < until:
                return self.end(session, asked_at, source, correlation_id)
            try:
                self._registry.keep(session, asked_at)
            except RegistryUnavailable as error:
                self._telemetry.registry_failed("keep", error, session, correlation_id)
                return End("lost")
            return End("kept")

        return self._each(sessions, end)

    def _each[T, R](self, many: Sequence[T], do: Callable[[T], R]) -> list[R]:
        if len(many) == 1:
            return [do(many[0])]
        with ThreadPoolExecutor(self._threads) as threads:
            return list(threads.map(do, many))

    def _end_unclaimed(self, session: Session, source: Source, correlation_id: str) -> End:
        """Notify all the same: a registry that is down must not keep visitors signed in."""
        outcome = self._elevate.notify(session)
        self._telemetry.notified([Notified(outcome, session, 1, source, correlation_id)])
        if outcome.kind == "unavailable":
            return End(
                "lost", outcome.status, retry_after=outcome.retry_after or self._settings.retry_base
            )
        return End(outcome.kind, outcome.status, outcome.reason)

    # -- found ------------------------------------------------------------------------------

    def sweep(self, shards: Iterable[int], until: float, correlation_id: str) -> Sweep:
        """End the sessions that are due in `shards`, until the monotonic time `until`.

        Starts with one batch and doubles while Elevate answers; when nothing gets through any more,
        no further session is tried. Never raises for a part that failed.
        """
        report = Sweep()
        self._pacer = Pacer(self._settings.max_rate)
        with ThreadPoolExecutor(self._threads) as threads:
            try:
                rows = _DueRows(self._registry, threads, list(shards), int(self._clock()), report)
            except RegistryUnavailable as error:
                self._telemetry.registry_failed("query", error, None, correlation_id)
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
        now = int(self._clock())
        left = list(shards)
        while left:
            for page in self._pages(parked(left[0]), now):
                rows = [r for r in page.rows if market in (None, r.session.market)]
                report.due += len(rows)
                for some in batched(rows, BATCH, strict=False):
                    written = self._registry.retry_rejected(
                        some, lambda: now + _random.randint(0, 60)
                    )
                    report.claimed += len(written.done)
                    report.failed += self._tell_failed(written.failed, correlation_id)
                if time.monotonic() > until - SETTLE_RESERVE:
                    report.stopped = "time"
                    report.left = left
                    return report
            left.pop(0)
        return report

    def _pages(self, shard: int, now: int) -> Iterator[Page]:
        page = self._registry.due(shard, now)
        yield page
        while page.next:
            page = self._registry.due(shard, now, page.next)
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
        window, flying = BATCH, 0
        silent: Literal["", "elevate", "registry"] = ""
        under_way: dict[Future[Sweep], list[Row]] = {}
        finished: SimpleQueue[Future[Sweep]] = SimpleQueue()
        while True:
            while not silent and not report.stopped and flying < window:
                if not self._enough_time(until):
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
            window = BATCH if troubled else min(window + len(some), _WINDOW * self._threads)
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
            self._telemetry.registry_failed("query", error, None, correlation_id)
            report.stopped = "registry"
            return []

    def _end_batch(self, rows: Sequence[Row], until: float, correlation_id: str) -> Sweep:
        """Claim, notify and settle a batch of due rows in this thread."""
        part = Sweep()
        past: list[Row] = []
        alive: list[Row] = []
        for row in rows:
            (past if self._is_past_deadline(row) else alive).append(row)
        try:
            if past:
                expired = self._registry.expire(past)
                part.expired = len(expired.done)
                part.failed = self._tell_failed(expired.failed, correlation_id)
                part.skipped = len(past) - part.expired - part.failed
                self._telemetry.expired(expired.done, "sweep", correlation_id)
            if not alive:
                return part
            part.late = not self._enough_time(until)
            if part.late or self._elevate.breaker.is_open:
                part.unsent = len(alive)
                return part
            claims = self._registry.claim_due(alive)
        except RegistryUnavailable as error:
            self._telemetry.registry_failed("claim", error, None, correlation_id)
            part.failed = len(rows) - part.expired - part.skipped
            return part
        failed = self._tell_failed(claims.failed, correlation_id)
        part.claimed = len(claims.done)
        part.failed += failed
        part.skipped += len(alive) - part.claimed - failed
        self._settle(list(self._notify(claims.done, until, correlation_id, part)), correlation_id)
        return part

    def _notify(
        self, claims: Sequence[Claim], until: float, correlation_id: str, part: Sweep
    ) -> Iterator[tuple[Claim, Settlement]]:
        """Notify of one after the other; yield what to write about each."""
        told: list[Notified] = []
        told_at = time.monotonic()
        for claim in claims:
            if not (self._pacer.wait(until - self._last_call) and self._enough_time(until)):
                part.late = True
                part.unsent += 1
                yield claim, Settlement("open")
                continue
            session = claim.row.session
            try:
                outcome = self._elevate.notify(session)
            except Exception as error:
                # A fault of ours: the others of the batch shall be settled, and the sweep go on.
                self._telemetry.crashed(error, correlation_id)
                outcome = Outcome("unavailable", reason=type(error).__name__)
            attempt = claim.row.attempts + outcome.sent
            told.append(Notified(outcome, session, attempt, "sweep", correlation_id))
            if time.monotonic() > told_at + _TELL_WITHIN:
                self._telemetry.notified(told)
                told, told_at = [], time.monotonic()
            if outcome.kind == "delivered":
                part.delivered += 1
            elif outcome.kind == "rejected":
                part.rejected += 1
            elif outcome.sent:
                part.unavailable += 1
            else:
                part.unsent += 1
            yield claim, self._settlement(claim.row, outcome)
        self._telemetry.notified(told)

    # -- rules ------------------------------------------------------------------------------

    def _settlement(self, row: Row, outcome: Outcome) -> Settlement:
        """Return what an outcome makes of a session."""
        attempts = row.attempts + outcome.sent
        if outcome.kind == "delivered":
            return Settlement("ended", None, attempts, outcome.status)
        if outcome.kind == "rejected":
            return Settlement("rejected", None, attempts, outcome.status, outcome.reason)
        return Settlement(
            "retrying",
            int(self._clock()) + backoff(self._settings.retry_base, attempts, outcome.retry_after),
            attempts,
            outcome.status,
            outcome.reason,
        )

    def _is_past_deadline(self, row: Row) -> bool:
        deadline = lifetime.deadline(row.alive_at, row.interactive, self._settings)
        return self._clock() >= deadline

    def _enough_time(self, until: float) -> bool:
        """Tell whether one more notification, and its settling, fits in before `until`."""
        return time.monotonic() < until - self._last_call

    def _settle(self, settlements: Sequence[tuple[Claim, Settlement]], correlation_id: str) -> None:
        """Write outcomes. What cannot be written stays due, and is notified once more."""
        try:
            self._tell_failed(self._registry.settle(settlements).failed, correlation_id)
        except RegistryUnavailable as error:
            self._telemetry.registry_failed("settle", error, None, correlation_id)

    def _tell_failed(self, codes: Sequence[str], correlation_id: str) -> int:
        for code in codes:
            self._telemetry.statement_failed(code, correlation_id)
        return len(codes)


def backoff(base: int, attempts: int, retry_after: int | None = None) -> int:
    """Return the seconds to wait after `attempts` notifications found Elevate unavailable.

    Full jitter up to base · 2^attempts. Elevate's own Retry-After (already within bounds) is the
    least there is, with the jitter of the base on top, so that all whom it told to wait do not come
    back at once.
    """
    ceiling = min(BACKOFF_LIMIT, base * 2 ** min(attempts, 10))
    if retry_after is None:
        return _random.randint(1, ceiling)
    return retry_after + _random.randint(1, base)


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
        self._seen: dict[int, bool] = {}
        first = threads.map(lambda shard: registry.due(shard, now), shards)
        self._first = {s: p for s, p in zip(shards, first, strict=True) if p.rows or p.unreadable}
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


ALL_SHARDS = range(MAX_SHARDS)
