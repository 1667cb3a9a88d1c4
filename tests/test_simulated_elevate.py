"""The simulated Elevate as a server: connections, what it received, the command."""

import contextlib
import gc
import http.client
import signal
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import pytest

from local.elevate_rules import STOREFRONT_V3, WEB_V2
from local.simulated_elevate import SimulatedElevate
from simulated import V2, ask, connected, end, raw, send, wait_for_one

# -- connections ---------------------------------------------------------------------------


def test_a_connection_is_used_again_after_a_400_and_a_body_is_drained(
    simulated: SimulatedElevate,
) -> None:
    with connected(simulated) as connection:
        # Given a 400, to a request with a body of 1 MB
        assert send(connection, "POST", WEB_V2, b"x" * 1_000_000)[0] == 400
        used = connection.sock
        assert used is not None
        # When another request follows, then it is answered on the same connection
        assert send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}", b"{}")[0] == 204
        assert connection.sock is used


def test_pipelined_requests_are_answered_in_order(simulated: SimulatedElevate) -> None:
    good = f"POST {WEB_V2}?{urlencode(V2)} HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{{}}"
    bad = f"POST {WEB_V2} HTTP/1.1\r\nHost: e\r\n\r\n"
    last = "GET / HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"
    with raw(simulated) as connection, connection.makefile("rb") as answers:
        connection.sendall((good + bad + good + last).encode())
        lines = [line for line in answers.read().splitlines() if b"HTTP/1.1 " in line]
    assert [line.split(b"HTTP/1.1 ")[1][:3] for line in lines] == [b"204", b"400", b"204", b"404"]


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(simulated: SimulatedElevate) -> None:
    with raw(simulated) as connection, connection.makefile("rb") as answers:
        connection.sendall(
            f"POST {WEB_V2}?{urlencode(V2)} HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        assert answers.readline() == b"HTTP/1.1 100 \r\n"
        connection.sendall(b"{}")
        assert b"HTTP/1.1 204 " in answers.read()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"this is not HTTP\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"POST / HTTP/1.1\r\nHost: e\r\nX: " + b"x" * 20_000, b"431"),
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(
    simulated: SimulatedElevate, request_bytes: bytes, status: bytes
) -> None:
    with raw(simulated) as connection, connection.makefile("rb") as answers:
        connection.sendall(request_bytes)
        assert answers.readline().split()[1] == status
        answers.read()
    assert simulated.notifications() == []


def test_concurrent_notifications_are_all_kept_in_order(simulated: SimulatedElevate) -> None:
    # Given 8 connections
    def send_some(_: int) -> None:
        with connected(simulated) as connection:
            for _ in range(25):
                query = urlencode(V2 | {"esales.sessionKey": str(uuid4())})
                assert send(connection, "POST", f"{WEB_V2}?{query}")[0] == 204

    # When each sends 25 sessions
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send_some, range(8)))
    # Then all are kept, each once
    kept = simulated.notifications()
    assert [one["index"] for one in kept] == list(range(1, 201))
    assert sorted(one["time"] for one in kept) == [one["time"] for one in kept]
    summary = {"received": 200, "delivered": 200, "sessions": 200}
    assert simulated.summary() == {**summary, "deliveredTwice": [], "forgotten": 0}


def test_it_stops_while_clients_are_connected_and_frees_its_port() -> None:
    # Given an idle connection, and one that hangs
    with contextlib.ExitStack() as clients:
        with SimulatedElevate() as simulated:
            idle = clients.enter_context(connected(simulated))
            send(idle, "GET", "/_sim/fault")
            simulated.fault({"kind": "hang"})
            hanging = clients.enter_context(connected(simulated))
            hanging.request("POST", WEB_V2)
            wait_for_one(simulated)
        # When it has stopped, then its port refuses
        with pytest.raises(ConnectionRefusedError), raw(simulated):
            pass


def test_it_stops_even_if_a_client_reads_nothing() -> None:
    with contextlib.ExitStack() as clients:
        with SimulatedElevate() as simulated:
            # Given more answers than a connection holds, and a client that reads none
            for _ in range(100):
                assert ask(simulated, "POST", "/" + "x" * 8000)[0] == 404
            greedy = clients.enter_context(raw(simulated))
            greedy.sendall(b"GET /_sim/notifications HTTP/1.1\r\nHost: e\r\n\r\n" * 50)
            greedy.recv(1, socket.MSG_PEEK)
            # When Elevate is told to stop, then it does
        with pytest.raises(ConnectionRefusedError), raw(simulated):
            pass


def test_it_leaks_no_connection_that_arrives_as_it_stops() -> None:
    def call_until_it_is_gone(simulated: SimulatedElevate) -> None:
        with contextlib.suppress(OSError):
            while True:
                with raw(simulated) as connection:
                    connection.sendall(b"GET /_sim/fault HTTP/1.1\r\nHost: e\r\n\r\n")
                    connection.recv(1000)

    # Given clients that connect again and again
    with warnings.catch_warnings(record=True) as leaks, ThreadPoolExecutor(3) as threads:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(20):
            # When Elevate stops
            with SimulatedElevate() as simulated:
                calls = [threads.submit(call_until_it_is_gone, simulated) for _ in range(3)]
            for call in calls:
                call.result()
        # Then no connection is left to the garbage collector.
        gc.collect()
    assert not leaks


# -- what it received ----------------------------------------------------------------------


def test_notifications_are_paged_filtered_and_cleared(simulated: SimulatedElevate) -> None:
    # Given five notifications, two of them of one session
    sessions = [str(uuid4()) for _ in range(4)]
    for session in [*sessions, sessions[0]]:
        assert end(simulated, WEB_V2, V2 | {"esales.sessionKey": session}) == 204

    def page(query: str) -> tuple[int, list[int], int | None]:
        status, found = ask(simulated, "GET", f"/_sim/notifications{query}")
        assert status == 200
        indexes = [one["index"] for one in found["notifications"]]
        return found["count"], indexes, found.get("next")

    # When they are read page by page, then each is there once
    assert page("") == (5, [1, 2, 3, 4, 5], None)
    assert page("?limit=2") == (5, [1, 2], 2)
    assert page("?limit=2&after=2") == (5, [3, 4], 4)
    assert page("?limit=2&after=4") == (5, [5], None)
    assert page("?after=5") == (5, [], None)
    # And by session
    assert page(f"?sessionKey={sessions[0]}") == (2, [1, 5], None)
    assert page(f"?sessionKey={sessions[0]}&limit=1") == (2, [1], 1)
    assert page(f"?sessionKey={sessions[0]}&after=1") == (2, [5], None)
    assert page("?sessionKey=unknown") == (0, [], None)
    # And a session that was delivered twice is reported
    status, summary = ask(simulated, "GET", "/_sim/summary")
    assert status == 200
    assert summary["deliveredTwice"] == [sessions[0]]
    assert (summary["delivered"], summary["sessions"]) == (5, 4)
    # When they are cleared, then nothing is left
    assert ask(simulated, "DELETE", "/_sim/notifications")[0] == 204
    assert page("") == (0, [], None)
    assert simulated.summary()["delivered"] == 0


def test_a_visitor_without_a_session_is_not_delivered_twice(simulated: SimulatedElevate) -> None:
    for _ in range(2):
        assert end(simulated, STOREFRONT_V3, {"market": "UK", "userContext": "ANONYMOUS"}) == 204
    summary = simulated.summary()
    assert (summary["delivered"], summary["sessions"], summary["deliveredTwice"]) == (2, 0, [])


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    # Given room for four
    with SimulatedElevate(kept=4) as simulated:
        # When five come
        for _ in range(5):
            assert end(simulated, WEB_V2, V2 | {"esales.sessionKey": str(uuid4())}) == 204
        # Then the older half is forgotten, and indexes go on
        assert [one["index"] for one in simulated.notifications()] == [3, 4, 5]
        _, page = ask(simulated, "GET", "/_sim/notifications?after=3&limit=1")
        assert [one["index"] for one in page["notifications"]] == [4]
        summary = {"received": 3, "delivered": 3, "sessions": 3, "deliveredTwice": []}
        assert simulated.summary() == {**summary, "forgotten": 2}


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit="])
def test_an_impossible_page_is_refused(simulated: SimulatedElevate, query: str) -> None:
    assert ask(simulated, "GET", f"/_sim/notifications?{query}")[0] == 400


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/_sim/"), ("POST", "/_sim/fault"), ("PUT", "/_sim/summary")]
)
def test_other_controls_do_not_exist(simulated: SimulatedElevate, method: str, path: str) -> None:
    assert ask(simulated, method, path, {"kind": "down"})[0] == 404
    assert simulated.notifications() == []


# -- the command ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_address_serves_and_stops(number: signal.Signals) -> None:
    # Given the command
    command = [sys.executable, "-W", "error", "-m", "local.simulated_elevate"]
    options = ["--port", "0", "--markets", "UK,SE", "--latency-ms", "1"]
    with subprocess.Popen(
        command + options,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = urlsplit(line.removeprefix("simulated Elevate on ").strip())
        # When it is used, and a signal comes while a client is connected
        with contextlib.closing(http.client.HTTPConnection(url.netloc, timeout=10)) as client:
            query = urlencode(V2 | {"esales.market": "SE"})
            assert send(client, "POST", f"{WEB_V2}?{query}")[0] == 204
            process.send_signal(number)
            output, errors = process.communicate(timeout=10)
        # Then it has stopped cleanly, and printed nothing about any key
        assert (process.returncode, output, errors) == (0, "", "")
        assert url.hostname == "127.0.0.1"
