"""Sweeps of due sessions: ours, the former one, bare POSTs, the lean and the plain sweep.

Contenders sweep the same sessions in turns, warm, with one Elevate and one database: with 16
threads and an Elevate that answers after 0 and 30 ms, then with 64 threads where Elevate takes
20 ms and DynamoDB 15. The table shows the most that the two can answer where they do so at once:
neither is the bottleneck.
"""

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fixtures import LEAN, OURS, PLAIN, YARDSTICK, before, dynamodb, notification, sweep_event
from instant_dynamodb import SHARDS
from processes import Function, Invoked, elevate, instant_dynamodb
from results import Result, Taken, at_least, at_most, in_turns, info

ROUNDS = 5
# Fewer than the 8,000 of one market of which the former sweep may leave some out.
COUNT = 4000
MANY = 10_000
# What warms up a sweep that is measured but once: the sessions of the last shard.
WARM_UP = 200

ALL = sweep_event(range(SHARDS))
ALL_BUT_LAST = sweep_event(range(SHARDS - 1))
LAST = sweep_event([SHARDS - 1])
# The most statements that DynamoDB takes in one call.
BATCH = 25


def sweep() -> list[Result]:
    """Measure all contenders, then those that matter with servers that take their time."""
    at_once = _in_turns("post", "ours", "before", "lean", "plain")
    at_30_ms = _in_turns("post", "ours", "before", elevate_ms=30)
    wide = _in_turns("ours", "before", elevate_ms=20, dynamodb_ms=15, threads=64)
    return [
        *(info(f"sweep: CPU ms a session, {n}", t.cpu / COUNT * 1000) for n, t in at_once.items()),
        at_most("sweep: CPU, ours / before", at_once["ours"].cpu / at_once["before"].cpu, 0.95),
        *_speeds("at 0 ms", at_once, before=1.2, lean=4.2),
        *_speeds("at 30 ms", at_30_ms, before=1.2, post=0.9),
        *_speeds("with 64 threads", wide, before=2),
        at_most(f"sweep: DynamoDB calls a session of {MANY:,}, at 30 ms", _calls_a_session(), 0.1),
        *_limits(COUNT / at_once["ours"].wall),
    ]


def _speeds(where: str, times: dict[str, Taken], **limits: float) -> Iterator[Result]:
    """Yield sessions per second, and how many times another's ours must be at least."""
    for name, time_ in times.items():
        yield info(f"sweep: sessions per second, {where}, {name}", COUNT / time_.wall)
    for name, limit in limits.items():
        faster = times[name].wall / times["ours"].wall
        yield at_least(f"sweep: sessions per second, {where}, ours / {name}", faster, limit)


def _in_turns(
    *names: str, elevate_ms: int = 0, dynamodb_ms: int = 0, threads: int = 16
) -> dict[str, Taken]:
    """Let contenders sweep in turns; return what a sweep takes."""
    contenders = {
        "post": ("bare.posts", COUNT, YARDSTICK),
        "ours": ("handler.sweep.handle", ALL, OURS),
        "before": ("handler.sweep.handle", ALL, before()),
        "lean": ("app.sweep", ALL, LEAN),
        "plain": ("sweep.handle", ALL, PLAIN),
    }
    with ExitStack() as stack:
        stack.enter_context(instant_dynamodb(dynamodb_ms))
        url = stack.enter_context(elevate(elevate_ms))
        turns = {
            name: stack.enter_context(_contender(*contenders[name], url, threads)) for name in names
        }
        return in_turns(turns, ROUNDS)


@contextlib.contextmanager
def _contender(
    handler: str, event: Any, package: Path, elevate_url: str, threads: int
) -> Iterator[Callable[[], Invoked]]:
    """Start a sweep, warm; each time it must end all sessions."""
    environment = _environment(f"due-{COUNT}", elevate_url) | {"SWEEP_CONCURRENCY": str(threads)}
    with Function(handler, environment, package) as function:

        def turn() -> Invoked:
            # Elevate forgets what it has received, which slows it down.
            path = f"{elevate_url}/_sim/notifications"
            urllib.request.urlopen(urllib.request.Request(path, method="DELETE")).close()
            invoked = function.invoke(event)
            with urllib.request.urlopen(f"{elevate_url}/_sim/summary") as answer:
                assert json.load(answer)["delivered"] == COUNT, handler
            return invoked

        turn()
        yield turn


def _calls_a_session() -> float:
    """Return how often our sweep calls the database, for each session."""

    def calls() -> int:
        count: int = dynamodb().describe_table(TableName="due")["Table"]["ItemCount"]
        return count

    with (
        instant_dynamodb(),
        elevate(30) as url,
        sweeper(f"due-{MANY}-{WARM_UP}", url) as function,
    ):
        already = calls()
        check(function.invoke(ALL_BUT_LAST), MANY)
        return (calls() - already) / MANY


def sweeper(table: str, elevate_url: str) -> Function:
    """Start our sweep function, warm."""
    function = Function("handler.sweep.handle", _environment(table, elevate_url))
    check(function.invoke(LAST), WARM_UP)
    return function


def check(invoked: Invoked, count: int) -> None:
    """Make sure that all were delivered."""
    swept = [line for line in invoked.lines() if line.get("message") == "sweep"]
    assert [line["delivered"] for line in swept] == [count], swept


def _environment(table: str, elevate_url: str) -> dict[str, str]:
    """Return a sweep's environment; on a busy machine an answer takes its time."""
    return {"TABLE_NAME": table, "ELEVATE_BASE_URL": elevate_url, "ELEVATE_READ_TIMEOUT": "10"}


def _limits(speed: float) -> list[Result]:
    """Return the most sessions that the servers can take, against what our sweep asks of them."""
    with instant_dynamodb() as dynamodb_url, elevate() as elevate_url:
        at_elevate = _answers_per_second(elevate_url, notification(), b"\r\n\r\n")
        at_dynamodb = _answers_per_second(dynamodb_url, _batch(), b"]}") * BATCH / 2
    return [
        info("limit: sessions per second the bench's Elevate can take", at_elevate),
        info("limit: sessions per second the bench's DynamoDB can take", at_dynamodb),
        at_most("limit: ours / the lower", speed / min(at_elevate, at_dynamodb), 0.75),
    ]


def _answers_per_second(url: str, request: bytes, end: bytes, count: int = 10_000) -> float:
    """Return how much a server answers to a client that costs next to nothing.

    The request is made beforehand and sent on all of 16 connections; then all answers are read.
    """
    address = urlsplit(url)
    wires = [socket.create_connection((address.hostname, address.port)) for _ in range(16)]
    started = time.perf_counter()
    for _ in range(count // len(wires)):
        for wire in wires:
            wire.sendall(request)
        for wire in wires:
            received = b""
            while not received.endswith(end):
                received += wire.recv(65_536)
    took = time.perf_counter() - started
    for wire in wires:
        wire.close()
    return count / took


def _batch() -> bytes:
    """Return a full batch of statements as it goes over the wire."""
    body = json.dumps({"Statements": [{"Statement": "x" * 350}] * BATCH}).encode()
    return (
        b"POST / HTTP/1.1\r\nX-Amz-Target: DynamoDB_20120810.BatchExecuteStatement\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body
