"""What an end, a track and a tick take: counted and measured through the functions' handlers.

DynamoDB's request units and calls are counted on the emulator by DynamoDB's rules (units.py); bytes
of log and processor time are measured against a database that answers at once. Only waits are
assumed: an invocation lasts as long as it waits, plus its processor time stretched by the share of
a processor that its memory buys.
"""

import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path
from typing import Any

import yaml

from fixtures import (
    LEAN,
    OURS,
    YARDSTICK,
    dynamodb,
    end_call,
    event,
    new_session,
    new_sessions,
    new_table,
    sample,
    track_call,
    yardstick,
)
from local.stack import Stack
from processes import Function, Invoked, elevate, instant_dynamodb
from registry_table import template
from sessions.settings import Settings
from units import size_of

PRICES = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
ASSUMED = PRICES["assumed"]
DEFAULTS = Settings("", "", "")
LOG_DAYS = template()["Parameters"]["LogRetentionDays"]["Default"]

TIMES = 100  # invocations
LIST = 100  # sessions in one event
SWEEP = 1000  # sessions in one sweep
DUE = 400  # sessions in a sweep whose units are counted
CLERKS = 3  # threads of a sweep that call DynamoDB


@dataclass(frozen=True)
class Size:
    """The memory of a function in MB, and its processor."""

    memory: int
    architecture: str


@dataclass(frozen=True)
class Work:
    """What one end, track or tick takes; of a list or a sweep, one session's share."""

    ms: float  # billed
    size: Size
    log_bytes: float
    units: dict[str, float]  # DynamoDB's writes, reads and calls
    requests: float = 1

    @property
    def parts(self) -> dict[str, float]:
        """Return what a million of them cost, by service, without what calls the function."""
        function, dynamo, logs = PRICES["lambda"], PRICES["dynamodb"], PRICES["cloudwatch"]
        months = LOG_DAYS / 30 * ASSUMED["log_compression"]
        log_gb = logs["log_gb"] + logs["log_storage_gb_month"] * months
        gb_second = function[f"gb_second_{self.size.architecture}"]
        return {
            "Lambda": self.ms * 1000 * self.size.memory / 1024 * gb_second
            + self.requests * function["million_requests"],
            "DynamoDB requests": self.units["writes"] * dynamo["million_write_units"]
            + self.units["reads"] * dynamo["million_read_units"],
            "logs": self.log_bytes / 1000 * log_gb,
        }


def works(stack: Stack) -> tuple[dict[str, Work], set[tuple[str, ...]]]:
    """Return what each operation takes, and the metrics that ours wrote meanwhile."""
    counted, seen = _counted(stack), dict(_measured(stack))
    sizes = _sizes()
    wait, call = ASSUMED["elevate_ms"], ASSUMED["dynamodb_ms"]
    threads = DEFAULTS.concurrency

    def work(name: str, function: str, waits: float, of: int = 1) -> Work:
        """Put together what `of` sessions take if they share an invocation."""
        size, count = sizes[function], len(seen[name].walls)
        cpu_ms = seen[name].cpu / count * 1000
        log_bytes = len(seen[name].written.encode()) / count
        if function in ("Lean", "Plain"):  # ours log none of these (SystemLogLevel)
            log_bytes += ASSUMED["platform_log_bytes"]
        return Work(
            ms=(waits + cpu_ms * ASSUMED["vcpu_mb"] / size.memory) / of,
            size=size,
            log_bytes=log_bytes / of,
            requests=1 / of,
            units=counted[name],
        )

    def ending(name: str) -> float:
        return float(wait + counted[name]["calls"] * call)

    # Threads wait side by side. What a sweep's clerks wait for is counted as if its notifiers did.
    done = {
        "end": work("end", "End", ending("end")),
        "event": work("event", "End", ending("event")),
        "list": work("list", "End", ending("list") * LIST / threads, LIST),
        "swept": work("swept", "Sweep", ending("swept") * SWEEP / threads, SWEEP),
        "idle": work("idle", "Sweep", counted["idle"]["calls"] / CLERKS * call),
        "track": work("track", "Track", call),
        "track event": work("track event", "Track", call),
        "lean": work("lean", "Lean", ending("lean")),
        "lean swept": work("lean swept", "Lean", ending("lean swept") * SWEEP / threads, SWEEP),
        "plain": work("plain", "Plain", ending("plain")),
    }
    done["tracked"] = replace(done["end"], units=counted["tracked"])
    done["slack"] = replace(done["track event"], units=counted["slack"])
    done["moved"] = replace(done["track event"], units=counted["moved"])
    ours = [seen[name] for name in seen if not name.startswith(("lean", "plain"))]
    return done, {metric for invoked in ours for metric in _metrics(invoked)}


def _counted(stack: Stack) -> dict[str, dict[str, float]]:
    """Count request units and calls, each of one session."""
    now = int(time.time())
    long_ago = now - DEFAULTS.idle - 60
    end, track, swept = "handler.end.handle", "handler.track.handle", "handler.sweep.handle"
    tracked = [new_session()]
    due = [
        event("session_active", some, long_ago)
        for some in batched(new_sessions(DUE), LIST, strict=True)
    ]
    many = new_sessions(LIST)
    tick = sample("scheduled_sweep")
    table, lean_table = new_table(), new_table()

    def units(handler: str, *events: Any, of: int = 1, **where: Any) -> dict[str, float]:
        environment = {"TABLE_NAME": table, "ELEVATE_BASE_URL": stack.elevate_url} | where
        package = environment.pop("package", OURS)
        with Function(handler, environment, package, metered=True) as function:
            return {n: count / of for n, count in function.invoke(*events).units.items()}

    counted = {
        "idle": units(swept, tick),
        "end": units(end, end_call()),
        "event": units(end, event("session_ended", [new_session()])),
        "list": units(end, event("session_ended", many), of=LIST),
        "track": units(track, track_call()),
        "track event": units(track, event("session_active", tracked, now - 100)),
        "slack": units(track, event("session_active", tracked, now - 99)),
        "moved": units(track, event("session_active", tracked, now)),
        "tracked": units(end, event("session_ended", tracked)),
        "lean": units("app.handle", end_call(), package=LEAN, TABLE_NAME=lean_table),
        "plain": units("app.handle", end_call(), package=yardstick(stack) / "Plain"),
    }
    units(track, *due)
    units(track, *due, TABLE_NAME=lean_table)
    counted["swept"] = units(swept, tick, of=DUE)
    # A sweep looks at all shards, whatever it finds.
    counted["swept"]["reads"] -= counted["idle"]["reads"] / DUE
    counted["lean swept"] = units("app.sweep", tick, of=DUE, package=LEAN, TABLE_NAME=lean_table)
    return counted


def _measured(stack: Stack) -> Iterator[tuple[str, Invoked]]:
    """Invoke warm functions; yield what was seen of each."""

    def seen(handler: str, made: Callable[[], Any], package: Path = OURS, due: int = 0) -> Invoked:
        environment = {"TABLE_NAME": f"due-{due}", "ELEVATE_BASE_URL": url}
        with Function(handler, environment, package) as function:
            function.invoke(*(made() for _ in range(1 if due else 20)))
            return function.invoke(*(made() for _ in range(1 if due else TIMES)))

    def tick() -> Any:
        return sample("scheduled_sweep")

    with instant_dynamodb(), elevate() as url:
        end, track, swept = "handler.end.handle", "handler.track.handle", "handler.sweep.handle"
        yield "end", seen(end, end_call)
        yield "event", seen(end, lambda: event("session_ended", [new_session()]))
        yield "list", seen(end, lambda: event("session_ended", new_sessions(LIST)))
        yield "track", seen(track, track_call)
        yield "track event", seen(track, lambda: event("session_active", [new_session()]))
        yield "idle", seen(swept, tick)
        yield "swept", seen(swept, tick, due=SWEEP)
        yield "lean", seen("app.handle", end_call, LEAN)
        yield "lean swept", seen("app.sweep", tick, LEAN, SWEEP)
        yield "plain", seen("app.handle", end_call, yardstick(stack) / "Plain")


def tracking_units(views: int, *, slack: bool) -> float:
    """Return the write units of a visit of so many page views, each reported by an event."""
    session, start = [new_session()], time.time() - views * ASSUMED["page_view_seconds"]
    times = [start + number * ASSUMED["page_view_seconds"] for number in range(views)]
    # The slack is a tenth of the idle time: of a minute, six seconds. Each page view comes later.
    minutes = DEFAULTS.idle / 60 if slack else 1
    environment = {
        "TABLE_NAME": new_table(),
        "ELEVATE_BASE_URL": "http://127.0.0.1",
        "SESSION_IDLE_MINUTES": str(minutes),
    }
    with Function("handler.track.handle", environment, metered=True) as function:
        events = [event("session_active", session, at) for at in times]
        return function.invoke(*events).units["writes"]


def stored(stack: Stack) -> tuple[int, float]:
    """Return the size of the row that remains of an ended session, and for how many seconds."""
    session, table = new_session(), new_table()
    environment = {"TABLE_NAME": table, "ELEVATE_BASE_URL": stack.elevate_url}
    with Function("handler.end.handle", environment) as function:
        function.invoke(event("session_ended", [session]))
    (row,) = dynamodb().scan(TableName=table)["Items"]
    return size_of(row), float(row["expiresAt"]["N"]) - time.time()


def _sizes() -> dict[str, Size]:
    """Return the functions' sizes, as the templates have them."""
    ours, others = template(), yaml.safe_load((YARDSTICK / "template.yaml").read_text())
    usual = ours["Globals"]["Function"]["MemorySize"]
    architecture = ours["Parameters"]["Architecture"]["Default"]
    sizes = {}
    for name in ("End", "Track", "Sweep"):
        properties = ours["Resources"][f"{name}Function"]["Properties"]
        sizes[name] = Size(properties.get("MemorySize", usual), architecture)
    for name, resource in others["Resources"].items():
        properties = resource["Properties"]
        (architecture,) = properties.get("Architectures", ["x86_64"])
        sizes[name] = Size(properties.get("MemorySize", 128), architecture)
    return sizes


def _metrics(invoked: Invoked) -> set[tuple[str, ...]]:
    """Return the metrics in what was written, each with its dimensions' values."""
    found = set()
    for line in invoked.lines():
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            for names in directive["Dimensions"]:
                values = [line[name] for name in names]
                found |= {(metric["Name"], *values) for metric in directive["Metrics"]}
    return found
