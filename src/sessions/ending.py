"""Claim → notify → settle: the one use case, for one session and for a list; its rules.

    claim    one conditional write takes a lease, before anything is sent
    notify   one POST to Elevate
    settle   the outcome is written, if the lease is still ours

A crash between any two of these leaves a row that is due when its lease has run out, so a session
is notified again rather than forgotten. The only owner of retries is the row's due time.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import SystemRandom
from typing import Literal

from sessions import lifetime
from sessions.elevate import Elevate, Outcome
from sessions.registry import (
    Claim,
    Registry,
    RegistryUnavailable,
    Row,
    Settlement,
    Status,
    UnreadableRow,
)
from sessions.session import Activity, Session
from sessions.settings import Settings
from sessions.telemetry import Notified, Source, Telemetry

# As in elevate.py: copies of a snapshot must not wait in step.
_random = SystemRandom()

# No retry waits longer than this (seconds), whatever the attempts.
BACKOFF_LIMIT = 15 * 60

# What a sweep keeps in hand (seconds) to settle what it has claimed and to hand over the rest.
SETTLE_RESERVE = 5.0

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
        self.settings = settings
        self.telemetry = telemetry or Telemetry()
        self.registry = registry or Registry(settings)
        self.elevate = elevate or Elevate(settings)
        self.clock = clock

    def track(self, activity: Activity) -> bool:
        """Note that a session is alive; False if it is over. Raises RegistryUnavailable."""
        return self.registry.track(activity)

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
                self.telemetry.registry_failed("track", error, activity.session, correlation_id)
                return "lost"

        if len({(a.session.session_key, a.session.market) for a in activities}) < len(activities):
            return [track(activity) for activity in activities]  # the last word on a session counts
        return self._each(activities, track)

    def status(self, session_key: str) -> list[Status]:
        """Return the session's state in each market. Raises RegistryUnavailable, UnreadableRow."""
        return self.registry.status(session_key)

    def end(self, session: Session, asked_at: int, source: Source, correlation_id: str) -> End:
        """End one session now, whether it was tracked before or not."""
        try:
            claim = self.registry.claim(session, asked_at)
        except (RegistryUnavailable, UnreadableRow) as error:
            self.telemetry.registry_failed("claim", error, session, correlation_id)
            return self._end_unclaimed(session, source, correlation_id)
        if claim == "over":
            return End("over")
        if claim == "in flight":
            return End("kept")
        if self.is_past_deadline(claim.row):
            self.settle([(claim, Settlement("expired"))], correlation_id)
            self.telemetry.expired([claim.row], source, correlation_id)
            return End("over")
        outcome = self.elevate.notify(session)
        attempt = claim.row.attempts + outcome.sent
        self.telemetry.notified([Notified(outcome, session, attempt, source, correlation_id)])
        self.settle([(claim, self.settlement(claim.row, outcome))], correlation_id)
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
                self.registry.keep(session, asked_at)
            except RegistryUnavailable as error:
                self.telemetry.registry_failed("keep", error, session, correlation_id)
                return End("lost")
            return End("kept")

        return self._each(sessions, end)

    def _each[T, R](self, many: Sequence[T], do: Callable[[T], R]) -> list[R]:
        if len(many) == 1:
            return [do(many[0])]
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            return list(threads.map(do, many))

    def _end_unclaimed(self, session: Session, source: Source, correlation_id: str) -> End:
        """Notify all the same: a registry that is down must not keep visitors signed in."""
        outcome = self.elevate.notify(session)
        self.telemetry.notified([Notified(outcome, session, 1, source, correlation_id)])
        if outcome.kind == "unavailable":
            return End(
                "lost", outcome.status, retry_after=outcome.retry_after or self.settings.retry_base
            )
        return End(outcome.kind, outcome.status, outcome.reason)

    # -- rules ------------------------------------------------------------------------------

    def settlement(self, row: Row, outcome: Outcome) -> Settlement:
        """Return what an outcome makes of a session."""
        attempts = row.attempts + outcome.sent
        if outcome.kind == "delivered":
            return Settlement("ended", None, attempts, outcome.status)
        if outcome.kind == "rejected":
            return Settlement("rejected", None, attempts, outcome.status, outcome.reason)
        return Settlement(
            "retrying",
            int(self.clock()) + backoff(self.settings.retry_base, attempts, outcome.retry_after),
            attempts,
            outcome.status,
            outcome.reason,
        )

    def is_past_deadline(self, row: Row) -> bool:
        """Tell whether Elevate must have ended the session itself by now."""
        deadline = lifetime.deadline(row.alive_at, row.interactive, self.settings)
        return self.clock() >= deadline

    def settle(self, settlements: Sequence[tuple[Claim, Settlement]], correlation_id: str) -> None:
        """Write outcomes. What cannot be written stays due, and is notified once more."""
        try:
            self.tell_failed(self.registry.settle(settlements).failed, correlation_id)
        except RegistryUnavailable as error:
            self.telemetry.registry_failed("settle", error, None, correlation_id)

    def tell_failed(self, codes: Sequence[str], correlation_id: str) -> int:
        """Write a line for each statement that failed; return how many did."""
        for code in codes:
            self.telemetry.statement_failed(code, correlation_id)
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
