"""What a million sessions cost in dollars, beside an API destination and a straightforward build.

Request units and bytes of log are counted, processor time is measured here; waits and prices are
data (prices.toml). An invocation lasts as long as it waits, plus its processor time stretched by
the share of a processor that its memory buys.
"""

import time
import tomllib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cold import yardstick
from hands import FOREVER, dynamodb, end_call, new_session, new_table, sample, settings_of, silence
from local.stack import Stack
from processes import Function, Invoked, instant_dynamodb
from registry_table import template
from results import Result, at_most, told
from sessions.aws import DynamoDB
from sessions.ending import Ending
from sessions.registry import BATCH, Registry
from sessions.session import Activity
from sessions.settings import Settings
from sessions.sweeping import ALL_SHARDS, Sweeper
from sessions.telemetry import Telemetry
from units import Metered

PRICES = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
ASSUMED = PRICES["assumed"]
MONTH = 730 * 60 * 60  # seconds
TICKS = MONTH // 60

TIMES = 100
SESSIONS = 400
SWEEP = 1000


@dataclass(frozen=True)
class Units:
    """Request units, and the calls they were spent in."""

    writes: float
    reads: float
    calls: int


@dataclass(frozen=True)
class Work:
    """What one end, track or tick takes."""

    ms: float  # billed
    memory: int  # MB
    log_bytes: float
    writes: float
    reads: float
    requests: float = 1  # a session's share of an invocation

    @property
    def parts(self) -> dict[str, float]:
        """Return what a million of them cost, by service, without what calls the function."""
        seconds = self.ms * 1000 * self.memory / 1024
        return {
            "Lambda": seconds * PRICES["lambda"]["gb_second"]
            + self.requests * PRICES["lambda"]["million_requests"],
            "DynamoDB": self.writes * PRICES["dynamodb"]["million_write_units"]
            + self.reads * PRICES["dynamodb"]["million_read_units"],
            "logs": self.log_bytes / 1000 * PRICES["cloudwatch"]["log_gb"],
        }

    @property
    def million(self) -> float:
        """Return the sum of the parts."""
        return sum(self.parts.values())


def cost(stack: Stack) -> list[Result]:
    """Count, measure and price each operation."""
    works, invoked = _works(stack)
    end, swept, track, idle = (works[n] for n in ("end", "swept", "track", "idle"))
    gateway = PRICES["api"]["million_requests"]
    bus = PRICES["eventbridge"]["million_events"]
    schedule = PRICES["eventbridge"]["million_schedules"]
    destination = bus + PRICES["eventbridge"]["million_api_destination_calls"]
    return [
        at_most("cost: write units of an end of a session not tracked", end.writes, 4),
        at_most("cost: write units of an end of a tracked session", works["tracked"].writes, 5),
        at_most("cost: write units of a new track", track.writes, 2),
        at_most("cost: write units of a track within the slack", works["slack"].writes, 1),
        at_most("cost: write units of an end by sweep", swept.writes, 3),
        at_most("cost: read units of an end by sweep", swept.reads, 0.05),
        at_most("cost: read units of an idle sweep", idle.reads, 16),
        told("cost: billed ms, end by API", end.ms),
        told("cost: billed ms, end by event", works["event"].ms),
        told("cost: billed ms, end by sweep", swept.ms),
        told("cost: billed ms, track", track.ms),
        told("cost: billed ms, idle sweep", idle.ms),
        told("cost: billed ms, straightforward end", works["plain"].ms),
        told("cost: bytes of log, end by API", end.log_bytes),
        told("cost: bytes of log, end by sweep", swept.log_bytes),
        told("cost: bytes of log, idle sweep", idle.log_bytes),
        told("cost: $ a million ends by API", gateway + end.million),
        told("cost: $ a million ends by API, of it API Gateway", gateway),
        *_parts("ends by API", end),
        told("cost: $ a million ends by API, tracked before", gateway + works["tracked"].million),
        told("cost: $ a million ends by event", bus + works["event"].million),
        told("cost: $ a million ends by sweep", swept.million),
        *_parts("ends by sweep", swept),
        told("cost: $ a million tracks by API, new", gateway + track.million),
        told("cost: $ a million tracks by API, in the slack", gateway + works["slack"].million),
        told("cost: $ a million tracks by event, new", bus + track.million),
        told("cost: $ a million ends, EventBridge API destination", destination),
        told("cost: $ a million ends by API, straightforward", gateway + works["plain"].million),
        told("cost: $ a month, idle sweeps", (schedule + idle.million) * TICKS / 1e6),
        *_fixed(invoked),
    ]


def _works(stack: Stack) -> tuple[dict[str, Work], list[Invoked]]:
    """Return what each operation takes, and the invocations that showed it."""
    units = _units(stack)
    memory = _memory()
    environment = {"TABLE_NAME": new_table(), "ELEVATE_BASE_URL": stack.elevate_url}
    with Function("handler.end.handle", environment) as function:
        by_api = _invoked(function, end_call)
        by_event = _invoked(function, _ended)
    with Function("handler.track.handle", environment) as function:
        tracks = _invoked(function, _track_call)
    untraced = environment | {"POWERTOOLS_TRACE_DISABLED": "true"}
    with Function("app.handle", untraced, yardstick(stack)) as function:
        straight = _invoked(function, end_call)
    ticks, sweep = _sweeps(stack)

    wait, call = ASSUMED["elevate_ms"], ASSUMED["dynamodb_ms"]
    ending = wait + units["end"].calls * call
    # Threads wait side by side.
    threads = Settings("", "", "").concurrency
    looking = units["idle"].calls / threads * call
    sweeping = (wait + 2 * call / BATCH) / threads
    works = {
        "end": _work(by_api, TIMES, memory["End"], ending, units["end"]),
        "event": _work(by_event, TIMES, memory["End"], ending, units["end"]),
        "track": _work(tracks, TIMES, memory["Track"], call, units["track"]),
        "idle": _work(ticks, TIMES, memory["Sweep"], looking, units["idle"]),
        "plain": _work(straight, TIMES, 128, wait + 2 * call, Units(2, 0, 2)),
    }
    works["tracked"] = replace(works["end"], writes=units["tracked"].writes)
    works["slack"] = replace(works["track"], writes=units["slack"].writes)
    works["swept"] = replace(
        _work(sweep, SWEEP, memory["Sweep"], sweeping, units["swept"]),
        log_bytes=(len(sweep.written.encode()) + ASSUMED["platform_log_bytes"]) / SWEEP,
        requests=1 / SWEEP,
    )
    return works, [by_api, by_event, tracks, ticks, sweep]


def _parts(what: str, work: Work) -> list[Result]:
    return [told(f"cost: $ a million {what}, of it {n}", part) for n, part in work.parts.items()]


def _work(invoked: Invoked, count: int, memory: int, wait: float, units: Units) -> Work:
    cpu = invoked.cpu / count * 1000
    return Work(
        ms=wait + cpu * ASSUMED["vcpu_mb"] / memory,
        memory=memory,
        log_bytes=len(invoked.written.encode()) / count + ASSUMED["platform_log_bytes"],
        writes=units.writes,
        reads=units.reads,
    )


def _units(stack: Stack) -> dict[str, Units]:
    """Count the units of each operation on the emulator, by DynamoDB's rules."""
    settings = replace(settings_of(stack, new_table()), concurrency=1)
    metered = Metered(DynamoDB(1), dynamodb(), settings.table_name)
    ending = Ending(settings, Registry(settings, metered), telemetry=Telemetry())

    def spent(work: Callable[[], Any]) -> Units:
        before = metered.writes, metered.reads, metered.calls
        work()
        return Units(
            metered.writes - before[0], metered.reads - before[1], metered.calls - before[2]
        )

    now = int(time.time())
    tracked = Activity(new_session(), now)
    with silence():
        units = {
            "end": spent(lambda: ending.end(new_session(), now, "api", "bench")),
            "track": spent(lambda: ending.track(tracked)),
            "slack": spent(lambda: ending.track(replace(tracked, at=now + 1))),
            "tracked": spent(lambda: ending.end(tracked.session, now, "api", "bench")),
            "idle": spent(lambda: Sweeper(ending).sweep(ALL_SHARDS, FOREVER, "bench")),
        }
        for _ in range(SESSIONS):
            ending.track(Activity(new_session(), now - settings.idle - 60))
        swept = spent(lambda: Sweeper(ending).sweep(ALL_SHARDS, FOREVER, "bench"))
    units["swept"] = Units(
        swept.writes / SESSIONS, (swept.reads - units["idle"].reads) / SESSIONS, swept.calls
    )
    return units


def _invoked(function: Function, event: Callable[[], Any]) -> Invoked:
    """Invoke a function that is warm."""
    function.invoke(*(event() for _ in range(20)))
    return function.invoke(*(event() for _ in range(TIMES)))


def _sweeps(stack: Stack) -> tuple[Invoked, Invoked]:
    """Sweep nothing, and a thousand sessions, against a DynamoDB that answers at once."""
    found = []
    tick = sample("scheduled_sweep")
    with instant_dynamodb() as url:
        for table, times in (("due-0", TIMES), (f"due-{SWEEP}", 1)):
            environment = {
                "TABLE_NAME": table,
                "ELEVATE_BASE_URL": stack.elevate_url,
                "AWS_ENDPOINT_URL": url,
            }
            with Function("handler.sweep.handle", environment) as function:
                function.invoke(tick)
                found.append(function.invoke(*[tick] * times))
    return found[0], found[1]


def _ended() -> dict[str, Any]:
    session = new_session()
    detail = {
        "market": session.market,
        "customerKey": session.customer_key,
        "sessionKey": session.session_key,
    }
    return {**sample("session_ended"), "detail": detail}


def _track_call() -> dict[str, Any]:
    key = str(uuid.uuid4())
    return {
        **sample("api_track"),
        "path": f"/sessions/{key}",
        "pathParameters": {"sessionKey": key},
    }


def _memory() -> dict[str, int]:
    """Return the functions' memory in MB."""
    given = template()
    usual = given["Globals"]["Function"]["MemorySize"]
    return {
        name: given["Resources"][f"{name}Function"]["Properties"].get("MemorySize", usual)
        for name in ("End", "Track", "Sweep")
    }


def _fixed(all_: list[Invoked]) -> list[Result]:
    """Price what costs by the month, and what parameters switch on."""
    written = {metric for invoked in all_ for metric in _metrics(invoked)}
    kinds = [resource["Type"] for resource in template()["Resources"].values()]
    alarms = kinds.count("AWS::CloudWatch::Alarm")
    memory = _memory()
    gigabytes = sum(memory.values()) / 1024
    cached = gigabytes * MONTH * PRICES["lambda"]["snapstart_cached_gb_second"]
    restored = memory["End"] / 1024 * PRICES["lambda"]["snapstart_restored_gb"]
    return [
        told("cost: metrics, each with its dimensions", len(written)),
        told("cost: $ a month, metrics", len(written) * PRICES["cloudwatch"]["metric_month"]),
        told(f"cost: $ a month, {alarms} alarms", alarms * PRICES["cloudwatch"]["alarm_month"]),
        told("cost: $ a month, dashboard", PRICES["cloudwatch"]["dashboard_month"]),
        told("cost: $ a month, SnapStart, one version of each function", cached),
        told("cost: $ a million cold starts of the end function, SnapStart", restored * 1e6),
        told("cost: $ a million traces, X-Ray", PRICES["xray"]["million_traces"]),
        told("cost: $ a month, a KMS key of yours", PRICES["kms"]["key_month"]),
    ]


def _metrics(invoked: Invoked) -> set[tuple[str, ...]]:
    """Return the metrics in what was written, each with its dimensions' values."""
    found = set()
    for line in invoked.lines():
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            for names in directive["Dimensions"]:
                values = [line[name] for name in names]
                found |= {(metric["Name"], *values) for metric in directive["Metrics"]}
    return found
