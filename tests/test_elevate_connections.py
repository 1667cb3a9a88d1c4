"""How Elevate's client uses connections, on real wires: which are kept, and for how long."""

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emulated import Clock
from sessions.elevate import POOL_AGE, POOL_IDLE
from wire import (
    NO_CONTENT,
    PATIENCE,
    SESSION,
    SOON,
    answering,
    client,
    http,
    never,
    over_tls,
    read_request,
    reset,
    secure,
    self_signed,
    silent_port,
    wire,
)

# -- a pool, for a while -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monotonic", "wall"),
    [(0, POOL_IDLE + 0.1), (POOL_IDLE + 0.1, -3600)],
    ids=["the monotonic clock stood still", "the wall clock was set back"],
)
def test_a_flow_dropped_while_the_function_was_frozen_costs_nothing(
    monotonic: float, wall: float
) -> None:
    """A firewall drops it silently: nothing on the old connection is ever answered."""

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            never(connection, number)

    clock, wall_clock = Clock(), Clock()
    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=wall_clock)
        assert elevate.notify(SESSION).kind == "delivered"
        clock.turn(monotonic)
        wall_clock.turn(wall)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_a_connection_is_kept_while_it_is_used_but_not_for_ever(clock: Clock) -> None:
    with wire(answering(*[NO_CONTENT] * 30)) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        started = clock()
        while clock() <= started + POOL_AGE:
            assert elevate.notify(SESSION).kind == "delivered"
            assert server.connections == 1
            clock.turn(POOL_IDLE)
        for _ in range(2):
            assert elevate.notify(SESSION).kind == "delivered"
            assert server.connections == 2


def test_a_new_pool_breaks_no_request_under_way_and_closes_the_old_connections(
    clock: Clock,
) -> None:
    asked, answer, left = (
        [threading.Event(), threading.Event()],
        threading.Event(),
        threading.Event(),
    )

    def serve(connection: socket.socket, number: int) -> None:
        if number < 2:
            read_request(connection)
            asked[number].set()
            assert answer.wait(PATIENCE)
            connection.sendall(NO_CONTENT)
            assert not read_request(connection), "a request on a connection of the old pool"
            left.set()
        else:
            answering(NO_CONTENT)(connection, number)

    with wire(serve) as server, ThreadPoolExecutor(2) as threads:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        under_way = [threads.submit(elevate.notify, SESSION) for _ in range(2)]
        assert all(event.wait(PATIENCE) for event in asked)
        clock.turn(POOL_IDLE + 1)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 3
        answer.set()
        assert [one.result().kind for one in under_way] == ["delivered"] * 2
        assert left.wait(PATIENCE)


def test_a_pool_that_is_replaced_at_the_last_moment_can_still_be_used() -> None:
    """Between its choice and its first use, when the start of the notification is noted."""
    now, ticks = Clock(), itertools.count()

    def clock() -> float:
        if next(ticks) == last_moment:
            now.turn(POOL_IDLE + 1)
            assert elevate.notify(SESSION).kind == "delivered"
        return now()

    last_moment = 2  # after the clock was read for the first pool, and for its choice
    with wire(answering(NO_CONTENT)) as server:
        elevate = client(server.url, clock=clock, wall_clock=now)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_many_threads_make_one_new_pool(clock: Clock) -> None:
    """The wall clock is read where a new pool is made, by one thread at a time."""
    inside, together = threading.Lock(), threading.Barrier(8, timeout=PATIENCE)

    def wall_clock() -> float:
        assert inside.acquire(blocking=False), "two threads at once"
        try:
            time.sleep(0.002)  # let another one in
            return clock.now
        finally:
            inside.release()

    def notify(_: int) -> str:
        together.wait()
        return elevate.notify(SESSION).kind

    with wire(answering(*[NO_CONTENT] * 20)) as server, ThreadPoolExecutor(8) as threads:
        elevate = client(server.url, clock=clock, wall_clock=wall_clock, concurrency=8)
        for _ in range(3):
            assert set(threads.map(notify, range(8))) == {"delivered"}
            clock.turn(POOL_IDLE + 1)


def test_as_many_connections_are_kept_as_threads_may_notify() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            together.wait()
            connection.sendall(NO_CONTENT)

    clock = Clock()
    with wire(serve) as server, ThreadPoolExecutor(3) as threads:
        elevate = client(server.url, clock=clock, wall_clock=clock, concurrency=3)
        for _ in range(3):
            assert {one.kind for one in threads.map(elevate.notify, [SESSION] * 3)} == {"delivered"}
        assert server.connections == 3


def test_the_place_of_a_closed_connection_is_free_again(clock: Clock) -> None:
    """With one place in the pool, each fault must leave it to the next connection."""
    faults = [http("500 Oh", b"x" * 20_000), b"junk\r\n\r\n", http("103 Early Hints"), b""]

    def serve(connection: socket.socket, number: int) -> None:
        if number < len(faults):
            answering(faults[number])(connection, number)
        else:
            answering(*[NO_CONTENT] * 3)(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock, concurrency=1)
        kinds = [elevate.notify(SESSION).kind for _ in range(len(faults) + 3)]
        assert kinds == ["unavailable"] * len(faults) + ["delivered"] * 3
        assert server.connections == len(faults) + 1


# -- one answer for one session ------------------------------------------------------------------


def test_a_connection_whose_answers_were_clean_is_used_again() -> None:
    clean = [
        NO_CONTENT,
        http("200 OK"),
        http("400 Bad", b"why"),
        http("503 Busy"),
        http("204 No Content"),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + NO_CONTENT,
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    ]
    clock = Clock()
    with wire(answering(*clean, *clean)) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        statuses = [elevate.notify(SESSION).status for _ in range(2 * len(clean))]
        assert statuses == [204, 200, 400, 503, 204, 204, 304] * 2
        assert server.connections == 1


CHUNKED = b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"
UNCLEAN = {
    "200 with a body": (http("200 OK", b"thank you"), "delivered"),
    "200 with half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf", "delivered"),
    "200 until closed": (b"HTTP/1.1 200 OK\r\n\r\n", "delivered"),
    "chunked 200": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nh", "delivered"),
    "chunked 204": (CHUNKED, "delivered"),
    "chunked 204 that ends": (CHUNKED + b"0\r\n\r\n", "delivered"),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "delivered"),
    "204 with its length": (http("204 No Content", b"hello"), "delivered"),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "unavailable"),
    "interim and answer": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + NO_CONTENT, "unavailable"),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "unavailable"),
    "half a reason": (b"HTTP/1.1 500 Oh\r\nContent-Length: 9999\r\n\r\nhalf", "unavailable"),
    "chunked reason": (
        b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n",
        "unavailable",
    ),
}


@pytest.mark.parametrize("name", UNCLEAN)
def test_a_connection_whose_answer_was_not_clean_is_closed(name: str) -> None:
    """At once: nothing that the answer owes is waited for. The next one is on a new connection."""
    answer, kind = UNCLEAN[name]

    def serve(connection: socket.socket, number: int) -> None:
        first = [answer] if number == 0 else []
        answering(*first, http("400 Bad Request"))(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        outcome = elevate.notify(SESSION)
        assert outcome.kind == kind
        assert outcome.latency_ms < PATIENCE / 2 * 1000
        assert elevate.notify(SESSION).kind == "rejected"
        assert server.connections == 2


@pytest.mark.parametrize("begun", [0, 9], ids=["apart", "begun with the first"])
def test_a_second_answer_before_the_next_request_is_nobodys(begun: int) -> None:
    """What comes with the first answer is dropped, what comes later closes the connection."""
    stray = http("500 Stray")
    first_taken, stray_sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == 0:
            connection.sendall(NO_CONTENT + stray[:begun])
            assert first_taken.wait(PATIENCE)
            connection.sendall(stray[begun:])
            stray_sent.set()
            never(connection, number)
        connection.sendall(NO_CONTENT)

    clock = Clock()
    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        assert elevate.notify(SESSION).status == 204
        first_taken.set()
        assert stray_sent.wait(PATIENCE)
        assert elevate.notify(SESSION).status == 204
        assert server.connections == 2


@pytest.mark.parametrize("rest", [b"a body all the same", http("500 Stray")])
def test_what_comes_together_with_a_204_is_dropped(rest: bytes, clock: Clock) -> None:
    with wire(answering(NO_CONTENT + rest, http("400 Bad"))) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        assert [elevate.notify(SESSION).status for _ in range(2)] == [204, 400]
        assert server.connections == 1


def test_a_second_answer_after_the_next_request_is_taken_for_that_ones(clock: Clock) -> None:
    """What gives way: no HTTP/1.1 client can tell. Its own answer then closes the connection."""
    stray_taken, own_sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            answering(http("400 Stray"))(connection, number)
            assert stray_taken.wait(PATIENCE)
            connection.sendall(NO_CONTENT)
            own_sent.set()
            never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        assert [elevate.notify(SESSION).status for _ in range(2)] == [204, 400]
        stray_taken.set()
        assert own_sent.wait(PATIENCE)
        assert elevate.notify(SESSION).status == 204
        assert server.connections == 2


def test_a_reason_is_one_read_and_the_rest_is_not_waited_for() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        head = b"HTTP/1.1 400 Bad\r\nContent-Length: 999999999\r\n\r\n"
        connection.sendall(head + b"market " * 1000)
        never(connection, number)

    with wire(serve) as server:
        outcome = client(server.url).notify(SESSION)
    assert outcome.kind == "rejected"
    assert outcome.reason.startswith("market market")


@pytest.mark.waits
@pytest.mark.parametrize("head", ["Content-Length: 9", "Transfer-Encoding: chunked"])
def test_a_refusal_keeps_its_status_when_its_reason_does_not_come(head: str) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 400 Oh\r\n{head}\r\n\r\n".encode())
        never(connection, number)

    with wire(serve) as server:
        outcome = client(server.url, read_timeout=3).notify(SESSION)
    assert (outcome.kind, outcome.status, outcome.reason) == ("rejected", 400, "")


# -- nothing is sent twice -----------------------------------------------------------------------


def test_nothing_is_sent_on_a_kept_connection_that_was_closed() -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            connection.shutdown(socket.SHUT_WR)
            closed.set()
            assert not connection.recv(1), "a request on a closed connection"

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert closed.wait(PATIENCE)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2"], ids=["before", "within"])
@pytest.mark.parametrize("end", [lambda c: c.close(), reset], ids=["closed", "reset"])
def test_a_kept_connection_that_dies_before_or_within_its_answer_fails_once(
    end: Callable[[socket.socket], None], begun: bytes
) -> None:
    """Elevate may have taken the notification, so that only its row sends it again."""

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            read_request(connection)  # it dies only once the next request is on its way
            connection.sendall(begun)
            end(connection)

    clock = Clock()
    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock)
        assert elevate.notify(SESSION).kind == "delivered"
        died = elevate.notify(SESSION)
        assert (died.kind, died.status, died.timed_out) == ("unavailable", None, False)
        assert server.connections == 1
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_a_new_connection_that_dies_fails_once() -> None:
    with wire(lambda connection, number: reset(connection)) as server:
        assert client(server.url).notify(SESSION).kind == "unavailable"
        assert server.connections == 1


# -- time-outs -----------------------------------------------------------------------------------


def test_silence_is_a_time_out() -> None:
    with wire(never) as server:
        outcome = client(server.url, read_timeout=SOON).notify(SESSION)
    assert (outcome.kind, outcome.timed_out) == ("unavailable", True)
    assert outcome.reason == "ReadTimeoutError: TimeoutError"


@pytest.mark.waits
def test_after_silence_on_a_kept_connection_nothing_is_sent_again(clock: Clock) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, clock=clock, wall_clock=clock, read_timeout=5)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).timed_out
        assert server.connections == 1


def test_connect_and_read_time_outs_are_separate() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            time.sleep(1)  # longer than the connect time-out, far shorter than the read one
            connection.sendall(NO_CONTENT)

    with wire(serve) as server:
        elevate = client(server.url, connect_timeout=0.5)
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2


def test_each_silent_address_of_a_host_costs_a_connect_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What gives way: urllib3 tries them in turn."""
    with silent_port() as port:
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address] * 3)
        outcome = client(f"http://elevate.test:{port}", connect_timeout=SOON).notify(SESSION)
    assert (outcome.kind, outcome.timed_out) == ("unavailable", True)
    assert outcome.reason == "ConnectTimeoutError: TimeoutError"
    assert 3 * SOON * 1000 * 0.99 <= outcome.latency_ms < PATIENCE * 1000


def test_the_tls_handshake_has_the_connect_time_out() -> None:
    with wire(never) as server:
        outcome = client(secure(server.url), connect_timeout=SOON).notify(SESSION)
    assert (outcome.kind, outcome.timed_out) == ("unavailable", True)
    assert outcome.latency_ms < PATIENCE * 1000


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_an_untrusted_certificate_is_unavailable(certificate: Path) -> None:
    with wire(over_tls(certificate, NO_CONTENT)) as server:
        outcome = client(secure(server.url)).notify(SESSION)
    assert (outcome.kind, outcome.timed_out) == ("unavailable", False)
    assert "SSL" in outcome.reason


def test_certificates_are_loaded_once_for_all_connections(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with wire(over_tls(certificate, NO_CONTENT, NO_CONTENT)) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        elevate = client(secure(server.url), clock=clock, wall_clock=clock)
        monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2
        assert server.connections == 1, "kept"
        clock.turn(POOL_IDLE + 1)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_without_tls_no_certificates_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("loading certificates")

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", refuse)
    with wire(answering(NO_CONTENT)) as server:
        assert client(server.url).notify(SESSION).kind == "delivered"
