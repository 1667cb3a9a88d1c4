"""Log lines and metrics, by Powertools. No visitor's key is readable in what they write."""

import contextlib
import logging
import re
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from sessions.session import UUID, FieldError, Outcome, Row, Session, Source, hashed

# What is shown of a name that may be anything, a visitor's key by mistake.
_UUID = re.compile(UUID)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._:/-]")


class Telemetry:
    """One structured line per outcome, when it happens, and an invocation's counts as metrics.

    Levels: DEBUG nothing had to be sent, INFO normal, WARNING it will be tried again or looks like
    a mistake of the shop's, ERROR someone must act. Safe to share between threads; `begin` and
    `flush` frame an invocation.
    """

    def __init__(self, level: str = "INFO") -> None:
        self._logger = Logger(location=None, use_rfc3339=True, utc=True)
        self._logger.remove_keys(["service"])  # the stack, and so in the log group's name
        # Not through Powertools: with JSON logs Lambda sets a level too, which would win there.
        logging.getLogger(self._logger.name).setLevel(level)
        self._metrics = Metrics()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: list[float] = []

    def begin(self, correlation_id: str) -> None:
        """Name the invocation that the next lines belong to."""
        self._logger.set_correlation_id(correlation_id)

    def notified(self, outcome: Outcome, session: Session, attempt: int, source: Source) -> None:
        """Write the line of one notification."""
        levels = {"rejected": self._logger.error, "unavailable": self._logger.warning}
        self._write(
            levels.get(outcome.kind, self._logger.info),
            "notification",
            session,
            outcome=outcome.kind,
            status=outcome.status,
            reason=outcome.reason,
            latency_ms=outcome.latency_ms,
            sent=None if outcome.sent else False,
            attempt=attempt,
            source=source,
        )
        self.count(outcome.kind.capitalize())
        if outcome.sent:
            with self._lock:
                self._latencies.append(outcome.latency_ms)

    def tracked(self, result: str, session: Session) -> None:
        """Write the line of one track: `tracked`, `reopened`, or `over` when it came too late."""
        self._write(self._logger.debug, "track", session, result=result)
        if result != "tracked":
            self.count("Reopened" if result == "reopened" else "TrackedTooLate")

    def repeated(self, result: str, session: Session, source: Source) -> None:
        """Write the line of an end that sends nothing.

        The session is `over`, `over for another` customerKey than this end's, or `in flight`.
        """
        is_mistake = result == "over for another"
        log = self._logger.warning if is_mistake else self._logger.debug
        self._write(log, "repeated end", session, result=result, source=source)
        if is_mistake:
            # Its key is in use after a sign-out, as that of a session which is tracked too late.
            self.count("TrackedTooLate")

    def outdated(self, session: Session, source: Source) -> None:
        """Write the line of an end that came late: the session was active after it."""
        self._write(self._logger.info, "outdated", session, outcome="outdated", source=source)

    def expired(self, rows: Iterable[Row], source: Source) -> None:
        """Write a line for each session that Elevate will already have ended itself."""
        for row in rows:
            self._write(
                self._logger.info,
                "expired",
                row.session,
                outcome="expired",
                attempt=row.attempts,
                source=source,
            )
            self.count("Expired")

    def registry_failed(
        self, operation: str, error: Exception | str, session: Session | None = None
    ) -> None:
        """Write the line of a call, or of one statement (by its code), that DynamoDB refused."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._write(
            self._logger.warning, "registry failed", session, operation=operation, error=text
        )
        self.count("RegistryFailed")

    def put_back(self, sessions: int, events: int) -> None:
        """Write how many sessions of a list there was no time for, and the events they go in."""
        self._write(self._logger.info, "put back", sessions=sessions, events=events)

    def refused(self, errors: list[FieldError], source: Source) -> None:
        """Write the line of one refused input: which fields, never what they held.

        A caller of the API has its answer; an event becomes a dead-letter message, to be looked at.
        """
        log = self._logger.info if source == "api" else self._logger.error
        self._write(log, "refused", errors=errors, source=source)
        self.count("Invalid")

    def unknown(self, detail_type: object) -> None:
        """Write the line of an event with an unknown detail-type, which may hold anything."""
        name = _NOT_PLAIN.sub("?", _UUID.sub("?", str(detail_type)))[:64]
        self._write(self._logger.error, "unknown event", detail_type=name)
        self.count("Invalid")

    def crashed(self, error: BaseException) -> None:
        """Write where an unexpected error came from; its message may hold a key, so not that."""
        where = [
            f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
        ]
        self._write(self._logger.error, "crashed", error=type(error).__name__, where=where)

    def swept(self, **fields: Any) -> None:
        """Write the one line of a sweep."""
        is_trouble = fields["given_up"] or fields["stopped"] == "registry" or fields["unreadable"]
        self._write(self._logger.warning if is_trouble else self._logger.info, "sweep", **fields)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count of this invocation; a count of 0 is written too."""
        with self._lock:
            self._counts[name] += by

    def flush(self) -> None:
        """Write the invocation's figures as metrics: CloudWatch reads them in the log (EMF)."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            latencies, self._latencies = self._latencies, []
        # A log that cannot be written to must not take the answer away.
        with contextlib.suppress(OSError, ValueError):
            for latency_ms in latencies:
                self._metrics.add_metric("ElevateLatency", MetricUnit.Milliseconds, latency_ms)
            if counts["Unavailable"]:
                # So a minute's maximum is 0 only if nothing got through that should have.
                counts.setdefault("Delivered", 0)
            for name, value in counts.items():
                self._metrics.add_metric(name, MetricUnit.Count, value)
            if counts:
                self._metrics.flush_metrics()

    def _write(
        self,
        log: Callable[..., None],
        message: str,
        session: Session | None = None,
        **fields: Any,
    ) -> None:
        if session:
            fields["market"] = session.market
            fields["session"] = hashed(session.session_key)
            fields["customer"] = hashed(session.customer_key)
        log(message, extra={n: value for n, value in fields.items() if value not in (None, "", [])})
