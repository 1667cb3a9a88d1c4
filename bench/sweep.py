"""A sweep of due sessions against bare POSTs, and against the straightforward sweep.

All contenders post 16 at a time to the same Elevate; the database is one that answers at once. What
those two can answer at most stands in the table: neither is anybody's bottleneck.
"""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests

import posts
from hands import FOREVER, dynamodb, new_session, new_urls, settings_of, silence, url_of
from local.stack import Stack
from processes import elevate, instant_dynamodb
from results import Result, at_least, at_most, compare, told
from sessions.aws import DynamoDB
from sessions.ending import Ending
from sessions.registry import BATCH, Registry
from sessions.session import Session
from sessions.settings import Settings
from sessions.sweeping import ALL_SHARDS, Sweeper
from sessions.telemetry import Telemetry

ROUNDS = 5
MANY = 10_000


def sweep(stack: Stack, count: int = 4000) -> list[Result]:
    """Measure all contenders in turns, then with an Elevate that takes its time."""
    settings = settings_of(stack, f"due-{count}")
    urls = new_urls(stack.elevate_url, count)
    with instant_dynamodb() as dynamodb_url, silence():
        straightforward(settings)  # the database makes its rows once
        times = compare(
            {
                "urllib3": lambda: posts.by_urllib3(urls),
                "requests": lambda: posts.by_requests(urls),
                "httpx": lambda: posts.by_httpx(urls),
                "aiohttp": lambda: posts.by_aiohttp(urls),
                "ours": lambda: ours(settings, count),
                "straightforward": lambda: straightforward(settings),
            },
            ROUNDS,
        )
        client = Counting(DynamoDB(settings.concurrency))
        many = replace(settings, table_name=f"due-{MANY}")
        ours(many, MANY, client)
        at_elevate = answers_per_second(stack.elevate_url, notification(settings), b"\r\n\r\n")
        at_dynamodb = answers_per_second(dynamodb_url, batch(), b"]}") * BATCH / 2
        with elevate(latency_ms=30) as slow:
            slowly = at_30_ms(replace(many, elevate_url=slow), MANY)
    us, straight = times["ours"], times["straightforward"]
    bare = {name: times[name].cpu for name in ("urllib3", "requests", "httpx", "aiohttp")}
    speed = count / us.wall
    return [
        *(told(f"sweep: CPU ms per POST, {n}", cpu / count * 1000) for n, cpu in bare.items()),
        told("sweep: CPU ms per session, ours, all included", us.cpu / count * 1000),
        told("sweep: the same, straightforward", straight.cpu / count * 1000),
        at_most("sweep: CPU, ours / bare POST by urllib3", us.cpu / bare["urllib3"], 1.25),
        *(
            told(f"sweep: CPU, ours / bare POST by {name}", us.cpu / bare[name])
            for name in ("requests", "httpx", "aiohttp")
        ),
        at_most(f"sweep: DynamoDB calls per session of {MANY:,}", client.calls / MANY, 0.1),
        at_least("sweep: sessions per second, ours / straightforward", straight.wall / us.wall, 4),
        at_least("sweep: per CPU second, ours / straightforward", straight.cpu / us.cpu, 4),
        told("limit: sessions per second, ours", speed),
        told("limit: sessions per second the bench's Elevate can take", at_elevate),
        told("limit: sessions per second the bench's DynamoDB can take", at_dynamodb),
        at_most("limit: ours / what the bench's Elevate can take", speed / at_elevate, 0.75),
        at_most("limit: ours / what the bench's DynamoDB can take", speed / at_dynamodb, 0.75),
        *slowly,
    ]


def ours(settings: Settings, count: int, client: Any = None) -> None:
    """Sweep, and make sure that all were delivered."""
    ending = Ending(settings, Registry(settings, client), telemetry=Telemetry())
    report = Sweeper(ending).sweep(ALL_SHARDS, FOREVER, "bench")
    assert report.delivered == count, report


def straightforward(settings: Settings) -> None:
    """Sweep as most would: scan, post, delete, in 16 threads."""
    client = dynamodb()
    with requests.Session() as http, ThreadPoolExecutor(settings.concurrency) as threads:

        def one(item: dict[str, Any]) -> None:
            session = Session(
                item["market"]["S"], item["sessionKey"]["S"], item["customerKey"]["S"]
            )
            http.post(url_of(settings.elevate_url, session)).raise_for_status()
            key = {name: item[name] for name in ("sessionKey", "market")}
            client.delete_item(TableName=settings.table_name, Key=key)

        for page in client.get_paginator("scan").paginate(TableName=settings.table_name):
            list(threads.map(one, page["Items"]))


def at_30_ms(settings: Settings, count: int) -> list[Result]:
    """Throughput with an Elevate that takes 30 ms, against concurrency / latency."""
    urls = new_urls(settings.elevate_url, count)
    times = compare(
        {"bare": lambda: posts.by_urllib3(urls), "ours": lambda: ours(settings, count)}, 1
    )
    us, bare = times["ours"], times["bare"]
    most = settings.concurrency / 0.030
    share = count / us.wall / most
    return [
        at_most("sweep: CPU per session at 30 ms, ours / bare POST", us.cpu / bare.cpu, 1.25),
        told("sweep: bare POSTs at 30 ms / (concurrency / latency)", count / bare.wall / most),
        at_least("sweep: throughput at 30 ms / (concurrency / latency)", share, 0.9),
    ]


def answers_per_second(url: str, request: bytes, end: bytes, count: int = 10_000) -> float:
    """Return what a server answers to a client that costs next to nothing.

    The request is made beforehand and sent over 16 connections, to all, then read from all.
    """
    address = urlsplit(url)
    wires = [
        socket.create_connection((address.hostname, address.port)) for _ in range(posts.CONCURRENCY)
    ]
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


def notification(settings: Settings) -> bytes:
    """Return an end notification as it goes over the wire."""
    target = url_of("", new_session())
    return f"POST {target} HTTP/1.1\r\nHost: elevate\r\nContent-Length: 0\r\n\r\n".encode()


def batch() -> bytes:
    """Return a full batch of statements as it goes over the wire."""
    body = json.dumps({"Statements": [{"Statement": "x" * 350}] * BATCH}).encode()
    return (
        b"POST / HTTP/1.1\r\nX-Amz-Target: DynamoDB_20120810.BatchExecuteStatement\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


class Counting:
    """A client that counts its calls."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls = 0

    def __getattr__(self, operation: str) -> Any:
        self.calls += 1
        return getattr(self._client, operation)
