"""After three time-outs notifications are held back, for one market alone."""

import itertools
import socket
from dataclasses import replace

import pytest

from sessions.breaker import PAUSE, TIMEOUTS, Breaker
from sessions.elevate import Elevate
from sessions.settings import Settings
from wire import NO_CONTENT, SESSION, answering, client, http, never, read_request, wire


def test_after_three_time_outs_no_caller_waits() -> None:
    with wire(never) as server:
        elevate = client(server.url, read_timeout=0.05)
        for _ in range(3):
            assert elevate.notify(SESSION).sent
        held_back = elevate.notify(SESSION)
        assert (held_back.kind, held_back.sent) == ("unavailable", False)
        assert held_back.reason == "not sent: Elevate has timed out"
        assert server.connections == 3
        assert elevate.is_held_back("UK")
        assert not elevate.is_held_back("SE")
        assert elevate.notify(replace(SESSION, market="SE")).sent, "another market is not held back"


def test_a_failure_that_takes_as_long_as_a_time_out_counts_as_one() -> None:
    """For example, a resolver that hangs: none of our time-outs bounds it."""
    now = itertools.count(step=2)
    with wire(answering(b"")) as server:
        url = server.url
    elevate = Elevate(Settings("table", "bus", url), clock=lambda: float(next(now)))
    kinds = [elevate.notify(SESSION).reason.split(":")[0] for _ in range(3)]
    assert kinds == ["NewConnectionError"] * 3
    assert elevate.is_held_back("UK")


def test_quick_failures_do_not_open_the_breaker() -> None:
    with wire(answering(http("503 Busy"))) as server:
        elevate = client(server.url)
        assert all(elevate.notify(SESSION).sent for _ in range(5))
    # Now nothing listens there any more.
    assert all(elevate.notify(SESSION).sent for _ in range(5))
    assert elevate.notify(SESSION).reason.startswith("NewConnectionError")


@pytest.mark.parametrize("answer", [NO_CONTENT, b""], ids=["answer", "failure"])
def test_what_comes_at_once_between_time_outs_restarts_the_count(answer: bytes) -> None:
    """Elevate or its network answers, so nobody waits in vain."""
    quick = 2

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == quick:
            connection.sendall(answer)
        else:
            never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, read_timeout=0.05)
        held_back = []
        for _ in range(quick + 1 + TIMEOUTS):
            elevate.notify(SESSION)
            held_back.append(elevate.is_held_back("UK"))
    assert held_back == [False] * (quick + TIMEOUTS) + [True]


def test_one_caller_probes_after_the_pause_and_its_success_closes_the_breaker() -> None:
    now = [1000.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(3):
        assert breaker.lets_through("UK")
        breaker.timed_out("UK")
    assert not breaker.lets_through("UK")
    now[0] += 11
    assert [breaker.lets_through("UK") for _ in range(4)] == [True, False, False, False]
    breaker.timed_out("UK")
    assert not breaker.lets_through("UK")
    now[0] += 11
    assert breaker.lets_through("UK")
    breaker.answered("UK")
    assert all(breaker.lets_through("UK") for _ in range(4))


def test_many_functions_do_not_probe_in_step() -> None:
    now = [1000.0]
    breakers = [Breaker(lambda: now[0]) for _ in range(100)]
    for breaker in breakers:
        for _ in range(TIMEOUTS):
            breaker.timed_out("UK")
    probing = []
    for at in (0.49, 0.75, 1.01):
        now[0] = 1000 + at * PAUSE
        probing.append(sum(not breaker.is_open("UK") for breaker in breakers))
    assert (probing[0], probing[2]) == (0, 100)
    assert 10 < probing[1] < 90
