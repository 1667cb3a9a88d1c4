"""The simulated Elevate is as strict as Elevate's documentation, and its faults are real ones."""

import contextlib
import gc
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid1, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.simulated_elevate import STOREFRONT_V3, WEB_V2, SimulatedElevate

CUSTOMER = "d9528030-509c-4e0f-b585-7168f1e9feca"
SESSION = "b106299c-eac0-4f6f-96d2-93e57c255784"
V2 = {"esales.market": "UK", "esales.customerKey": CUSTOMER, "esales.sessionKey": SESSION}
V3 = {"market": "UK", "customerKey": "visitor 7", "sessionKey": "session/7"}
KEYS = {"customerKey": "visitor", "sessionKey": "session"}


@pytest.fixture(name="elevate")
def _elevate() -> Iterator[SimulatedElevate]:
    with SimulatedElevate(markets=("UK", "Sverige & Norge/ü")) as elevate:
        yield elevate


@contextlib.contextmanager
def connected(elevate: SimulatedElevate) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(elevate.url).netloc, timeout=10)
    with contextlib.closing(connection):
        yield connection


@contextlib.contextmanager
def raw(elevate: SimulatedElevate) -> Iterator[socket.socket]:
    address = urlsplit(elevate.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        yield connection


def send(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection.request(method, target, body)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def ask(elevate: SimulatedElevate, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    with connected(elevate) as connection:
        given = None if body is None else json.dumps(body).encode()
        status, answer, _ = send(connection, method, target, given)
        return status, json.loads(answer) if answer.startswith(b"{") else answer


def end(elevate: SimulatedElevate, path: str, query: dict[str, str] | str) -> int:
    text = query if isinstance(query, str) else urlencode(query, quote_via=quote, safe="")
    status, body = ask(elevate, "POST", f"{path}?{text}")
    assert len(body) < 200
    assert bool(body) == (status != 204)
    return status


def wait_for_one(elevate: SimulatedElevate) -> dict[str, Any]:
    """Return the only notification, as soon as there is one."""
    deadline = time.monotonic() + 10
    while not (received := elevate.notifications()) and time.monotonic() < deadline:
        time.sleep(0.01)
    (one,) = received
    return one


# -- what a well-formed notification is ----------------------------------------------------


def test_the_documented_example_is_answered_204(elevate: SimulatedElevate) -> None:
    # Given the documented request, to the letter
    target = (
        "/api/v2/notifications/end?esales.market=UK"
        "&esales.customerKey=d9528030-509c-4e0f-b585-7168f1e9feca"
        "&esales.sessionKey=b106299c-eac0-4f6f-96d2-93e57c255784"
    )
    # When it is sent
    before = time.time()
    with connected(elevate) as connection:
        status, body, headers = send(connection, "POST", target)
    # Then it is answered 204 without a body, and kept as it was
    assert (status, body) == (204, b"")
    assert "Content-Length" not in headers
    (kept,) = elevate.notifications()
    assert before <= kept.pop("time") <= time.time()
    assert kept == {
        "index": 1,
        "method": "POST",
        "path": WEB_V2,
        "query": V2,
        "rawQuery": target.partition("?")[2],
        "status": 204,
    }


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (WEB_V2, V2),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION.upper()}),
        (WEB_V2, V2 | {"esales.market": "Sverige & Norge/ü"}),
        (WEB_V2, dict(reversed(V2.items()))),
        (STOREFRONT_V3, V3),
        (STOREFRONT_V3, V3 | {"market": "Sverige & Norge/ü"}),
        (STOREFRONT_V3, V3 | {"userContext": "PERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"sessionKey": "ü" * 255}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "customerKey": "c", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", **KEYS, "userContext": "SYNTHETIC"}),
    ],
)
def test_a_notification_as_documented_is_answered_204(
    elevate: SimulatedElevate, path: str, query: dict[str, str]
) -> None:
    assert end(elevate, path, query) == 204


@pytest.mark.parametrize(
    ("path", "query"),
    [
        # an argument missing, empty, unknown, twice
        *((WEB_V2, {k: v for k, v in V2.items() if k != name}) for name in V2),
        *((WEB_V2, V2 | {name: ""}) for name in V2),
        (WEB_V2, V2 | {"esales.userContext": "PERSONALIZED"}),
        (WEB_V2, urlencode(V2) + "&esales.market=UK"),
        (WEB_V2, urlencode(V2) + "&nothing"),
        (WEB_V2, ""),
        *((STOREFRONT_V3, {k: v for k, v in V3.items() if k != name}) for name in V3),
        *((STOREFRONT_V3, V3 | {name: ""}) for name in V3),
        (STOREFRONT_V3, V3 | {"locale": "en"}),
        (STOREFRONT_V3, urlencode(V3) + "&market=UK"),
        (STOREFRONT_V3, ""),
        # the other dialect's names
        (WEB_V2, {"market": "UK", "customerKey": CUSTOMER, "sessionKey": SESSION}),
        (STOREFRONT_V3, V2),
        # names and markets are case sensitive
        (WEB_V2, {k.lower(): v for k, v in V2.items()}),
        (WEB_V2, V2 | {"esales.market": "uk"}),
        (STOREFRONT_V3, V3 | {"market": "uk"}),
        # markets that are not configured
        (WEB_V2, V2 | {"esales.market": "FR"}),
        (WEB_V2, V2 | {"esales.market": "UK "}),
        (STOREFRONT_V3, V3 | {"market": "Sverige"}),
        # web-v2 wants a UUID v4 with dashes
        (WEB_V2, V2 | {"esales.sessionKey": str(uuid1())}),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION.replace("-", "")}),
        (WEB_V2, V2 | {"esales.sessionKey": f"{{{SESSION}}}"}),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION + "\n"}),
        (WEB_V2, V2 | {"esales.customerKey": "c9528030-509c-4e0f-c585-7168f1e9feca"}),
        (WEB_V2, V2 | {"esales.customerKey": "visitor-7"}),
        # storefront-v3 wants 1 to 255 characters
        (STOREFRONT_V3, V3 | {"customerKey": "c" * 256}),
        # what each userContext allows
        (STOREFRONT_V3, V3 | {"userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "PERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"userContext": "personalized"}),
        (STOREFRONT_V3, V3 | {"userContext": ""}),
        # not UTF-8
        (STOREFRONT_V3, urlencode(V3 | {"sessionKey": "ü"}, encoding="latin-1")),
    ],
)
def test_anything_else_is_answered_400(
    elevate: SimulatedElevate, path: str, query: dict[str, str] | str
) -> None:
    # When it is sent
    assert end(elevate, path, query) == 400
    # Then it was received, and not delivered
    assert [kept["status"] for kept in elevate.notifications()] == [400]
    assert elevate.summary()["delivered"] == 0


@given(market=st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()))
def test_a_market_of_any_characters_arrives_intact(market: str) -> None:
    with SimulatedElevate(markets=(market,)) as elevate:
        assert end(elevate, WEB_V2, V2 | {"esales.market": market}) == 204
        assert end(elevate, WEB_V2, V2 | {"esales.market": market + "x"}) == 400
        kept, _ = elevate.notifications()
        assert kept["query"]["esales.market"] == market


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", WEB_V2, 405),
        ("HEAD", WEB_V2, 405),
        ("PUT", f"{WEB_V2}?{urlencode(V2)}", 405),
        ("DELETE", STOREFRONT_V3, 405),
        ("POST", "/", 404),
        ("HEAD", "/", 404),
        ("POST", f"{WEB_V2}/?{urlencode(V2)}", 404),
        ("POST", "//[/api", 404),
        ("POST", f"/api/v1/notifications/end?{urlencode(V2)}", 404),
        ("POST", f"/API/v2/notifications/end?{urlencode(V2)}", 404),
    ],
)
def test_other_methods_and_paths_are_refused_and_the_connection_stays_open(
    elevate: SimulatedElevate, method: str, target: str, status: int
) -> None:
    with connected(elevate) as connection:
        # When another method or path is asked for
        answer, body, headers = send(connection, method, target)
        # Then it is refused
        assert answer == status
        assert headers.get("Allow") == ("POST" if status == 405 else None)
        assert (body == b"") == (method == "HEAD")
        # And the same connection still works
        used = connection.sock
        assert send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}")[0] == 204
        assert connection.sock is used


# -- connections ---------------------------------------------------------------------------


def test_a_connection_is_used_again_after_a_400_and_a_body_is_drained(
    elevate: SimulatedElevate,
) -> None:
    with connected(elevate) as connection:
        # Given a 400, to a request with a body of 1 MB
        assert send(connection, "POST", WEB_V2, b"x" * 1_000_000)[0] == 400
        used = connection.sock
        assert used is not None
        # When another request follows, then it is answered on the same connection
        assert send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}", b"{}")[0] == 204
        assert connection.sock is used


def test_pipelined_requests_are_answered_in_order(elevate: SimulatedElevate) -> None:
    good = f"POST {WEB_V2}?{urlencode(V2)} HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{{}}"
    bad = f"POST {WEB_V2} HTTP/1.1\r\nHost: e\r\n\r\n"
    last = "GET / HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"
    with raw(elevate) as connection, connection.makefile("rb") as answers:
        connection.sendall((good + bad + good + last).encode())
        lines = [line for line in answers.read().splitlines() if b"HTTP/1.1 " in line]
    assert [line.split(b"HTTP/1.1 ")[1][:3] for line in lines] == [b"204", b"400", b"204", b"404"]


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(elevate: SimulatedElevate) -> None:
    with raw(elevate) as connection, connection.makefile("rb") as answers:
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
    elevate: SimulatedElevate, request_bytes: bytes, status: bytes
) -> None:
    with raw(elevate) as connection, connection.makefile("rb") as answers:
        connection.sendall(request_bytes)
        assert answers.readline().split()[1] == status
        answers.read()
    assert elevate.notifications() == []


def test_concurrent_notifications_are_all_kept_in_order(elevate: SimulatedElevate) -> None:
    # Given 8 connections
    def send_some(_: int) -> None:
        with connected(elevate) as connection:
            for _ in range(25):
                query = urlencode(V2 | {"esales.sessionKey": str(uuid4())})
                assert send(connection, "POST", f"{WEB_V2}?{query}")[0] == 204

    # When each sends 25 sessions
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send_some, range(8)))
    # Then all are kept, each once
    kept = elevate.notifications()
    assert [one["index"] for one in kept] == list(range(1, 201))
    assert sorted(one["time"] for one in kept) == [one["time"] for one in kept]
    summary = {"received": 200, "delivered": 200, "sessions": 200}
    assert elevate.summary() == {**summary, "deliveredTwice": [], "forgotten": 0}


def test_it_stops_while_clients_are_connected_and_frees_its_port() -> None:
    # Given an idle connection, and one that hangs
    with contextlib.ExitStack() as clients:
        with SimulatedElevate() as elevate:
            idle = clients.enter_context(connected(elevate))
            send(idle, "GET", "/_sim/fault")
            elevate.fault({"kind": "hang"})
            hanging = clients.enter_context(connected(elevate))
            hanging.request("POST", WEB_V2)
            wait_for_one(elevate)
        # When it has stopped, then its port refuses
        with pytest.raises(ConnectionRefusedError), raw(elevate):
            pass


def test_it_stops_even_if_a_client_reads_nothing() -> None:
    with contextlib.ExitStack() as clients:
        with SimulatedElevate() as elevate:
            # Given more answers than a connection holds, and a client that reads none
            for _ in range(100):
                assert ask(elevate, "POST", "/" + "x" * 8000)[0] == 404
            greedy = clients.enter_context(raw(elevate))
            greedy.sendall(b"GET /_sim/notifications HTTP/1.1\r\nHost: e\r\n\r\n" * 50)
            greedy.recv(1, socket.MSG_PEEK)
            # When Elevate is told to stop, then it does
        with pytest.raises(ConnectionRefusedError), raw(elevate):
            pass


def test_it_leaks_no_connection_that_arrives_as_it_stops() -> None:
    def call_until_it_is_gone(elevate: SimulatedElevate) -> None:
        with contextlib.suppress(OSError):
            while True:
                with raw(elevate) as connection:
                    connection.sendall(b"GET /_sim/fault HTTP/1.1\r\nHost: e\r\n\r\n")
                    connection.recv(1000)

    # Given clients that connect again and again
    with warnings.catch_warnings(record=True) as leaks, ThreadPoolExecutor(3) as threads:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(20):
            # When Elevate stops
            with SimulatedElevate() as elevate:
                calls = [threads.submit(call_until_it_is_gone, elevate) for _ in range(3)]
            for call in calls:
                call.result()
        # Then no connection is left to the garbage collector.
        gc.collect()
    assert not leaks


# -- what it received ----------------------------------------------------------------------


def test_notifications_are_paged_filtered_and_cleared(elevate: SimulatedElevate) -> None:
    # Given five notifications, two of them of one session
    sessions = [str(uuid4()) for _ in range(4)]
    for session in [*sessions, sessions[0]]:
        assert end(elevate, WEB_V2, V2 | {"esales.sessionKey": session}) == 204

    def page(query: str) -> tuple[int, list[int], int | None]:
        status, found = ask(elevate, "GET", f"/_sim/notifications{query}")
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
    status, summary = ask(elevate, "GET", "/_sim/summary")
    assert status == 200
    assert summary["deliveredTwice"] == [sessions[0]]
    assert (summary["delivered"], summary["sessions"]) == (5, 4)
    # When they are cleared, then nothing is left
    assert ask(elevate, "DELETE", "/_sim/notifications")[0] == 204
    assert page("") == (0, [], None)
    assert elevate.summary()["delivered"] == 0


def test_a_visitor_without_a_session_is_not_delivered_twice(elevate: SimulatedElevate) -> None:
    for _ in range(2):
        assert end(elevate, STOREFRONT_V3, {"market": "UK", "userContext": "ANONYMOUS"}) == 204
    summary = elevate.summary()
    assert (summary["delivered"], summary["sessions"], summary["deliveredTwice"]) == (2, 0, [])


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    # Given room for four
    with SimulatedElevate(kept=4) as elevate:
        # When five come
        for _ in range(5):
            assert end(elevate, WEB_V2, V2 | {"esales.sessionKey": str(uuid4())}) == 204
        # Then the older half is forgotten, and indexes go on
        assert [one["index"] for one in elevate.notifications()] == [3, 4, 5]
        _, page = ask(elevate, "GET", "/_sim/notifications?after=3&limit=1")
        assert [one["index"] for one in page["notifications"]] == [4]
        summary = {"received": 3, "delivered": 3, "sessions": 3, "deliveredTwice": []}
        assert elevate.summary() == {**summary, "forgotten": 2}


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit="])
def test_an_impossible_page_is_refused(elevate: SimulatedElevate, query: str) -> None:
    assert ask(elevate, "GET", f"/_sim/notifications?{query}")[0] == 400


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/_sim/"), ("POST", "/_sim/fault"), ("PUT", "/_sim/summary")]
)
def test_other_controls_do_not_exist(elevate: SimulatedElevate, method: str, path: str) -> None:
    assert ask(elevate, method, path, {"kind": "down"})[0] == 404
    assert elevate.notifications() == []


# -- faults --------------------------------------------------------------------------------


def switch(elevate: SimulatedElevate, **fault: Any) -> None:
    assert ask(elevate, "PUT", "/_sim/fault", fault)[0] == 204


def notify(elevate: SimulatedElevate, timeout: float = 10) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(elevate.url).netloc, timeout=timeout)
    with contextlib.closing(connection):
        status, _, headers = send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}")
        return status, headers


def test_down_drops_each_connection_but_not_the_controls(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="down")
    for _ in range(2):
        with pytest.raises(http.client.RemoteDisconnected):
            notify(elevate)
    assert ask(elevate, "GET", "/_sim/fault") == (200, {"kind": "down"})
    kept = elevate.notifications()
    assert [(one["status"], one["fault"]) for one in kept] == [(None, "down")] * 2
    assert elevate.summary()["delivered"] == 0
    # When it is up again, then it delivers
    switch(elevate, kind="none")
    assert notify(elevate)[0] == 204


@pytest.mark.parametrize(
    ("given", "header"),
    [
        (None, None),
        (7, "7"),
        (1.5, "1.5"),
        ("Sun, 21 Oct 2001 07:28:00 GMT",) * 2,
        ("soon", "soon"),
    ],
)
def test_busy_answers_503(elevate: SimulatedElevate, given: Any, header: str | None) -> None:
    switch(elevate, kind="busy", retryAfter=given)
    status, headers = notify(elevate)
    assert (status, headers.get("Retry-After")) == (503, header)
    (kept,) = elevate.notifications()
    assert (kept["status"], kept["fault"]) == (503, "busy")
    assert elevate.summary()["delivered"] == 0


def test_slow_takes_the_notification_and_answers_late(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="slow", seconds=0.3)
    before = time.monotonic()
    assert notify(elevate)[0] == 204
    assert time.monotonic() - before >= 0.3
    # And a notification whose client gave up is still delivered
    switch(elevate, kind="slow", seconds=60)
    with pytest.raises(TimeoutError):
        notify(elevate, timeout=0.2)
    kept = elevate.notifications()
    assert [(one["status"], one["fault"]) for one in kept] == [(204, "slow")] * 2
    assert elevate.summary()["deliveredTwice"] == [SESSION]


def test_hang_never_answers(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="hang")
    with pytest.raises(TimeoutError):
        notify(elevate, timeout=0.2)
    (kept,) = elevate.notifications()
    assert (kept["status"], kept["fault"]) == (None, "hang")
    assert elevate.summary()["delivered"] == 0


@pytest.mark.parametrize("lasts", [None, {"seconds": 0.5}, {"for": 0.5}])
def test_hang_lets_go_when_the_fault_changes(
    elevate: SimulatedElevate, lasts: dict[str, float] | None
) -> None:
    # Given a client that hangs, whatever else it sends
    switch(elevate, kind="hang", **(lasts or {}))
    with raw(elevate) as connection:
        connection.sendall(f"POST {WEB_V2} HTTP/1.1\r\nHost: e\r\n\r\n".encode())
        wait_for_one(elevate)
        connection.sendall(b"POST")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(10)
        # When the fault changes, or has lasted
        if not lasts:
            switch(elevate, kind="none")
        # Then the connection is closed without an answer
        assert connection.recv(100) == b""


@pytest.mark.parametrize(("query", "status"), [(V2, 204), ({}, 400)])
def test_reset_comes_in_the_middle_of_the_answer(
    elevate: SimulatedElevate, query: dict[str, str], status: int
) -> None:
    switch(elevate, kind="reset")
    with raw(elevate) as connection:
        target = f"{WEB_V2}?{urlencode(query)}"
        connection.sendall(f"POST {target} HTTP/1.1\r\nHost: e\r\n\r\n".encode())
        with connection.makefile("rb") as answer, pytest.raises(ConnectionResetError):
            answer.read()
    # And Elevate has nevertheless taken it, or refused it
    (kept,) = elevate.notifications()
    assert (kept["status"], kept["fault"]) == (status, "reset")
    assert elevate.summary()["delivered"] == (status == 204)


def test_reject_answers_400(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="reject")
    assert notify(elevate)[0] == 400
    (kept,) = elevate.notifications()
    assert (kept["status"], kept["fault"]) == (400, "reject")


def test_garbage_is_not_http(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="garbage")
    with pytest.raises(http.client.BadStatusLine):
        notify(elevate)
    (kept,) = elevate.notifications()
    assert (kept["status"], kept["fault"]) == (None, "garbage")
    assert elevate.summary()["delivered"] == 0


def test_flaky_is_as_flaky_as_its_rate(elevate: SimulatedElevate) -> None:
    # When it is never flaky, then all is delivered
    switch(elevate, kind="flaky", rate=0)
    for _ in range(20):
        assert notify(elevate)[0] == 204
    assert not any("fault" in one for one in elevate.notifications())
    # When it always is, then each notification meets one of the faults
    elevate.clear()
    switch(elevate, kind="flaky", rate=1, seconds=0.01)
    for _ in range(60):
        with contextlib.suppress(ConnectionError):
            notify(elevate)
    seen = {one["fault"] for one in elevate.notifications()}
    assert seen == {"busy", "reset", "down", "slow"}


def test_a_head_request_meets_a_fault_too(elevate: SimulatedElevate) -> None:
    switch(elevate, kind="busy")
    with connected(elevate) as connection:
        for _ in range(2):
            assert send(connection, "HEAD", WEB_V2)[:2] == (503, b"")


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "busy", "seconds": 0.2},
        {"kind": "busy", "for": 0.2, "seconds": 60},
        {"kind": "slow", "seconds": 0, "for": 0.2},
    ],
)
def test_a_fault_lasts_as_long_as_it_says(elevate: SimulatedElevate, fault: dict[str, Any]) -> None:
    # Given a fault with an end
    elevate.fault(fault)
    assert ask(elevate, "GET", "/_sim/fault") == (200, fault)
    # When its time is up, then there is none
    deadline = time.monotonic() + 10
    while ask(elevate, "GET", "/_sim/fault")[1] != {"kind": "none"}:
        assert time.monotonic() < deadline
    assert notify(elevate)[0] == 204


def test_a_new_fault_outlives_the_end_of_the_previous_one(elevate: SimulatedElevate) -> None:
    # Given a fault that ends soon, replaced by one without an end
    elevate.fault({"kind": "busy", "seconds": 0.05})
    elevate.fault({"kind": "reject"})
    # When the first would have ended, then the second is still there
    time.sleep(0.15)
    assert ask(elevate, "GET", "/_sim/fault") == (200, {"kind": "reject"})


@pytest.mark.parametrize(
    "fault",
    [
        None,
        [],
        "down",
        {},
        {"kind": None},
        {"kind": "Down"},
        {"kind": ["down"]},
        {"kind": "busy", "second": 1},
        {"kind": "slow", "seconds": -1},
        {"kind": "slow", "seconds": "2"},
        {"kind": "slow", "seconds": True},
        {"kind": "slow", "seconds": float("nan")},
        {"kind": "slow", "seconds": 10**400},
        {"kind": "busy", "for": 86_401},
        {"kind": "flaky", "rate": 1.1},
        {"kind": "flaky", "rate": []},
        {"kind": "busy", "retryAfter": "1\r\nX: y"},
        {"kind": "busy", "retryAfter": "måndag"},
        {"kind": "busy", "retryAfter": False},
    ],
)
def test_an_invalid_fault_is_refused_and_changes_nothing(
    elevate: SimulatedElevate, fault: Any
) -> None:
    # Given a fault
    elevate.fault({"kind": "reject"})
    # When an invalid one is put
    with connected(elevate) as connection:
        status, body, _ = send(connection, "PUT", "/_sim/fault", json.dumps(fault).encode())
    # Then it is refused with a reason, and the previous fault remains
    assert status == 400
    assert json.loads(body)["error"]
    assert ask(elevate, "GET", "/_sim/fault") == (200, {"kind": "reject"})
    with pytest.raises(ValueError, match=r"."):
        elevate.fault(fault)


def test_a_fault_may_come_in_pieces(elevate: SimulatedElevate) -> None:
    with connected(elevate) as connection:
        pieces = iter([b'{"kind":', b' "busy"}'])
        connection.request("PUT", "/_sim/fault", pieces, encode_chunked=True)
        assert connection.getresponse().status == 204
    assert ask(elevate, "GET", "/_sim/fault") == (200, {"kind": "busy"})


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 60_000, b'{"kind":"down"}' * 2])
def test_a_fault_that_is_not_json_is_refused(elevate: SimulatedElevate, body: bytes) -> None:
    with connected(elevate) as connection:
        assert send(connection, "PUT", "/_sim/fault", body)[0] == 400
    assert ask(elevate, "GET", "/_sim/fault") == (200, {"kind": "none"})


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
