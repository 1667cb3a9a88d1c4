"""Servers on the loopback whose every byte a test decides, and a client to notify them."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sessions.dialects import WEB_V2, Dialect
from sessions.elevate import Elevate
from sessions.session import Outcome, Session
from sessions.settings import Settings

SESSION = Session(
    market="UK",
    session_key="b106299c-eac0-4f6f-96d2-93e57c255784",
    customer_key="d9528030-509c-4e0f-b585-7168f1e9feca",
)
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Wire:
    """A server that calls `serve(connection, number)` for each connection, numbered from 0."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                number, self.connections = self.connections, self.connections + 1
                threading.Thread(target=self._run, args=(connection, number), daemon=True).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection, number)

    def close(self) -> None:
        """Refuse connections from now on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextlib.contextmanager
def wire(serve: Callable[[socket.socket, int], None]) -> Iterator[Wire]:
    """Run a Wire."""
    server = Wire(serve)
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            server.close()


def read_request(connection: socket.socket) -> bytes:
    """Return one request without a body, or nothing when the client has left."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    return data


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def client(url: str, dialect: Dialect = WEB_V2, **changes: Any) -> Elevate:
    changes = {"connect_timeout": 0.5, "read_timeout": 0.3} | changes
    return Elevate(Settings("table", "bus", url, dialect=dialect, **changes))


def answering(*answers: bytes) -> Callable[[socket.socket, int], None]:
    """Give each request on a connection the next of the answers, then close."""

    def serve(connection: socket.socket, number: int) -> None:
        for answer in answers:
            if read_request(connection):
                connection.sendall(answer)

    return serve


def after(answer: bytes, **changes: Any) -> Outcome:
    """Return the outcome of a notification that gets these bytes as its answer."""
    with wire(answering(answer)) as server:
        return client(server.url, **changes).notify(SESSION)


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def never(connection: socket.socket, number: int) -> None:
    while read_request(connection):
        pass


def drip(data: Iterable[bytes]) -> Callable[[socket.socket, int], None]:
    """Send a byte now and then: each arrives in time, the whole never does."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        left = threading.Event()
        for piece in data:
            connection.sendall(piece)
            left.wait(0.02)

    return serve
