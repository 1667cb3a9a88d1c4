"""Servers on the loopback whose every byte a test decides."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


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
