"""Find the sessions that are due, and end them.

One thread decides and waits for nothing but its inbox; notifiers post a session each, clerks call
DynamoDB (crew.py). ending.py decides what an outcome makes of a session, lanes.py whose turn it is;
how many, and for how long, is decided here.

    due rows ─> whose turn is it? ─> claim 25 ─> one POST each ─> settle 25 ─> one line a sweep
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from sessions.aws import HANGING_CALL
from sessions.crew import CLERKS, Crew
from sessions.elevate import Elevate
from sessions.ending import is_past, settlement
from sessions.lanes import Lanes
from sessions.pacer import Pacer
from sessions.registry import BATCH, BatchResult, Page, Registry
from sessions.session import Claim, Outcome, RegistryUnavailable, Row, Settlement
from sessions.settings import Settings
from sessions.telemetry import Telemetry

# What a sweep keeps in hand (seconds) to settle what it has claimed and to hand over the rest.
SETTLE_RESERVE = HANGING_CALL

# A tick hands a shard over once, and what that leaves is the next tick's: so there is one hand-over
# a shard at most. It ends this much (seconds) before the next tick may hand over.
MAX_DEPTH = 1
HAND_OVER_MARGIN = 10

# Sessions that may be claimed beyond those that are being posted: as many as were posted in the
# last second, and never more than this.
MOST_AHEAD = 2 * BATCH

# An outcome waits no longer than this (seconds) for others to be settled with.
SETTLE_AFTER = 1.0

# Rows that are read and kept ready at most, so that one market's backlog hides no other: as many as
# fit into 20 MB.
READ_AHEAD = 23_000

# What remains (seconds) for the hand-over and the line when all else is over, or hangs.
LINE_RESERVE = 1.0

# The first page of every shard says which markets there are; nobody waits longer (seconds) for one.
FIRST_PAGES = 1.0

# Markets that a sweep's line names at most: callers may have made them up.
NAMED = 20

# So many failures in a row of a kind of call to DynamoDB end the taking.
MOST_FAILURES = 3


COUNTS = (
    *("backlog", "due", "claimed", "delivered", "rejected", "retried", "given_back", "expired"),
    *("skipped", "unreadable", "failed", "left"),
)


@dataclass(slots=True)
class Sweep:
    """What a sweep did.

    `counts` has what became of due sessions: `backlog` is how many were due when it began, up to
    the first thousand of each shard; `due` ones were taken up; `left` ones were read and are due
    still. `oldest` is for how many seconds the oldest session had been due, `stopped` why not all
    were taken up, `given_up` the markets for which nothing got through, `unfinished` the shards
    with sessions for which there was no time, `handed_over` for how many of these a sweep was
    asked for.
    """

    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    oldest: int = 0
    stopped: Literal["", "registry", "time"] = ""
    given_up: list[str] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    handed_over: int = 0


class Sweeper:
    """Sweeps the registry. Never raises for a part that failed.

    `hand_over` is given the details of `Session Sweep` events and returns how many the bus took.
    `crew` makes a Crew, of so many notifiers.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        elevate: Elevate,
        telemetry: Telemetry,
        hand_over: Callable[[list[dict[str, Any]]], int],
        clock: Callable[[], float] = time.time,
        crew: Callable[[int], Any] = Crew,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._elevate = elevate
        self._telemetry = telemetry
        self._hand_over = hand_over
        self._clock = clock
        self._crew = crew

    def sweep(
        self, shards: Iterable[int], until: float, depth: int = 0, correlation_id: str = ""
    ) -> Sweep:
        """End the sessions that are due in `shards`, until the monotonic time `until`.

        What time left is handed over, once: `depth` counts hand-overs, the id goes with them.
        """
        crew = self._crew(self._settings.concurrency)
        started = crew.now()
        margin = HAND_OVER_MARGIN if depth else 0
        run = _Run(
            self._settings,
            self._registry,
            self._elevate,
            self._telemetry,
            self._clock,
            crew,
            list(shards),
            until - margin,
        )
        sweep = run.to_the_end()
        # Where Elevate's rate is bounded, more sweeps would not be faster: the next tick goes on.
        if sweep.unfinished and depth < MAX_DEPTH and not self._settings.max_rate:
            passed_on = {"depth": depth + 1, "correlationId": correlation_id}
            details = [{"shards": [shard]} | passed_on for shard in sweep.unfinished]
            sweep.handed_over = self._hand_over(details)
        self._telemetry.swept(
            oldest_age_s=sweep.oldest,
            **sweep.counts,
            stopped=sweep.stopped,
            given_up=sweep.given_up[:NAMED],
            given_up_markets=len(sweep.given_up),
            unfinished=len(sweep.unfinished),
            handed_over=sweep.handed_over,
            duration_ms=round((crew.now() - started) * 1000),
        )
        if sweep.stopped != "registry" or sweep.counts["due"]:
            # Zeros too: the alarm takes silence for trouble.
            self._telemetry.count("SweepLag", sweep.oldest // 60)
            self._telemetry.count("Backlog", sweep.counts["backlog"])
        return sweep


@dataclass(slots=True)
class _Shard:
    """How far a shard has been read: its last row's due time, and where the next page starts."""

    read_to: int = 0
    next: dict[str, Any] | None = None
    state: Literal["unread", "reading", "read", "failed"] = "unread"


class _Run:
    """One sweep. All its methods but `_post` run in the one thread that decides."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        elevate: Elevate,
        telemetry: Telemetry,
        clock: Callable[[], float],
        crew: Crew,
        shards: list[int],
        until: float,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._elevate = elevate
        self._telemetry = telemetry
        self._clock = clock
        self._crew = crew
        self._end = until - LINE_RESERVE
        # The last claim leaves time for its notification, and the notification for its settling.
        # To connect, to agree on TLS, to be answered: each has its time-out.
        slowest = 2 * settings.connect_timeout + settings.read_timeout
        self._wait_until = until - SETTLE_RESERVE
        self._take_until = self._wait_until - slowest
        self._started = crew.now()
        self._due_at = int(clock())
        self._sweep = Sweep()
        self._shards = {shard: _Shard() for shard in shards}
        self._lanes = Lanes()
        self._pacer = Pacer(settings.max_rate)
        self._past: list[Row] = []
        self._claimed: deque[Claim] = deque()  # they wait for their turn under ElevateMaxRate
        self._posting = 0
        self._posted_at: deque[float] = deque()
        self._unsettled: list[tuple[Claim, Settlement]] = []
        self._unsettled_since = 0.0
        self._calls = 0  # of clerks, under way
        self._failures: Counter[str] = Counter()  # of a kind of call, in a row
        self._late: set[int] = set()  # shards of sessions that were given back

    def to_the_end(self) -> Sweep:
        """Do all that there is time for; return what it was."""
        while True:
            now = self._crew.now()
            if self._is_taking(now):
                self._expire()
                self._claim(now)
                self._read()
            self._post_claimed(now)
            self._settle(now)
            if self._is_done(now):
                break
            self._crew.receive(self._next_moment(now) - now)
        self._crew.dismiss()
        return self._report()

    def _is_taking(self, now: float) -> bool:
        return now < self._take_until and not self._is_failing()

    def _is_failing(self) -> bool:
        return max(self._failures.values(), default=0) >= MOST_FAILURES

    def _is_done(self, now: float) -> bool:
        """Return whether time is up, or nothing is under way and nothing left that may be taken."""
        if self._calls or self._unsettled or self._claimed:
            return now >= self._end
        if self._posting:
            # What still drips is left to its lease.
            return now >= self._wait_until
        return not self._is_taking(now) or not (self._unread() or self._past or self._lanes.waiting)

    def _next_moment(self, now: float) -> float:
        """Return when something is to be decided though nothing has come of the work."""
        moments = [self._end, self._wait_until, self._take_until, self._started + FIRST_PAGES]
        if self._unsettled:
            moments.append(self._unsettled_since + SETTLE_AFTER)
        if self._claimed:
            moments.append(now + self._pacer.wait(now))
        return min((moment for moment in moments if moment > now), default=now)

    # -- read --------------------------------------------------------------------------------

    def _unread(self) -> list[int]:
        """Return the shards that have not been read to their end."""
        return [n for n, shard in self._shards.items() if shard.state in ("unread", "reading")]

    def _read(self) -> None:
        """Read all first pages, then on in spare time, first where the oldest rows may be."""
        if self._lanes.waiting >= READ_AHEAD:
            return
        waiting = [n for n in self._unread() if self._shards[n].state == "unread"]
        for number in sorted(waiting, key=lambda number: self._shards[number].read_to):
            shard = self._shards[number]
            is_one_read = any(other.state == "reading" for other in self._shards.values())
            if self._calls < CLERKS and (shard.next is None or not is_one_read):
                shard.state = "reading"
                page = partial(self._registry.due, number, self._due_at, shard.next)
                self._call("query", page, partial(self._take_in, shard))

    def _take_in(self, shard: _Shard, page: Page | None) -> None:
        if page is None:
            shard.state = "failed"
            return
        sweep = self._sweep
        sweep.counts["unreadable"] += page.unreadable
        if shard.next is None:
            sweep.counts["backlog"] += len(page.rows)
        for row in page.rows:
            shard.read_to = row.due_at or 0
            sweep.oldest = max(sweep.oldest, self._due_at - shard.read_to)
            if is_past(row, self._due_at, self._settings):
                self._past.append(row)
            else:
                self._lanes.put(row)
        shard.next = page.next
        shard.state = "unread" if page.next else "read"

    # -- claim, post, settle -----------------------------------------------------------------

    def _expire(self) -> None:
        """Settle what Elevate will already have ended itself, a batch at a time."""
        while self._past and self._calls < CLERKS:
            rows, self._past = self._past[:BATCH], self._past[BATCH:]
            self._sweep.counts["due"] += len(rows)
            self._call("expire", partial(self._registry.expire, rows), partial(self._expired, rows))

    def _expired(self, rows: list[Row], written: BatchResult[Row] | None) -> None:
        self._telemetry.expired(self._count("expired", rows, written), "sweep")

    def _claim(self, now: float) -> None:
        """Claim as many as there will soon be notifiers for."""
        if self._is_first_page_missing(now) or len(self._unsettled) >= MOST_AHEAD:
            return
        while self._calls < CLERKS and (rows := self._lanes.take(self._places(now))):
            self._sweep.counts["due"] += len(rows)
            self._call("claim", partial(self._registry.claim_due, rows), partial(self._take, rows))

    def _is_first_page_missing(self, now: float) -> bool:
        """Return whether a market may be unknown because a shard has not been looked at."""
        is_any = any(self._shards[number].next is None for number in self._unread())
        return is_any and now < self._started + FIRST_PAGES

    def _places(self, now: float) -> int:
        """Return how many sessions to claim now; 0 is none, or better a full batch soon."""
        while self._posted_at and self._posted_at[0] <= now - 1:
            self._posted_at.popleft()
        threads = self._settings.concurrency
        most = threads + min(len(self._posted_at), MOST_AHEAD)
        full = min(BATCH, self._lanes.waiting)
        places = min(full, most - self._lanes.under_way)
        if self._pacer.ahead:
            return min(places, self._pacer.ahead - (self._lanes.under_way - self._posting))
        is_any_ahead = self._lanes.under_way > min(self._posting, threads)
        return 0 if places < full and is_any_ahead else places

    def _take(self, rows: list[Row], written: BatchResult[Claim] | None) -> None:
        claims = self._count("claimed", rows, written)
        claimed = {id(claim.row) for claim in claims}
        for row in rows:
            if id(row) not in claimed:
                self._lanes.done(row, "nothing", 0.0)
        self._claimed.extend(claims)

    def _post_claimed(self, now: float) -> None:
        """Let notifiers post what is claimed, each at its turn; give back what comes too late."""
        while self._claimed and now < self._take_until and not self._pacer.wait(now):
            self._pacer.take(now)
            self._posting += 1
            self._crew.notify(partial(self._post, self._claimed.popleft()))
        while self._claimed and now >= self._take_until:
            self._give_back(self._claimed.popleft())

    def _post(self, claim: Claim) -> Callable[[], None]:
        """Notify Elevate, in a notifier's thread; return what is to be done about it."""
        started, session = self._crew.now(), claim.row.session
        if started >= self._take_until:
            return partial(self._not_posted, claim)
        try:
            outcome = self._elevate.notify(session)
        except Exception as error:
            # A fault of ours: others must be settled, and the sweep go on.
            self._telemetry.crashed(error)
            outcome = Outcome("unavailable", reason=type(error).__name__)
        settled = settlement(claim.row, outcome, self._clock(), self._settings)
        self._telemetry.notified(outcome, session, settled.attempts, "sweep")
        return partial(self._posted, claim, outcome, settled, self._crew.now() - started)

    def _posted(self, claim: Claim, outcome: Outcome, settled: Settlement, seconds: float) -> None:
        is_through = outcome.kind != "unavailable"
        self._posting -= 1
        self._posted_at.append(self._crew.now())
        self._sweep.counts[outcome.kind if is_through else "retried"] += 1
        self._lanes.done(claim.row, "through" if is_through else "trouble", seconds)
        self._to_settle(claim, settled)

    def _not_posted(self, claim: Claim) -> None:
        self._posting -= 1
        self._give_back(claim)

    def _give_back(self, claim: Claim) -> None:
        self._late.add(claim.row.shard)
        self._sweep.counts["given_back"] += 1
        self._lanes.done(claim.row, "nothing", 0.0)
        self._to_settle(claim, Settlement("open"))

    def _to_settle(self, claim: Claim, settled: Settlement) -> None:
        if not self._unsettled:
            self._unsettled_since = self._crew.now()
        self._unsettled.append((claim, settled))

    def _settle(self, now: float) -> None:
        """Write outcomes in full batches; after a second, or when nothing is under way, all."""
        is_late = now >= min(self._unsettled_since + SETTLE_AFTER, self._wait_until)
        least = 1 if is_late or not self._lanes.under_way else BATCH
        while len(self._unsettled) >= least:
            batch, self._unsettled = self._unsettled[:BATCH], self._unsettled[BATCH:]
            self._unsettled_since = now
            self._call("settle", partial(self._registry.settle, batch), self._settled)

    def _settled(self, failed: list[str] | None) -> None:
        for code in failed or []:
            self._telemetry.registry_failed("statement", code)

    # -- clerks ------------------------------------------------------------------------------

    def _call[T](self, name: str, call: Callable[[], T], then: Callable[[T | None], None]) -> None:
        """Let a clerk call DynamoDB; `then` gets the answer, or None when there was none."""
        self._calls += 1

        def work() -> Callable[[], None]:
            try:
                return partial(came, call())
            except RegistryUnavailable as error:
                self._telemetry.registry_failed(name, error)
            except Exception as error:
                self._telemetry.crashed(error)
            return partial(came, None)

        def came(answer: T | None) -> None:
            self._calls -= 1
            # For want of a privilege, say, a batch succeeds, but no statement in it does.
            is_refused = isinstance(answer, BatchResult) and answer.failed and not answer.done
            self._failures[name] = self._failures[name] + 1 if answer is None or is_refused else 0
            then(answer)

        self._crew.call(work)

    def _count[T](self, name: str, rows: list[Row], written: BatchResult[T] | None) -> list[T]:
        """Count what came of writing rows; return what is done.

        Those that had changed meanwhile are skipped.
        """
        if written is None:
            self._sweep.counts["failed"] += len(rows)
            return []
        done, failed = len(written.done), len(written.failed)
        skipped = len(rows) - done - failed
        self._sweep.counts.update({name: done, "failed": failed, "skipped": skipped})
        for code in written.failed:
            self._telemetry.registry_failed("statement", code)
        return written.done

    # -- the end -----------------------------------------------------------------------------

    def _report(self) -> Sweep:
        sweep = self._sweep
        sweep.counts["left"] = len(self._past) + self._lanes.waiting + self._lanes.abandoned
        sweep.given_up = self._lanes.given_up
        if self._is_failing():
            sweep.stopped = "registry"
            return sweep
        past = {row.shard for row in self._past}
        unfinished = self._lanes.shards_waiting.union(self._unread(), past, self._late)
        sweep.unfinished = sorted(unfinished)
        if unfinished:
            sweep.stopped = "time"
        elif sweep.counts["failed"] or any(s.state == "failed" for s in self._shards.values()):
            sweep.stopped = "registry"
        return sweep
