"""A sweep of due sessions against bare POSTs, and against the lean and the plain sweep.

All of them post 16 at a time to one Elevate; the database is one that answers at once. The table
shows the most that those two can answer: neither is the bottleneck.
"""

import contextlib
import json
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fixtures import LEAN, PLAIN, YARDSTICK, dynamodb, notification, sweep_event
from local.stack import ROOT
from processes import Function, Invoked, elevate, instant_dynamodb
from results import Result, at_least, at_most, in_turns, info
from sessions.registry import BATCH
from sessions.session import MAX_SHARDS
from sessions.settings import Settings

ROUNDS = 5
MANY = 10_000
# To warm up with: the sessions of the last shard.
WARM_UP = 200

CONCURRENCY = Settings("", "", "").concurrency
ALL = sweep_event(range(MAX_SHARDS - 1))
LAST = sweep_event([MAX_SHARDS - 1])


def sweep(count: int = 4000) -> list[Result]:
    """Measure all contenders in turns, then with an Elevate that takes its time."""
    with ExitStack() as stack:
        dynamodb_url = stack.enter_context(instant_dynamodb())
        elevate_url = stack.enter_context(elevate())
        contenders = {
            "post": _contender("bare.posts", elevate_url, count, count, YARDSTICK),
            "ours": _contender("handler.sweep.handle", elevate_url, count, ALL),
            "lean": _contender("app.sweep", elevate_url, count, ALL, LEAN),
            "plain": _contender("sweep.handle", elevate_url, count, ALL, PLAIN),
        }
        turns = {name: stack.enter_context(contender) for name, contender in contenders.items()}
        times = in_turns(turns, ROUNDS)
        _forget(elevate_url)
        at_elevate = _answers_per_second(elevate_url, notification(), b"\r\n\r\n")
        at_dynamodb = _answers_per_second(dynamodb_url, _batch(), b"]}") * BATCH / 2
        results = [
            *(
                info(f"sweep: CPU ms a session, {n}", t.cpu / count * 1000)
                for n, t in times.items()
            ),
            *(info(f"sweep: sessions per second, {n}", count / t.wall) for n, t in times.items()),
            at_most("sweep: CPU, ours / bare POST", times["ours"].cpu / times["post"].cpu, 1.8),
            at_least(
                "sweep: sessions per second, ours / plain",
                times["plain"].wall / times["ours"].wall,
                3,
            ),
            info(
                "sweep: sessions per second, ours / lean", times["lean"].wall / times["ours"].wall
            ),
            info("limit: sessions per second the bench's Elevate can take", at_elevate),
            info("limit: sessions per second the bench's DynamoDB can take", at_dynamodb),
        ]
        limit = min(at_elevate, at_dynamodb)
        results.append(at_most("limit: ours / the lower", count / times["ours"].wall / limit, 0.75))
        return [*results, *_at_30_ms()]


@contextlib.contextmanager
def _contender(
    handler: str, elevate_url: str, count: int, event: Any, package: Path = ROOT / "src"
) -> Iterator[Callable[[], Invoked]]:
    """Start a sweep of `count` sessions, warm; each time it must end them all."""
    environment = {"TABLE_NAME": f"due-{count}-{WARM_UP}", "ELEVATE_BASE_URL": elevate_url}
    with Function(handler, environment, package) as function:

        def turn() -> Invoked:
            _forget(elevate_url)
            invoked = function.invoke(event)
            with urllib.request.urlopen(f"{elevate_url}/_sim/summary") as answer:
                assert json.load(answer)["delivered"] == count, handler
            return invoked

        turn()
        yield turn


def _forget(elevate_url: str) -> None:
    """Let Elevate forget what it has received, which slows it down."""
    request = urllib.request.Request(f"{elevate_url}/_sim/notifications", method="DELETE")
    urllib.request.urlopen(request).close()


def _at_30_ms() -> list[Result]:
    """Measure throughput with an Elevate that takes 30 ms, against concurrency / latency."""
    most = CONCURRENCY / 0.030
    with elevate(latency_ms=30) as url:
        with sweeper(f"due-{MANY}-{WARM_UP}", url) as function:
            before = _calls()
            ours = function.invoke(ALL)
            calls = _calls() - before
        check(ours, MANY)
        environment = {"TABLE_NAME": "", "ELEVATE_BASE_URL": url}
        with Function("bare.posts", environment, YARDSTICK) as function:
            function.invoke(WARM_UP)
            post = function.invoke(MANY)
    return [
        at_most(f"sweep: DynamoDB calls a session of {MANY:,}", calls / MANY, 0.1),
        info("sweep: bare POSTs at 30 ms / (concurrency / latency)", MANY / post.wall / most),
        at_least(
            "sweep: throughput at 30 ms / (concurrency / latency)", MANY / ours.wall / most, 0.85
        ),
    ]


def _calls() -> int:
    """Return how many calls the database has answered."""
    count: int = dynamodb().describe_table(TableName="due")["Table"]["ItemCount"]
    return count


def sweeper(table: str, elevate_url: str) -> Function:
    """Start our sweep function, warm."""
    environment = {
        "TABLE_NAME": table,
        "ELEVATE_BASE_URL": elevate_url,
        "ELEVATE_READ_TIMEOUT": "10",
        "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
    }
    function = Function("handler.sweep.handle", environment)
    check(function.invoke(LAST), WARM_UP)
    return function


def check(invoked: Invoked, count: int) -> None:
    """Make sure that all were delivered."""
    swept = [line for line in invoked.lines() if line.get("message") == "sweep"]
    assert [line["delivered"] for line in swept] == [count], swept


def _answers_per_second(url: str, request: bytes, end: bytes, count: int = 10_000) -> float:
    """Return how much a server answers to a client that costs next to nothing.

    The request is made beforehand and sent on all of 16 connections; then all answers are read.
    """
    address = urlsplit(url)
    wires = [socket.create_connection((address.hostname, address.port)) for _ in range(CONCURRENCY)]
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
