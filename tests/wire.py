"""Servers on the loopback whose every byte a test decides, and a client to notify them."""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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

# Time-outs (seconds): where an answer comes, and where none ever does.
PATIENCE = 60.0
SOON = 0.2


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
            # What is sent arrives at once, even behind what the client has not acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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


def client(
    url: str,
    dialect: Dialect = WEB_V2,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    **changes: Any,
) -> Elevate:
    """Return a client that waits for as long as a busy machine may take."""
    changes = {"connect_timeout": PATIENCE, "read_timeout": PATIENCE} | changes
    return Elevate(Settings("table", "bus", url, dialect=dialect, **changes), clock, wall_clock)


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


def self_signed(folder: Path) -> Path:
    """Return a new certificate with its key, for localhost."""
    path = folder / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", "/dev/stdout"]
    made = subprocess.run([*command.split(), *names], check=True, capture_output=True, text=True)
    path.write_text(path.read_text() + made.stdout)
    return path


def over_tls(certificate: Path, *answers: bytes) -> Callable[[socket.socket, int], None]:
    """Give these answers over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            answering(*answers)(secured, number)

    return serve


def secure(url: str) -> str:
    """Return a Wire's URL as one that the certificate is for."""
    return url.replace("http://127.0.0.1", "https://localhost")


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def never(connection: socket.socket, number: int) -> None:
    """Take requests and answer none, until the client has left."""
    while read_request(connection):
        pass


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Listen with a full queue, which takes no connection and refuses none."""
    with contextlib.ExitStack() as open_:
        full = open_.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]
