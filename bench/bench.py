"""`make bench`: cold start, warm path and sweeps, beside what a user would pick instead.

One run, one machine: ratios count, not milliseconds. Contenders take turns, so that noise meets all
of them alike. `make bench N=100000` also sweeps that many sessions.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import botocore.session
import requests
import urllib3
from rich.console import Console
from rich.table import Table

from local.rie import LambdaFunction
from local.stack import BIN, REGION, ROOT, Stack
from registry_table import create_table
from sessions.aws import DynamoDB
from sessions.elevate import Elevate, query_of
from sessions.ending import ALL_SHARDS, Ending
from sessions.registry import Registry, shard_of
from sessions.session import Session
from sessions.settings import Settings
from sessions.telemetry import Telemetry

ROUNDS = 9
FOREVER = 1e12


@dataclass(frozen=True)
class Result:
    """One line of the table: a figure, what it is to be held against, and the target."""

    what: str
    figure: float
    target: str
    good: bool


def main() -> int:
    """Run all measurements; return 0 if every target is met."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }
    results: list[Result] = []
    with Stack(ROOT / ".local" / "bench") as stack:
        stack.start_elevate()
        os.environ["AWS_ENDPOINT_URL"] = stack.aws_endpoint_url
        say("Cold start …")
        results += cold(stack)
        say("Warm path …")
        results += warm(stack)
        say("Sweeps …")
        results += sweeps(stack)
        say("Growth …")
        results += growth(stack, most)
    show(results)
    return 0 if all(result.good for result in results) else 1


def say(text: str) -> None:
    """Tell what is under way."""
    print(text, file=sys.stderr, flush=True)


def show(results: list[Result]) -> None:
    """Print the table."""
    table = Table("measured", "figure", "target", "")
    for result in results:
        table.add_row(
            result.what, f"{result.figure:.2f}", result.target, "ok" if result.good else "MISSED"
        )
    Console(width=110).print(table)


def at_most(what: str, figure: float, limit: float) -> Result:
    """Return a result that must not be above its limit."""
    return Result(what, figure, f"≤ {limit:g}", figure <= limit)


def at_least(what: str, figure: float, limit: float) -> Result:
    """Return a result that must not be below its limit."""
    return Result(what, figure, f"≥ {limit:g}", figure >= limit)


def told(what: str, figure: float) -> Result:
    """Return a figure that has no target."""
    return Result(what, figure, "", True)


# -- cold start --------------------------------------------------------------------------------


def cold(stack: Stack) -> list[Result]:
    """First answer of `POST /sessions/end` under the Runtime Interface Emulator, medians."""
    folder = stack.folder / "cold"
    package, yardstick = folder / "ours" / "EndFunction", folder / "yardstick"
    subprocess.run([sys.executable, ROOT / "src" / "package.py", package], check=True)
    if not yardstick.exists():
        template = ROOT / "bench" / "yardstick" / "template.yaml"
        command = [str(BIN / "sam"), "build", "-t", str(template), "--build-dir", str(yardstick)]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, env=os.environ | {"PATH": path}, capture_output=True)
    table = new_table()
    environment = {
        "TABLE_NAME": table,
        "ELEVATE_BASE_URL": stack.elevate_url,
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }
    contenders = {
        "empty": (ROOT / "bench" / "yardstick", "empty.handle"),
        "ours": (package, "handler.end.handle"),
        "yardstick": (yardstick / "Yardstick", "app.handle"),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (task, handler) in contenders.items():
            with (
                tempfile.TemporaryDirectory() as scratch,
                LambdaFunction(task, handler, Path(scratch), environment) as function,
            ):
                event = api_event()
                started = time.perf_counter()
                answer = function.invoke(event)
                taken[name].append(time.perf_counter() - started)
                assert answer["statusCode"] == 204, answer
    empty, ours, straight = (statistics.median(taken[name]) for name in contenders)
    return [
        told("cold: empty handler, ms", empty * 1000),
        told("cold: ours, ms", ours * 1000),
        told("cold: straightforward build, ms", straight * 1000),
        at_most("cold: ours / straightforward build", ours / straight, 0.3),
        at_most("cold: ours / empty handler", ours / empty, 5),
    ]


# -- warm path ---------------------------------------------------------------------------------


def warm(stack: Stack) -> list[Result]:
    """One end through the handler against one POST and two writes by bare clients."""
    os.environ |= {"TABLE_NAME": new_table(), "ELEVATE_BASE_URL": stack.elevate_url}
    from handler import end

    client = dynamodb()
    pool = urllib3.PoolManager()
    table = os.environ["TABLE_NAME"]

    def bare() -> None:
        session = new_session()
        key = {"sessionKey": {"S": session.session_key}, "market": {"S": session.market}}
        for state in ("ending", "ended"):
            client.update_item(
                TableName=table,
                Key=key,
                UpdateExpression="SET #s = :s",
                ExpressionAttributeNames={"#s": "state"},
                ExpressionAttributeValues={":s": {"S": state}},
            )
            if state == "ending":
                pool.request("POST", url_of(stack, session))

    context = Context()

    def ours() -> None:
        answer = end.handle(api_event(), context)
        assert answer is not None
        assert answer["statusCode"] == 204

    with silence():
        wall, cpu = compare({"ours": ours, "bare": bare}, times=200)
    return [
        told("warm: ours, ms of CPU", cpu["ours"] * 1000),
        at_most("warm: CPU, ours / bare POST and two writes", cpu["ours"] / cpu["bare"], 1.25),
        at_most("warm: wall, ours / bare POST and two writes", wall["ours"] / wall["bare"], 1.25),
    ]


def compare(
    contenders: dict[str, Callable[[], None]], times: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return wall and CPU seconds per call, the median of rounds taken in turns."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            wall_started, cpu_started = time.perf_counter(), time.process_time()
            for _ in range(times):
                call()
            wall[name].append((time.perf_counter() - wall_started) / times)
            cpu[name].append((time.process_time() - cpu_started) / times)
    return (
        {name: statistics.median(figures) for name, figures in wall.items()},
        {name: statistics.median(figures) for name, figures in cpu.items()},
    )


# -- sweeps ------------------------------------------------------------------------------------


def sweeps(stack: Stack, count: int = 10_000) -> list[Result]:
    """A sweep of due sessions against bare POSTs, and against the straightforward sweep.

    All contenders post 16 at a time, those in threads with the same time-outs, to the same Elevate;
    the database is one that answers at once, so that it is nobody's bottleneck.
    """
    bare_cpu, by_requests, ours_cpu, ours_wall, straight_wall, straight_cpu = _lists(6)
    calls = 0
    with instant_dynamodb():
        settings = replace(settings_of(stack), table_name=f"due-{count}")
        straightforward(stack, settings.table_name)  # the database makes its rows once
        for _ in range(3):
            urls = [url_of(stack, new_session()) for _ in range(count)]
            bare_cpu.append(cpu_of(lambda: bare_posts(settings, urls)))  # noqa: B023
            by_requests.append(cpu_of(lambda: requests_posts(urls)))  # noqa: B023
            client = Counting(DynamoDB(settings.concurrency))
            ending = Ending(settings, Registry(settings, client), Elevate(settings), Telemetry())
            with silence():
                started = time.perf_counter()
                ours_cpu.append(cpu_of(lambda: delivered(ending, count)))  # noqa: B023
                ours_wall.append(time.perf_counter() - started)
            calls = client.calls
            started = time.perf_counter()
            straight_cpu.append(cpu_of(lambda: straightforward(stack, settings.table_name)))
            straight_wall.append(time.perf_counter() - started)
        at_30 = at_30_ms(settings, count)
    bare, ours, straight = map(statistics.median, (bare_cpu, ours_cpu, straight_cpu))
    speed = statistics.median(straight_wall) / statistics.median(ours_wall)
    return [
        told("sweep: CPU ms per session, bare PoolManager.request", bare / count * 1000),
        told("sweep: the same by requests", statistics.median(by_requests) / count * 1000),
        told("sweep: ours, all included", ours / count * 1000),
        told("sweep: straightforward, all included", straight / count * 1000),
        at_most("sweep: CPU per session, ours / bare POST", ours / bare, 1.25),
        at_most("sweep: DynamoDB calls per session", calls / count, 0.1),
        at_least("sweep: sessions per second, ours / straightforward", speed, 4),
        at_least("sweep: sessions per CPU second, ours / straightforward", straight / ours, 4),
        *at_30,
    ]


def _lists(count: int) -> Iterator[list[float]]:
    return ([] for _ in range(count))


def bare_posts(settings: Settings, urls: list[str]) -> None:
    """Post to all, as bare as can be."""
    timeout = urllib3.Timeout(settings.connect_timeout, settings.read_timeout)
    pool = urllib3.PoolManager(maxsize=settings.concurrency, block=True, timeout=timeout)
    with ThreadPoolExecutor(settings.concurrency) as threads:
        list(threads.map(lambda url: pool.request("POST", url), urls))


def requests_posts(urls: list[str]) -> None:
    """Post to all with requests."""
    with requests.Session() as http, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda url: http.post(url, timeout=(1, 3)), urls))


def at_30_ms(settings: Settings, count: int) -> list[Result]:
    """Throughput with an Elevate that takes 30 ms, against concurrency / latency."""
    command = [sys.executable, "-m", "local.simulated_elevate", "--latency-ms", "30"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout
        settings = replace(settings, elevate_url=slow.stdout.readline().split()[-1])
        urls = [f"{settings.elevate_url}{path_of(new_session())}" for _ in range(count)]
        started = time.perf_counter()
        bare = cpu_of(lambda: bare_posts(settings, urls))
        bare_wall = time.perf_counter() - started
        ending = Ending(settings, telemetry=Telemetry())
        with silence():
            started = time.perf_counter()
            ours = cpu_of(lambda: delivered(ending, count))
            wall = time.perf_counter() - started
        slow.terminate()
    most = settings.concurrency / 0.030
    return [
        at_most("sweep: CPU per session at 30 ms, ours / bare POST", ours / bare, 1.25),
        told("sweep: bare POSTs at 30 ms / (concurrency / latency)", count / bare_wall / most),
        at_least("sweep: throughput at 30 ms / (concurrency / latency)", count / wall / most, 0.9),
    ]


@contextlib.contextmanager
def instant_dynamodb() -> Iterator[None]:
    """Put a DynamoDB that answers at once in the emulator's place."""
    command = [sys.executable, str(Path(__file__).with_name("instant_dynamodb.py"))]
    emulator = os.environ["AWS_ENDPOINT_URL"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
        try:
            yield
        finally:
            os.environ["AWS_ENDPOINT_URL"] = emulator
            server.terminate()


def growth(stack: Stack, most: int) -> list[Result]:
    """Time per session and memory of a sweep, as the due sessions grow tenfold."""
    results, first = [], None
    size = 1000
    while size <= most:
        settings = replace(settings_of(stack), table_name=new_table())
        fill(settings, size)
        ending = Ending(settings, telemetry=Telemetry())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with silence():
            started = time.perf_counter()
            delivered(ending, size)
            per_session = (time.perf_counter() - started) / size
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if first is None:
            first = per_session
        else:
            results.append(
                at_most(f"growth: time per session, {size} / 1000", per_session / first, 1.1)
            )
        results.append(at_most(f"growth: peak memory grown by, MB, {size}", grown, 20))
        size *= 10
    return results


def delivered(ending: Ending, count: int) -> None:
    """Sweep, and make sure that all were delivered."""
    report = ending.sweep(ALL_SHARDS, FOREVER, "bench")
    assert report.delivered == count, report


def straightforward(stack: Stack, table: str) -> None:
    """Sweep as most would: scan, post, delete, in 16 threads."""
    client = dynamodb()
    with requests.Session() as http, ThreadPoolExecutor(16) as threads:

        def one(item: dict[str, Any]) -> None:
            session = Session(
                item["market"]["S"], item["sessionKey"]["S"], item["customerKey"]["S"]
            )
            http.post(url_of(stack, session)).raise_for_status()
            key = {name: item[name] for name in ("sessionKey", "market")}
            client.delete_item(TableName=table, Key=key)

        for page in client.get_paginator("scan").paginate(TableName=table):
            list(threads.map(one, page["Items"]))


# -- hands -------------------------------------------------------------------------------------


class Counting:
    """A client that counts its calls."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls = 0

    def __getattr__(self, operation: str) -> Any:
        self.calls += 1
        return getattr(self._client, operation)


class Context:
    """What a function needs of Lambda's context object."""

    aws_request_id = "bench"

    def get_remaining_time_in_millis(self) -> int:
        """Return the time an invocation has left."""
        return 60_000


def dynamodb() -> Any:
    """Return a bare client."""
    return botocore.session.get_session().create_client("dynamodb")


def settings_of(stack: Stack) -> Settings:
    """Return settings that send to the stack's Elevate."""
    return Settings("", "", stack.elevate_url, connect_timeout=5, read_timeout=10)


def new_session() -> Session:
    """Return a session with fresh keys."""
    return Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))


def new_table() -> str:
    """Create a registry; return its name."""
    name = f"bench-{uuid.uuid4()}"
    create_table(dynamodb(), name)
    return name


def fill(settings: Settings, count: int) -> None:
    """Write sessions that are due, as tracking would have."""
    client = dynamodb()
    now = int(time.time())

    def row(session: Session) -> dict[str, Any]:
        numbers = {
            "activeAt": now - 3600,
            "dueAt": now - 60,
            "sweepShard": shard_of(session.session_key, settings.shards),
            "attempts": 0,
            "leaseUntil": 0,
        }
        texts = {
            "market": session.market,
            "sessionKey": session.session_key,
            "customerKey": str(session.customer_key),
            "state": "open",
        }
        return {n: {"N": str(v)} for n, v in numbers.items()} | {
            n: {"S": v} for n, v in texts.items()
        }

    def write(size: int) -> None:
        puts = [{"PutRequest": {"Item": row(new_session())}} for _ in range(size)]
        client.batch_write_item(RequestItems={settings.table_name: puts})

    whole, rest = divmod(count, 25)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, [25] * whole + [rest] * bool(rest)))


def url_of(stack: Stack, session: Session) -> str:
    """Return the URL of a session's end notification."""
    return f"{stack.elevate_url}{path_of(session)}"


def path_of(session: Session) -> str:
    """Return path and query of a session's end notification."""
    return f"/api/v2/notifications/end?{query_of(session, 'web-v2')}"


def api_event() -> dict[str, Any]:
    """Return the sample API event with fresh keys."""
    event: dict[str, Any] = json.loads((ROOT / "events" / "api_end.json").read_text())
    body = {
        "market": "UK",
        "customerKey": str(uuid.uuid4()),
        "sessionKey": str(uuid.uuid4()),
    }
    return event | {"body": json.dumps(body)}


def cpu_of(work: Callable[[], Any]) -> float:
    """Return the CPU seconds this process spends on some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Write logs and metrics for real, to nowhere."""
    keep = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(keep, 1)
        os.close(nowhere)
        os.close(keep)


if __name__ == "__main__":
    sys.exit(main())
