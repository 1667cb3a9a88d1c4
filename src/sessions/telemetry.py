"""Logger and metrics, built once. No visitor's key is readable in what they write."""

import hashlib
import json
import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import batched
from typing import Any, Literal

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.shared.functions import get_tracer_id

from sessions.elevate import Outcome
from sessions.registry import Row
from sessions.session import FieldError, Session

type Source = Literal["api", "event", "sweep"]

# Compiled once; `json.dumps` with separators makes one each time.
_encode = json.JSONEncoder(separators=(",", ":")).encode

# What came of notifications: sent, or held back by the breaker.
_NOTIFIED = ("Delivered", "Rejected", "Unavailable", "HeldBack")
_LEVEL = {"delivered": logging.INFO, "rejected": logging.ERROR, "unavailable": logging.WARNING}


def hashed(key: str | None) -> str | None:
    """Return what stands for a key in logs: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else None


@dataclass(frozen=True, slots=True)
class Notified:
    """One notification, for its log line and metrics."""

    outcome: Outcome
    session: Session
    attempt: int
    source: Source
    correlation_id: str


class Telemetry:
    """One structured line per outcome, and an invocation's counts as EMF metrics.

    Levels: INFO normal, WARNING it will be tried again, ERROR someone must act. Safe to share
    between threads; `flush` ends an invocation.
    """

    def __init__(self, level: str = "INFO") -> None:
        self._service = Logger().service
        # Not Powertools' level: with JSON logs Lambda names one of its own, and that wins there.
        self._level = logging.getLevelNamesMapping()[level]
        self._metrics = Metrics()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._attempts: list[float] = []

    def notified(self, notifications: Sequence[Notified]) -> None:
        """Write a line for each notification, all at once: that is cheaper by half."""
        lines = []
        trace = get_tracer_id()
        for n in notifications:
            outcome = n.outcome
            lines.append(
                self._line(
                    _LEVEL[outcome.kind],
                    "notification",
                    n.correlation_id,
                    outcome=outcome.kind,
                    status=outcome.status,
                    reason=outcome.reason,
                    latency_ms=outcome.latency_ms,
                    sent=outcome.sent,
                    attempt=n.attempt,
                    source=n.source,
                    **_about(n.session),
                    xray_trace_id=trace,
                )
            )
        self._print("".join(lines))
        with self._lock:
            for n in notifications:
                outcome = n.outcome
                self._counts[outcome.kind.capitalize() if outcome.sent else "HeldBack"] += 1
                if outcome.sent:
                    self._latencies.append(outcome.latency_ms)
                    self._attempts.append(n.attempt)

    def expired(self, rows: Iterable[Row], source: Source, correlation_id: str) -> None:
        """Write a line for each session that Elevate must have ended itself."""
        for row in rows:
            self._write(
                logging.INFO,
                "expired",
                correlation_id,
                outcome="expired",
                attempt=row.attempts,
                source=source,
                **_about(row.session),
            )
            self.count("Expired")

    def registry_failed(
        self, operation: str, error: Exception, session: Session | None, correlation_id: str
    ) -> None:
        """Write the line of a call that the registry did not take."""
        about = _about(session) if session else {}
        self._write(
            logging.WARNING,
            "registry failed",
            correlation_id,
            operation=operation,
            error=f"{type(error).__name__}: {error}",
            **about,
        )
        self.count("RegistryFailed")

    def statement_failed(self, code: str, correlation_id: str) -> None:
        """Write the line of one statement that failed in a batch the registry took."""
        self._write(
            logging.WARNING, "registry failed", correlation_id, operation="statement", error=code
        )
        self.count("RegistryFailed")

    def refused(self, errors: list[FieldError], source: Source, correlation_id: str) -> None:
        """Write the line of one refused input: which fields, never what they held.

        A caller of the API has been told; an event becomes a dead letter, for someone to look at.
        """
        level = logging.INFO if source == "api" else logging.ERROR
        self._write(level, "refused", correlation_id, errors=errors, source=source)
        self.count("Invalid")

    def crashed(self, error: BaseException, correlation_id: str) -> None:
        """Write where an unexpected error came from; its message may hold a key, so not that."""
        where = [
            f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
        ]
        self._write(
            logging.ERROR, "crashed", correlation_id, error=type(error).__name__, where=where
        )

    def swept(self, correlation_id: str, lag: int, **fields: Any) -> None:
        """Write the one line of a sweep; `lag` is the age in seconds of the oldest due session."""
        level = (
            logging.WARNING if fields.get("stopped") in ("elevate", "registry") else logging.INFO
        )
        self._write(level, "sweep", correlation_id, oldest_age_s=lag, **fields)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count of this invocation; a count of 0 is written too."""
        with self._lock:
            self._counts[name] += by

    def flush(self, source: Source) -> None:
        """Write the invocation's figures as metrics, in all and by `source`.

        One write to the log, no call: CloudWatch reads metrics out of it (EMF).
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            latencies, self._latencies = self._latencies, []
            attempts, self._attempts = self._attempts, []
            # Nothing is said when nothing was sent: no news is not good news.
            if sent := sum(counts[name] for name in _NOTIFIED):
                counts["ElevateUnavailable"] = int(
                    counts["Unavailable"] + counts["HeldBack"] == sent
                )
            for name, value in counts.items():
                self._metrics.add_metric(name, MetricUnit.Count, value)
            # EMF takes a hundred values of a metric at once.
            sendings = zip(latencies, attempts, strict=True)
            for some in list(batched(sendings, 99, strict=False)) or [()]:
                for latency, attempt in some:
                    self._metrics.add_metric("ElevateLatency", MetricUnit.Milliseconds, latency)
                    self._metrics.add_metric("Attempts", MetricUnit.Count, attempt)
                if self._metrics.metric_set:
                    self._metrics.add_dimensions(service=self._service, source=source)
                    self._metrics.flush_metrics()

    def _write(self, level: int, message: str, correlation_id: str, **fields: Any) -> None:
        trace = get_tracer_id()
        self._print(self._line(level, message, correlation_id, **fields, xray_trace_id=trace))

    def _line(self, level: int, message: str, correlation_id: str, **fields: Any) -> str:
        """Return one line of JSON; nothing if its level is not logged.

        A record that passes through the logging package costs a quarter of the notification that
        it tells of (docs/decisions.md), so none is made.
        """
        if level < self._level:
            return ""
        line: dict[str, Any] = {
            "level": logging.getLevelName(level),
            "message": message,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "service": self._service,
            "correlation_id": correlation_id,
        }
        line |= {name: value for name, value in fields.items() if value not in (None, "")}
        return _encode(line) + "\n"

    def _print(self, text: str) -> None:
        """Write whole lines, each of one thread."""
        with self._lock:
            sys.stdout.write(text)
            sys.stdout.flush()


def _about(session: Session) -> dict[str, str | None]:
    return {
        "market": session.market,
        "session": hashed(session.session_key),
        "customer": hashed(session.customer_key),
    }
