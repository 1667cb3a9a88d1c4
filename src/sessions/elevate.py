"""The end notification: one POST to Elevate, and what comes of it."""

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout, connection_from_url
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import create_urllib3_context

from sessions.dialects import Dialect
from sessions.session import UUID, Outcome, Session
from sessions.settings import Settings

# urllib3 writes URLs, and so keys, into its own debug and warning lines.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

# Connections are used again within this time of the last use, and until they are that old
# (seconds): servers close idle ones after some 5 s, and the host's name may lead elsewhere by then.
POOL_IDLE = 4.0
POOL_AGE = 60.0

# Answers that say "not now" rather than "never". Elevate documents none of 408, 425 and 429.
_TEMPORARY = {408, 425, 429}

# The longest Retry-After that is honoured (seconds), and that is read (characters).
RETRY_AFTER_LIMIT = 15 * 60
_RETRY_AFTER_LENGTH = 100
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")

# Elevate's answers carry no body worth more than this (bytes); the rest is not read.
_REASON_BYTES = 1024
_READ_BYTES = 2 * 1024
_WITHHELD = "not shown, for it might hold a key"

_UUID = re.compile(UUID)
_TOKEN = re.compile(r"""[^\s"'(),.:;<>=\[\]{}_-]+""")
# Letters only, as words are written: not in the jumbled case of base64, and no run of hex digits.
_WORD = re.compile(
    r"[Aa]|be|[Bb]ad|(?!(?i:[a-f]+$))(?:[A-Z]{2,5}|[A-Za-z]?[a-z]+(?:[A-Z][a-z]{2,})*)"
)


class Elevate:
    """A client of one cluster, to be shared by all threads.

    `clock` gives monotonic seconds, `wall_clock` epoch seconds.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        url = urlsplit(settings.elevate_url)
        options: dict[str, Any] = {}
        if url.scheme == "https":
            # One for all connections: to load the certificates costs far more than a notification.
            options["ssl_context"] = create_urllib3_context()
            options["ssl_context"].load_default_certs()
        self._new_pool = partial(
            connection_from_url,
            settings.elevate_url,
            maxsize=settings.concurrency,
            timeout=Timeout(connect=settings.connect_timeout, read=settings.read_timeout),
            retries=False,  # the registry's due time is the one owner of retries
            headers={"Content-Type": "application/json", "User-Agent": "elevate-sessions"},
            **options,
        )
        self._connect_timeout = settings.connect_timeout
        self._dialect = settings.dialect
        self._path = url.path + settings.dialect.path
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._pool = self._new_pool()
        self._made = self._used = clock(), wall_clock()

    def notify(self, session: Session) -> Outcome:
        """Send one end notification and return what came of it; never raises because of Elevate."""
        pool, started = self._living_pool(), self._clock()
        try:
            response = pool.urlopen(
                "POST",
                f"{self._path}?{query_of(session, self._dialect)}",
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            latency = self._clock() - started
            # Looking up the name has no time-out, but may cost the caller as much as one.
            timed_out = _is_time_out(error) or latency > self._connect_timeout
            reason = _describe(error)
            return Outcome("unavailable", None, reason, None, _ms(latency), timed_out=timed_out)
        return self._outcome(response, session, started)

    def _living_pool(self) -> HTTPConnectionPool:
        """Return the pool, or a new one if the old one's connections may have died unnoticed.

        They do while Lambda has frozen the function, which stops the monotonic clock; the wall
        clock may be set back. So whichever says more counts.
        """
        with self._lock:
            now = self._clock(), self._wall_clock()
            if _elapsed(self._used, now) > POOL_IDLE or _elapsed(self._made, now) > POOL_AGE:
                # The old pool is let go, not closed: a thread that has just got it would meet
                # ClosedPoolError. urllib3 closes a pool's idle connections when nobody refers to
                # it any more (weakref.finalize in HTTPConnectionPool.__init__, 2.8.0), and each
                # call and each answer under way does.
                self._pool, self._made = self._new_pool(), now
            self._used = now
            return self._pool

    def _outcome(self, response: BaseHTTPResponse, session: Session, started: float) -> Outcome:
        """Return what an answer means. Its status decides; its body only adds a reason."""
        status, body = response.status, _first_bytes(response)
        latency_ms = _ms(self._clock() - started)
        if 200 <= status < 300:
            return Outcome("delivered", status, "", None, latency_ms)
        reason = _quoted(body, session)
        if 400 <= status < 500 and status not in _TEMPORARY:
            return Outcome("rejected", status, reason, None, latency_ms)
        retry_after = _seconds(response.headers.get("Retry-After"), self._wall_clock())
        return Outcome("unavailable", status, reason, retry_after, latency_ms)


def query_of(session: Session, dialect: Dialect) -> str:
    """Return the query string Elevate documents for the dialect, in its documented order."""
    arguments = {
        "market": session.market,
        "customerKey": session.customer_key,
        "sessionKey": session.given_key or session.session_key,
        "userContext": session.user_context if dialect.sends_context else None,
    }
    return "&".join(
        f"{dialect.prefix}{name}={quote(value, safe='')}"
        for name, value in arguments.items()
        if value
    )


def _first_bytes(response: BaseHTTPResponse) -> bytes:
    """Return what one read gives of an answer's body; keep its connection, or close it.

    A connection whose answer was read to its end is urllib3's again. Any other is closed, for what
    is left of an answer, or comes where none belongs, would be taken for the next one.
    """
    status, headers = response.status, response.headers
    is_over = (
        response.length_remaining == 0  # always said of a 204
        and headers.get("Content-Length", "0") == "0"
        and "Transfer-Encoding" not in headers
    )
    try:
        # A success is not kept waiting for its body. An interim answer (103) has another behind it.
        if status >= 300 or (status >= 200 and is_over):
            return response.read1(_READ_BYTES)
        return b""
    except HTTPError:
        return b""
    finally:
        response.close()


def _elapsed(since: tuple[float, float], now: tuple[float, float]) -> float:
    return max(now[0] - since[0], now[1] - since[1])


def _seconds(retry_after: str | None, now: float) -> int | None:
    """Return a Retry-After header (seconds or HTTP date) as seconds within bounds, if readable.

    They are rounded up, for Elevate asked for no less. `now` is in epoch seconds.
    """
    text = (retry_after or "").strip()
    if len(text) > _RETRY_AFTER_LENGTH:
        return None
    try:
        if _DECIMAL.fullmatch(text):
            seconds = float(text)
        else:
            seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return math.ceil(min(max(seconds, 0), RETRY_AFTER_LIMIT))


def _quoted(body: bytes, session: Session) -> str:
    """Return what may be logged of a body: its plain words, with an ellipsis for all else.

    Where all keys are UUIDs, no plain word looks like one, however it is encoded, cut or wrapped.
    Where a key may be anything, it may be made of words, so nothing is quoted.
    """
    keys = [key for key in (session.session_key, session.customer_key) if key]
    if not all(_UUID.fullmatch(key) for key in keys):
        return _WITHHELD if body else ""
    text = body.decode("utf-8", "replace")
    text = _TOKEN.sub(lambda token: token[0] if _WORD.fullmatch(token[0]) else "…", text)
    # In one line, whatever the body held.
    text = " ".join(text.split())
    return text.encode()[:_REASON_BYTES].decode("utf-8", "ignore")


def _is_time_out(error: HTTPError) -> bool:
    # urllib3 counts refused connections and unknown names among its connect time-outs.
    return isinstance(error, (ConnectTimeoutError, ReadTimeoutError)) and not isinstance(
        error, NewConnectionError
    )


def _describe(error: HTTPError) -> str:
    """Name the error and its cause by type: messages may hold the URL, and so the keys."""
    cause = error.__cause__ or error.__context__
    names = [type(error).__name__] + ([type(cause).__name__] if cause else [])
    return ": ".join(names)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
