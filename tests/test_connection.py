"""The rules of connections, on real wires: the one retry, deadlines, one answer for one session."""

import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sessions.connection import AT_ONCE
from wire import (
    NO_CONTENT,
    SESSION,
    Wire,
    answering,
    client,
    drip,
    http,
    never,
    read_request,
    reset,
    wire,
)

# -- one answer, in time -------------------------------------------------------------------------


def test_interim_answers_do_not_extend_the_time_out() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        never(connection, number)

    with wire(serve) as server:
        assert "TimeoutError" in client(server.url).notify(SESSION).reason


def test_a_second_answer_is_never_taken_for_another_sessions() -> None:
    """Elevate answers A with 204 and, a moment later, sends a stray second answer."""
    sent_stray = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        if number == 0:
            connection.sendall(http("500 Stray"))
            sent_stray.set()
            never(connection, number)
        answering(NO_CONTENT, NO_CONTENT)(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert sent_stray.wait(5)
        assert [elevate.notify(SESSION).status for _ in range(2)] == [204, 204]
        assert server.connections == 2


def test_a_refusal_keeps_its_status_when_its_body_does_not_end() -> None:
    slow = drip([b"HTTP/1.1 400 Oh\r\nContent-Length: 9999\r\n\r\n", *[b"x"] * 9999])
    with wire(slow) as server:
        outcome = client(server.url).notify(SESSION)
    assert (outcome.kind, outcome.status, outcome.reason) == ("rejected", 400, "")


def test_a_used_connection_is_used_again() -> None:
    with wire(answering(*[NO_CONTENT, http("400 Bad", b"why"), http("503 Busy")] * 2)) as server:
        elevate = client(server.url)
        kinds = [elevate.notify(SESSION).kind for _ in range(6)]
        assert kinds == ["delivered", "rejected", "unavailable"] * 2
        assert server.connections == 1


def test_as_many_connections_are_kept_as_threads_may_notify() -> None:
    together = threading.Barrier(3, timeout=10)

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            together.wait()
            connection.sendall(NO_CONTENT)

    with wire(serve) as server, ThreadPoolExecutor(3) as threads:
        elevate = client(server.url, concurrency=3, read_timeout=10)
        for _ in range(3):
            assert {one.kind for one in threads.map(elevate.notify, [SESSION] * 3)} == {"delivered"}
        assert server.connections == 3


def test_the_rest_of_a_long_answer_is_not_waited_for() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        head = b"HTTP/1.1 400 Bad\r\nContent-Length: 999999999\r\n\r\n"
        connection.sendall(head + b"market " * 1000)
        never(connection, number)

    with wire(serve) as server:
        assert client(server.url).notify(SESSION).reason.startswith("market market")


def test_connect_and_read_time_outs_are_separate() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            time.sleep(0.5)  # longer than the connect time-out, shorter than the read one
            connection.sendall(NO_CONTENT)

    with wire(serve) as server:
        elevate = client(server.url, connect_timeout=0.2, read_timeout=5)
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2


def test_a_request_that_was_answered_in_part_is_not_sent_again() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 2")
        reset(connection)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


@pytest.mark.parametrize(
    "serve",
    [
        never,
        drip(itertools.repeat(b"H")),
        drip([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 90]),
        drip(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
    ],
    ids=["hang", "endless status", "slow headers", "endless continue"],
)
def test_an_answer_that_does_not_end_in_time_is_a_time_out(
    serve: Callable[[socket.socket, int], None],
) -> None:
    with wire(serve) as server:
        started = time.monotonic()
        outcome = client(server.url).notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "TimeoutError" in outcome.reason
        # The read time-out bounds the whole answer; the rest allows for a slow machine.
        assert time.monotonic() - started < 3


def test_the_read_time_out_is_for_the_whole_answer() -> None:
    with wire(drip(itertools.repeat(b"H"))) as server:
        outcome = client(server.url, read_timeout=1).notify(SESSION)
    assert 900 < outcome.latency_ms < 1800


def test_a_connection_that_owes_a_body_is_not_used_again() -> None:
    """A 204 has none, so whatever comes of it would be in the way of the next answer."""
    owing = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"
    with wire(answering(owing, NO_CONTENT)) as server:
        elevate = client(server.url)
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2
        assert server.connections == 2


# -- the one retry -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [lambda c: c.close(), reset], ids=["closed", "reset"])
def test_a_connection_that_died_while_pooled_is_replaced_at_once(
    end: Callable[[socket.socket], None],
) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        if number == 0:
            read_request(connection)  # it dies only once the next request is on its way
            end(connection)
        else:
            never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_nothing_is_sent_on_a_pooled_connection_that_was_closed() -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            connection.shutdown(socket.SHUT_RDWR)
            closed.set()
            assert not connection.recv(1), "a request on a closed connection"

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert closed.wait(5)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_a_pooled_connection_that_dies_late_is_not_retried() -> None:
    """Elevate may have taken the notification."""

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        read_request(connection)
        threading.Event().wait(AT_ONCE + 0.2)

    with wire(serve) as server:
        elevate = client(server.url, read_timeout=5)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_all_addresses_of_a_host_share_one_connect_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight dead addresses: a listener whose queue is full takes no connection and refuses none."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address] * 8)
        started = time.monotonic()
        outcome = client(f"http://elevate.test:{port}").notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "Timeout" in outcome.reason
        assert 0.4 < time.monotonic() - started < 1.5  # twice the time-out at most
        for one in waiting:
            one.close()


def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)

    with wire(serve) as server:
        assert client(server.url).notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_a_time_out_on_a_pooled_connection_is_not_retried() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_a_second_death_is_unavailable() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == 0:
            connection.sendall(NO_CONTENT)
            read_request(connection)

    with wire(serve) as server:
        elevate = client(server.url)
        elevate.notify(SESSION)
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 2


def test_faults_leak_no_pooled_connection() -> None:
    """With one place in the pool, each fault must give it back."""
    faults = [http("500 Oh", b"x" * 20_000), b"junk", b"", http("400 Bad", b"why"), NO_CONTENT]

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(faults[number % len(faults)])

    with wire(serve) as server:
        elevate = client(server.url, concurrency=1)
        kinds = [elevate.notify(SESSION).kind for _ in range(2 * len(faults))]
    assert kinds.count("delivered") >= 2


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate with its key for localhost."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", "/dev/stdout"]
    made = subprocess.run([*command.split(), *names], check=True, capture_output=True, text=True)
    path.write_text(path.read_text() + made.stdout)
    return path


def over_tls(certificate: Path, *answers: bytes) -> Callable[[socket.socket, int], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            answering(*answers)(secured, number)

    return serve


def secure_url(server: Wire) -> str:
    return f"https://localhost:{urlsplit(server.url).port}"


def test_an_untrusted_certificate_is_unavailable(certificate: Path) -> None:
    with wire(over_tls(certificate, NO_CONTENT)) as server:
        outcome = client(secure_url(server)).notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "SSL" in outcome.reason


def test_a_trusted_certificate_is_used_and_a_stale_connection_replaced(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with wire(over_tls(certificate, NO_CONTENT)) as server:
        elevate = client(secure_url(server), read_timeout=2)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2
