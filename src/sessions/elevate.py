"""The end notification: one POST to Elevate. The only place for time-outs, retry and dialects.

What is retried here: one immediate second try of a *connection* that died while idle (Lambda
freezes the function, Elevate closes the idle connection), and nothing else. All other retrying is
the registry's due time.
"""

import contextlib
import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from random import SystemRandom
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError
from urllib3.util.ssl_ import create_urllib3_context

from sessions.session import Session
from sessions.settings import Dialect, Settings

type Kind = Literal["delivered", "rejected", "unavailable"]

# The system's: a generator's own state would be the same in all copies of a snapshot (SnapStart).
_random = SystemRandom()

_PATHS: dict[Dialect, str] = {
    "web-v2": "/api/v2/notifications/end",
    "storefront-v3": "/api/storefront/v3/notifications/end",
}
_PREFIX: dict[Dialect, str] = {"web-v2": "esales.", "storefront-v3": ""}

# urllib3 writes URLs, and so keys, into its own debug and warning lines.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

# Elevate's answers carry no body worth more than this (bytes); the rest is not read.
_REASON_BYTES = 1024
_READ_BYTES = 2 * 1024
_WITHHELD = "not shown, for it might hold a key"

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TOKEN = re.compile(r"""[^\s"'(),.:;<>=\[\]{}_-]+""")
# Letters only, as words are written: not in the jumbled case of base64, and no run of hex digits.
_WORD = re.compile(r"a|be|[Bb]ad|(?!(?i:[a-f]+$))(?:[A-Z]{2,5}|[A-Za-z]?[a-z]+(?:[A-Z][a-z]{2,})*)")

_HEADERS = {"Content-Type": "application/json", "User-Agent": "elevate-sessions"}

# A connection that was used within so many seconds is used again without a look at it.
_FRESH = 1.0

# Answers that say "not now" rather than "never". Elevate documents none of 408, 425 and 429.
_TEMPORARY = {408, 425, 429}

# Retry-After is another's wish: honoured up to here (seconds).
RETRY_AFTER_LIMIT = 15 * 60

# After this many time-outs in a row nobody waits any more; one probe after a pause (seconds).
_BREAKER_TIMEOUTS = 3
_BREAKER_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one notification.

    `sent` is False when the breaker was open and nothing was sent. `reason` is safe to log and to
    store: at most 1 KB, plain words only. `retry_after` is Elevate's wish in seconds.
    """

    kind: Kind
    status: int | None = None
    reason: str = ""
    retry_after: int | None = None
    latency_ms: float = 0.0
    sent: bool = True


class Elevate:
    """A client of one cluster, to be shared by all threads.

    It keeps urllib3's connections itself: urllib3's pool looks at a socket, and so gives the GIL
    away, several times a notification, and what it adds, retries and redirects, is not wanted here.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        url = urlsplit(settings.elevate_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        kind: type[_Connection] = _Connection
        tls = {}
        if url.scheme == "https":
            kind = _SecureConnection
            # One for all: to load the certificates costs far more than a notification.
            tls["ssl_context"] = create_urllib3_context()
            tls["ssl_context"].load_default_certs()
            tls["ssl_context"].sslsocket_class = _SecureSocket
        self._connect_timeout = settings.connect_timeout
        timeouts = settings.connect_timeout, settings.read_timeout
        self._new_connection = partial(kind, url.hostname or "", port, timeouts, **tls)
        # Connections that wait for their next notification, the last used on top.
        self._idle: list[_Connection] = []
        weakref.finalize(self, _close_all, self._idle)
        self._path = url.path.rstrip("/") + _PATHS[settings.dialect]
        self._dialect = settings.dialect
        self._clock = clock
        self.breaker = Breaker(clock)

    def notify(self, session: Session) -> Outcome:
        """Send one end notification and return what came of it; never raises for Elevate's sake."""
        if not self.breaker.lets_through():
            return Outcome("unavailable", reason="not sent: Elevate has timed out", sent=False)
        started = self._clock()
        status, retry_after, reason = None, None, ""
        kind: Kind = "unavailable"
        try:
            status, wish, body = self._post(session)
        except (HTTPError, http.client.HTTPException, OSError) as error:
            # A look-up of the name knows no time-out of ours, but costs the caller as much as one.
            if _is_time_out(error) or self._clock() > started + self._connect_timeout:
                self.breaker.timed_out()
            else:
                self.breaker.answered()
            reason = _describe(error)
        else:
            self.breaker.answered()
            kind = _kind(status)
            if kind != "delivered":
                reason = _quoted(body, session)
                retry_after = _seconds(wish) if kind == "unavailable" else None
        latency_ms = round((self._clock() - started) * 1000, 1)
        return Outcome(kind, status, reason, retry_after, latency_ms)

    def _post(self, session: Session) -> tuple[int, str | None, bytes]:
        """Return the answer's status, its Retry-After and the start of its body."""
        url = f"{self._path}?{query_of(session, self._dialect)}"
        if connection := self._idle_connection():
            with contextlib.suppress(_StaleConnection):
                return self._exchange(connection, url)
        return self._exchange(self._new_connection(), url)

    def _idle_connection(self) -> "_Connection | None":
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.is_alive:
                    return connection
                connection.close()
        return None

    def _exchange(self, connection: "_Connection", url: str) -> tuple[int, str | None, bytes]:
        try:
            connection.post(url)
            response = connection.getresponse()
            # No body is the rule, and read cheaper so.
            body = response.read(_READ_BYTES if response.length_remaining != 0 else None)
            # An answer that goes on is not read to its end: the connection is worth less. One that
            # is only the first of several (103) would leave the others to the next session.
            goes_on = response.status < 200 or response.length_remaining != 0
            is_spent = goes_on or connection.is_closed
        except BaseException:
            connection.close()
            raise
        if is_spent:
            connection.close()
        else:
            self._idle.append(connection)
        return response.status, response.headers.get("Retry-After"), body


class Breaker:
    """Remember that Elevate times out, so that callers do not wait for it in turn.

    Open after three time-outs in a row; then one caller at a time probes after a pause, jittered so
    that many functions do not probe in step. Any answer closes it. One per execution environment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._timeouts = 0
        self._probe_at = 0.0

    @property
    def is_open(self) -> bool:
        """Tell whether notifications are held back at the moment."""
        return self._timeouts >= _BREAKER_TIMEOUTS and self._clock() < self._probe_at

    def lets_through(self) -> bool:
        """Return whether to send; when a probe is due, only the caller that asks first may."""
        if self._timeouts < _BREAKER_TIMEOUTS:
            return True
        with self._lock:
            if self._timeouts >= _BREAKER_TIMEOUTS and self._clock() < self._probe_at:
                return False
            self._pause()
            return True

    def timed_out(self) -> None:
        """Count one time-out."""
        with self._lock:
            self._timeouts += 1
            if self._timeouts >= _BREAKER_TIMEOUTS:
                self._pause()

    def answered(self) -> None:
        """Close: Elevate, or its network, answered at once, if only to refuse."""
        if self._timeouts:
            with self._lock:
                self._timeouts = 0

    def _pause(self) -> None:
        self._probe_at = self._clock() + _BREAKER_PAUSE * _random.uniform(0.5, 1.0)


def query_of(session: Session, dialect: Dialect) -> str:
    """Return the query string Elevate documents for the dialect, in its documented order."""
    arguments = {
        "market": session.market,
        "customerKey": session.customer_key,
        "sessionKey": session.session_key,
    }
    if dialect == "storefront-v3":
        arguments["userContext"] = session.user_context
    prefix = _PREFIX[dialect]
    return "&".join(
        f"{prefix}{name}={quote(value, safe='')}" for name, value in arguments.items() if value
    )


def _kind(status: int) -> Kind:
    if 200 <= status < 300:
        return "delivered"
    if 400 <= status < 500 and status not in _TEMPORARY:
        return "rejected"
    return "unavailable"


def _seconds(retry_after: str | None) -> int | None:
    """Return a Retry-After header (seconds or HTTP date) as seconds within bounds, if readable."""
    if retry_after is None:
        return None
    try:
        wish = float(retry_after) if retry_after.strip().isdecimal() else None
        if wish is None:
            wish = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return int(min(max(wish, 0), RETRY_AFTER_LIMIT))


def _quoted(body: bytes, session: Session) -> str:
    """Return what may be logged of a body: its plain words, with an ellipsis for all else.

    Keys are UUIDs, which no plain word looks like, however they are encoded, cut or wrapped. Where
    a key may be anything, it may be made of words too, so nothing is quoted.
    """
    keys = [key for key in (session.session_key, session.customer_key) if key]
    if not all(_UUID.fullmatch(key) for key in keys):
        return _WITHHELD if body else ""
    text = body.decode("utf-8", "replace")
    text = _TOKEN.sub(lambda token: token[0] if _WORD.fullmatch(token[0]) else "…", text)
    return text.encode()[:_REASON_BYTES].decode("utf-8", "ignore").strip()


def _is_time_out(error: Exception) -> bool:
    # urllib3 counts refused connections and unknown names among its time-outs.
    return isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)) and not isinstance(
        error, NewConnectionError
    )


def _describe(error: Exception) -> str:
    """Name the error and its cause by type: messages may hold the URL, and so the keys."""
    cause = error.__cause__ or error.__context__
    names = [type(error).__name__] + ([type(cause).__name__] if cause else [])
    return ": ".join(names)


def _close_all(connections: "list[_Connection]") -> None:
    for connection in connections:
        connection.close()


class _StaleConnection(ProtocolError):
    """An idle connection turned out dead before a byte of an answer came."""


class _BoundedReader(io.RawIOBase):
    """Read an answer whose *whole* must arrive by a deadline, not each of its drops."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        self.started = False

    def makefile(self, mode: str) -> io.BufferedReader:
        """Stand in for the socket where http.client asks it for a file."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        # The first read has the socket's own time-out. To set one costs a call and the GIL.
        if self.started:
            # Zero would mean "do not block" to the socket.
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
        count = self._raw.readinto(buffer)
        self.started = self.started or bool(count)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _QuietSocket(socket.socket):
    """A socket that is told its time-out once.

    urllib3 tells it twice a request, each time a call to the system that gives the GIL away.
    """

    def settimeout(self, value: float | None) -> None:
        if value != self.gettimeout():
            super().settimeout(value)


class _SecureSocket(_QuietSocket, ssl.SSLSocket):
    """The same over TLS."""


class _Connection(HTTPConnection):
    """A connection that bounds its answers and knows whether it died while it was idle."""

    def __init__(self, host: str, port: int, timeouts: tuple[float, float], **tls: Any) -> None:
        connect, self._read_timeout = timeouts
        super().__init__(host, port, timeout=connect, **tls)
        self._used_at: float | None = None

    @property
    def is_alive(self) -> bool:
        """Tell whether to send on it; one used a moment ago is not worth a look."""
        recently = self._used_at is not None and time.monotonic() < self._used_at + _FRESH
        return recently or self.is_connected

    def connect(self) -> None:
        super().connect()
        if not isinstance(self.sock, _QuietSocket):
            self.sock = _QuietSocket(fileno=self.sock.detach())
        self.timeout = self._read_timeout
        self.sock.settimeout(self.timeout)

    def post(self, url: str) -> None:
        """Send the request, connected or not; what became of it, getresponse() tells."""
        if self._used_at is None:
            self.connect()
        self._posted_at = time.monotonic()
        # Closed by the other side: it may have answered before that.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request("POST", url, headers=_HEADERS, preload_content=False, decode_content=False)

    def _answer(self, sock: socket.socket, **kwargs: Any) -> http.client.HTTPResponse:
        self._reader = _BoundedReader(sock)
        return http.client.HTTPResponse(self._reader, **kwargs)  # type: ignore[arg-type]

    # http.client calls this to read an answer.
    response_class = _answer  # type: ignore[assignment]

    def getresponse(self) -> Any:
        try:
            response = super().getresponse()
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            # What was dead before is known at once; later, it may have been taken.
            at_once = time.monotonic() < self._posted_at + _FRESH
            if self._used_at is not None and at_once and not self._reader.started:
                raise _StaleConnection("died while idle") from error
            raise
        self._used_at = time.monotonic()
        return response


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS."""
