"""The faults of the simulated Elevate are real ones."""

import contextlib
import http.client
import json
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from local.elevate_rules import WEB_V2
from local.simulated_elevate import SimulatedElevate
from simulated import SESSION, V2, ask, connected, raw, send, wait_for_one


def switch(simulated: SimulatedElevate, **fault: Any) -> None:
    assert ask(simulated, "PUT", "/_sim/fault", fault)[0] == 204


def notify(simulated: SimulatedElevate, timeout: float = 10) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(simulated.url).netloc, timeout=timeout)
    with contextlib.closing(connection):
        status, _, headers = send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}")
        return status, headers


def test_down_drops_each_connection_but_not_the_controls(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="down")
    for _ in range(2):
        with pytest.raises(http.client.RemoteDisconnected):
            notify(simulated)
    assert ask(simulated, "GET", "/_sim/fault") == (200, {"kind": "down"})
    kept = simulated.notifications()
    assert [(one["status"], one["fault"]) for one in kept] == [(None, "down")] * 2
    assert simulated.summary()["delivered"] == 0
    # When it is up again, then it delivers
    switch(simulated, kind="none")
    assert notify(simulated)[0] == 204


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
def test_busy_answers_503(simulated: SimulatedElevate, given: Any, header: str | None) -> None:
    switch(simulated, kind="busy", retryAfter=given)
    status, headers = notify(simulated)
    assert (status, headers.get("Retry-After")) == (503, header)
    (kept,) = simulated.notifications()
    assert (kept["status"], kept["fault"]) == (503, "busy")
    assert simulated.summary()["delivered"] == 0


def test_slow_takes_the_notification_and_answers_late(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="slow", seconds=0.3)
    before = time.monotonic()
    assert notify(simulated)[0] == 204
    assert time.monotonic() - before >= 0.3
    # And a notification whose client gave up is still delivered
    switch(simulated, kind="slow", seconds=60)
    with pytest.raises(TimeoutError):
        notify(simulated, timeout=0.2)
    kept = simulated.notifications()
    assert [(one["status"], one["fault"]) for one in kept] == [(204, "slow")] * 2
    assert simulated.summary()["deliveredTwice"] == [SESSION]


def test_hang_never_answers(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="hang")
    with pytest.raises(TimeoutError):
        notify(simulated, timeout=0.2)
    (kept,) = simulated.notifications()
    assert (kept["status"], kept["fault"]) == (None, "hang")
    assert simulated.summary()["delivered"] == 0


@pytest.mark.parametrize("lasts", [None, {"seconds": 0.5}, {"for": 0.5}])
def test_hang_lets_go_when_the_fault_changes(
    simulated: SimulatedElevate, lasts: dict[str, float] | None
) -> None:
    # Given a client that hangs, whatever else it sends
    switch(simulated, kind="hang", **(lasts or {}))
    with raw(simulated) as connection:
        connection.sendall(f"POST {WEB_V2} HTTP/1.1\r\nHost: e\r\n\r\n".encode())
        wait_for_one(simulated)
        connection.sendall(b"POST")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(10)
        # When the fault changes, or has lasted
        if not lasts:
            switch(simulated, kind="none")
        # Then the connection is closed without an answer
        assert connection.recv(100) == b""


@pytest.mark.parametrize(("query", "status"), [(V2, 204), ({}, 400)])
def test_reset_comes_in_the_middle_of_the_answer(
    simulated: SimulatedElevate, query: dict[str, str], status: int
) -> None:
    switch(simulated, kind="reset")
    with raw(simulated) as connection:
        target = f"{WEB_V2}?{urlencode(query)}"
        connection.sendall(f"POST {target} HTTP/1.1\r\nHost: e\r\n\r\n".encode())
        with connection.makefile("rb") as answer, pytest.raises(ConnectionResetError):
            answer.read()
    # And Elevate has nevertheless taken it, or refused it
    (kept,) = simulated.notifications()
    assert (kept["status"], kept["fault"]) == (status, "reset")
    assert simulated.summary()["delivered"] == (status == 204)


def test_reject_answers_400(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="reject")
    assert notify(simulated)[0] == 400
    (kept,) = simulated.notifications()
    assert (kept["status"], kept["fault"]) == (400, "reject")


def test_garbage_is_not_http(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="garbage")
    with pytest.raises(http.client.BadStatusLine):
        notify(simulated)
    (kept,) = simulated.notifications()
    assert (kept["status"], kept["fault"]) == (None, "garbage")
    assert simulated.summary()["delivered"] == 0


def test_flaky_is_as_flaky_as_its_rate(simulated: SimulatedElevate) -> None:
    # When it is never flaky, then all is delivered
    switch(simulated, kind="flaky", rate=0)
    for _ in range(20):
        assert notify(simulated)[0] == 204
    assert not any("fault" in one for one in simulated.notifications())
    # When it always is, then each notification meets one of the faults
    simulated.clear()
    switch(simulated, kind="flaky", rate=1, seconds=0.01)
    for _ in range(60):
        with contextlib.suppress(ConnectionError):
            notify(simulated)
    seen = {one["fault"] for one in simulated.notifications()}
    assert seen == {"busy", "reset", "down", "slow"}


def test_a_head_request_meets_a_fault_too(simulated: SimulatedElevate) -> None:
    switch(simulated, kind="busy")
    with connected(simulated) as connection:
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
def test_a_fault_lasts_as_long_as_it_says(
    simulated: SimulatedElevate, fault: dict[str, Any]
) -> None:
    # Given a fault with an end
    simulated.fault(fault)
    assert ask(simulated, "GET", "/_sim/fault") == (200, fault)
    # When its time is up, then there is none
    deadline = time.monotonic() + 10
    while ask(simulated, "GET", "/_sim/fault")[1] != {"kind": "none"}:
        assert time.monotonic() < deadline
    assert notify(simulated)[0] == 204


def test_a_new_fault_outlives_the_end_of_the_previous_one(simulated: SimulatedElevate) -> None:
    # Given a fault that ends soon, replaced by one without an end
    simulated.fault({"kind": "busy", "seconds": 0.05})
    simulated.fault({"kind": "reject"})
    # When the first would have ended, then the second is still there
    time.sleep(0.15)
    assert ask(simulated, "GET", "/_sim/fault") == (200, {"kind": "reject"})


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
    simulated: SimulatedElevate, fault: Any
) -> None:
    # Given a fault
    simulated.fault({"kind": "reject"})
    # When an invalid one is put
    with connected(simulated) as connection:
        status, body, _ = send(connection, "PUT", "/_sim/fault", json.dumps(fault).encode())
    # Then it is refused with a reason, and the previous fault remains
    assert status == 400
    assert json.loads(body)["error"]
    assert ask(simulated, "GET", "/_sim/fault") == (200, {"kind": "reject"})
    with pytest.raises(ValueError, match=r"."):
        simulated.fault(fault)


def test_a_fault_may_come_in_pieces(simulated: SimulatedElevate) -> None:
    with connected(simulated) as connection:
        pieces = iter([b'{"kind":', b' "busy"}'])
        connection.request("PUT", "/_sim/fault", pieces, encode_chunked=True)
        assert connection.getresponse().status == 204
    assert ask(simulated, "GET", "/_sim/fault") == (200, {"kind": "busy"})


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 60_000, b'{"kind":"down"}' * 2])
def test_a_fault_that_is_not_json_is_refused(simulated: SimulatedElevate, body: bytes) -> None:
    with connected(simulated) as connection:
        assert send(connection, "PUT", "/_sim/fault", body)[0] == 400
    assert ask(simulated, "GET", "/_sim/fault") == (200, {"kind": "none"})
