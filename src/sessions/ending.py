"""Claim → notify → settle: the one use case, for one session and for a list; its rules.

    claim    one conditional write takes a lease, before anything is sent
    notify   one POST to Elevate
    settle   the outcome is written, if the lease is still ours

A crash between any two of these leaves a tracked session due when the lease has run out. The caller
of an explicit end has no answer yet, and asks again. The only owner of retries is the due time.
"""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from sessions.breaker import Breaker
from sessions.elevate import Elevate
from sessions.registry import Registry
from sessions.session import (
    Activity,
    Claim,
    Outcome,
    RegistryUnavailable,
    Row,
    Session,
    Settlement,
    Source,
    Status,
    UnreadableRow,
)
from sessions.settings import Settings
from sessions.telemetry import Telemetry

# No retry waits longer than this (seconds), whatever the attempts.
BACKOFF_LIMIT = 15 * 60


@dataclass(frozen=True, slots=True)
class End:
    """What became of one explicit end.

    `over`: Elevate had ended the session before. `outdated`: its visitor was active after the end
    was asked for. `kept`: written down and due again. `lost`: neither Elevate nor the registry took
    it; the caller must try again after `retry_after` seconds.
    """

    result: Literal["delivered", "over", "outdated", "rejected", "kept", "lost"]
    status: int | None = None
    reason: str = ""
    retry_after: int = 1


type Tracked = Literal["tracked", "reopened", "over", "lost"]


class Ending:
    """Track and end sessions with the registry and Elevate."""

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
        self._breaker = Breaker(clock)

    def track(self, activity: Activity) -> Literal["tracked", "reopened", "over"]:
        """Note that a session is alive; see Registry.track. Raises RegistryUnavailable."""
        tracked = self._registry.track(activity)
        self._telemetry.tracked(tracked, activity.session)
        return tracked

    def track_all(self, activities: Sequence[Activity], until: float) -> list[Tracked | None]:
        """Track many; None for each that was not reached, see `_each`."""

        def track(activity: Activity) -> Tracked:
            try:
                return self.track(activity)
            except RegistryUnavailable as error:
                self._telemetry.registry_failed("track", error, activity.session)
                return "lost"

        return self._each(activities, [activity.session for activity in activities], track, until)

    def status(self, session_key: str) -> list[Status]:
        """Return the session's state in each market. Raises RegistryUnavailable, UnreadableRow."""
        return self._registry.status(session_key)

    def end(self, session: Session, asked_at: float, source: Source) -> End:
        """End one session now, whether it was tracked before or not."""
        try:
            claim = self._registry.claim(session, asked_at)
        except (RegistryUnavailable, UnreadableRow) as error:
            self._telemetry.registry_failed("claim", error, session)
            return self._end_unclaimed(session, source)
        if claim == "outdated":
            self._telemetry.outdated(session, source)
            return End("outdated")
        if not isinstance(claim, Claim):
            self._telemetry.repeated(claim, session, source)
            return End("kept" if claim == "in flight" else "over")
        if is_past(claim.row, self._clock(), self._settings):
            settle(self._registry, self._telemetry, [(claim, Settlement("expired"))])
            self._telemetry.expired([claim.row], source)
            return End("over")
        outcome = self._notify(session)
        settled = settlement(claim.row, outcome, self._clock(), self._settings)
        is_written = settle(self._registry, self._telemetry, [(claim, settled)])
        self._telemetry.notified(outcome, session, settled.attempts, source)
        if not is_written and _needs_row(outcome, source):
            return End("lost")
        result = "kept" if outcome.kind == "unavailable" else outcome.kind
        return End(result, outcome.status, outcome.reason)

    def end_all(
        self, sessions: Sequence[tuple[Session, float]], source: Source, until: float
    ) -> list[End | None]:
        """End many; None for each that was not reached, see `_each`."""
        return self._each(
            sessions,
            [session for session, _ in sessions],
            lambda one: self.end(*one, source),
            until,
        )

    def _each[T, R](
        self, many: Sequence[T], sessions: Sequence[Session], do: Callable[[T], R], until: float
    ) -> list[R | None]:
        """Do what is to be done of each session; None where `until` (monotonic seconds) had passed.

        One session's in their order, so that the last one counts; sessions side by side. The first
        of all is done in any case, so whoever comes again with what was not reached has less.
        """
        results: list[R | None] = [None] * len(many)
        groups: dict[tuple[str, str], list[int]] = {}
        for number, session in enumerate(sessions):
            groups.setdefault((session.session_key, session.market), []).append(number)

        def work(numbers: list[int]) -> None:
            for number in numbers:
                if number == 0 or time.monotonic() < until:
                    results[number] = do(many[number])

        if len(many) == 1:
            work([0])
        else:
            with ThreadPoolExecutor(self._settings.concurrency) as threads:
                list(threads.map(work, groups.values()))
        return results

    def _end_unclaimed(self, session: Session, source: Source) -> End:
        """Notify without a claim: a registry that is down must not keep visitors signed in."""
        outcome = self._notify(session)
        self._telemetry.notified(outcome, session, 1, source)
        if outcome.kind == "unavailable" or _needs_row(outcome, source):
            retry_after = outcome.retry_after or self._settings.retry_base
            return End("lost", retry_after=retry_after)
        return End(outcome.kind, outcome.status, outcome.reason)

    def _notify(self, session: Session) -> Outcome:
        """Notify Elevate for a caller, who does not wait for a market that times out."""
        if not self._breaker.lets_through(session.market):
            return Outcome("unavailable", reason="not sent: Elevate has timed out", sent=False)
        outcome = self._elevate.notify(session)
        if outcome.timed_out:
            self._breaker.timed_out(session.market)
        else:
            self._breaker.answered(session.market)
        return outcome


# -- rules -------------------------------------------------------------------------------------


def is_past(row: Row, now: float, settings: Settings) -> bool:
    """Return whether Elevate will already have ended the session by `now` (epoch seconds).

    It errs to the late side: the last activity may be younger than the one written down, by the
    tracking slack.
    """
    latest_activity = row.alive_at + settings.slack
    ends_at = settings.dialect.ends_at(latest_activity, row.interactive, settings.session_limit)
    return now >= ends_at


def settlement(row: Row, outcome: Outcome, now: float, settings: Settings) -> Settlement:
    """Return what an outcome at `now` (epoch seconds) makes of a session."""
    attempts = row.attempts + 1 if outcome.sent else row.attempts
    match outcome.kind:
        case "delivered":
            return Settlement("ended", None, attempts, outcome.status)
        case "rejected":
            return Settlement("rejected", None, attempts, outcome.status, outcome.reason)
        case "unavailable":
            due_at = int(now) + backoff(settings.retry_base, attempts, outcome.retry_after)
            return Settlement("retrying", due_at, attempts, outcome.status, outcome.reason)


def backoff(base: int, attempts: int, retry_after: int | None = None) -> int:
    """Return the seconds to wait after `attempts` notifications found Elevate unavailable.

    Full jitter up to base · 2^attempts. Elevate's own Retry-After (already within bounds) is the
    minimum, with the jitter of the base on top, so that sessions told to wait do not all come back
    at once.
    """
    ceiling = min(BACKOFF_LIMIT, base * 2 ** min(attempts, 10))
    if retry_after is None:
        return random.randint(1, ceiling)
    return retry_after + random.randint(1, base)


def settle(
    registry: Registry, telemetry: Telemetry, settlements: Sequence[tuple[Claim, Settlement]]
) -> bool:
    """Write outcomes; return whether all are written. What a sweep cannot write stays due."""
    try:
        failed = registry.settle(settlements)
    except RegistryUnavailable as error:
        telemetry.registry_failed("settle", error)
        return False
    for code in failed:
        telemetry.registry_failed("statement", code)
    return not failed


def _needs_row(outcome: Outcome, source: Source) -> bool:
    """Return whether the row is all that remembers: for a retry, or to correct a rejection.

    A caller of the API has the answer; an event has no caller.
    """
    return outcome.kind == "unavailable" or (outcome.kind == "rejected" and source != "api")
