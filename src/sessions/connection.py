"""urllib3's connections with three rules that a pool of them cannot express (docs/decisions.md).

1. A connection that died while it was pooled is replaced once, at once: Lambda freezes the function
   and Elevate closes the idle connection. Only if no byte of an answer had come, and only if it
   was dead at once: later, Elevate may have taken the notification.
2. The read time-out is for the whole answer, and the connect time-out for all addresses of a host.
   By themselves they are for each read, and for each address.
3. No answer is another session's. Interim answers (1xx) are skipped; http.client skips 100 only and
   would leave the real one to the next notification. A connection that brought more than its answer
   is closed; the pool's own look sees only what has not been read.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

from urllib3 import HTTPConnectionPool, connection_from_url
from urllib3.connection import HTTPConnection, HTTPSConnection

# A pooled connection that fails within this time (seconds) had been dead before.
AT_ONCE = 1.0


def pool_of(url: str, **options: Any) -> HTTPConnectionPool:
    """Return urllib3's pool for a base URL, with these connections; `options` are urllib3's."""
    pool = connection_from_url(url, **options)
    pool.ConnectionCls = _SecureConnection if pool.scheme == "https" else _Connection
    return pool


class _Rules(HTTPConnection):
    """The rules above, for plain and for secure connections."""

    _answered = False

    def connect(self) -> None:
        self._connect_timeout = self.timeout
        options = self.socket_options
        self.socket_options = _Until(time.monotonic() + (self.timeout or 0.0), options)  # type: ignore[assignment]
        try:
            super().connect()
        finally:
            self.socket_options = options
        self._answered = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._answered and self._reader.has_more:
            self.close()  # to be opened again by the request
        self._requested = args, kwargs
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        started = time.monotonic()
        try:
            response = super().getresponse()
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            at_once = time.monotonic() < started + AT_ONCE
            if not (self._answered and at_once and not self._reader.began):
                raise
            response = self._replaced()
        self._answered = True
        return response

    def _replaced(self) -> Any:
        read_timeout, self.timeout = self.timeout, self._connect_timeout
        self.close()
        args, kwargs = self._requested
        super().request(*args, **kwargs)
        self.timeout = read_timeout
        return super().getresponse()

    def _answer(self, sock: socket.socket, **kwargs: Any) -> http.client.HTTPResponse:
        self._reader = _Reader(sock)
        return _FinalResponse(self._reader, **kwargs)  # type: ignore[arg-type]

    # http.client makes its answers with this.
    response_class = _answer  # type: ignore[assignment]


class _Connection(_Rules):
    """A plain connection."""


class _SecureConnection(_Rules, HTTPSConnection):
    """A connection over TLS."""


class _Until:
    """Options for the sockets of a host's addresses: none is opened after a moment.

    urllib3 asks for the options before it tries an address, and goes on after an OSError.
    """

    def __init__(self, moment: float, options: Any) -> None:
        self._moment = moment
        self._options = options

    def __iter__(self) -> Iterator[Any]:
        if time.monotonic() > self._moment:
            raise TimeoutError("no time is left for another address")
        return iter(self._options or ())


class _FinalResponse(http.client.HTTPResponse):
    """An answer behind its interim ones."""

    def begin(self) -> None:
        super().begin()
        while self.status < 200:
            self.headers = None  # type: ignore[assignment]  # begin anew
            super().begin()


class _Reader(io.RawIOBase):
    """Read an answer whose whole must arrive within the socket's time-out."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        self.began = self.is_over = self.has_more = False

    def makefile(self, mode: str) -> io.BufferedReader:
        """Stand in for the socket, which http.client asks for a file."""
        return _Buffer(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_over:
            return 0
        # The first read has the socket's own time-out. Zero would mean "do not block".
        if self.began:
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
        count = self._raw.readinto(buffer)
        self.began = self.began or bool(count)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Buffer(io.BufferedReader):
    """A buffer that tells its reader whether it was closed with bytes that nobody had read."""

    raw: _Reader

    def close(self) -> None:
        if not self.closed:
            self.raw.is_over = True  # look into the buffer only
            self.raw.has_more = bool(self.peek(1))
        super().close()
