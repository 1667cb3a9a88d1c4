"""Growth: a sweep of ten and a hundred times as many sessions, and sweeps side by side.

Every sweep is an invocation in a process of its own, through the function's handler, after a small
one that warms it up.
"""

import statistics
import time
from contextlib import ExitStack

from fixtures import sweep_event
from processes import Invoked, elevate, instant_dynamodb
from results import Result, at_least, at_most, info
from sessions.registry import Registry
from sessions.session import MAX_SHARDS
from sessions.settings import Settings
from sweep import ALL, WARM_UP, check, sweeper

# Sizes, with how often each is swept: a short sweep is a noisy one.
SIZES = {1000: 5, 10_000: 3, 100_000: 1}
SHARD = 200  # sessions
# So long that eight sweeps at once wait for Elevate, and not for this machine.
LATENCY_MS = 200
SIDE_BY_SIDE = (1, 2, 4, 8)


def growth(most: int) -> list[Result]:
    """Measure up to `most` sessions, then up to eight shards side by side."""
    with instant_dynamodb():
        return [*_sizes([size for size in SIZES if size <= most]), *_side_by_side()]


def _sizes(sizes: list[int]) -> list[Result]:
    results = []
    first: tuple[float, float] | None = None
    for size in sizes:
        table = f"due-{size}-{WARM_UP}"
        _make_rows(table)
        sweeps = [_swept(table, size) for _ in range(SIZES[size])]
        wall = statistics.median(s.wall for s in sweeps) / size
        peak = statistics.median(s.peak for s in sweeps)
        if first is None:
            first = wall, peak
            results += [
                info(f"growth: wall ms per session, {size:,}", wall * 1000),
                info(f"growth: peak memory, MB, {size:,}", peak),
            ]
        else:
            results += [
                at_most(f"growth: wall per session, {size:,} / 1,000", wall / first[0], 1.1),
                at_most(f"growth: peak memory above that, MB, {size:,}", peak - first[1], 30),
            ]
    return results


def _make_rows(table: str) -> None:
    """Make the database create its rows and pages, which it does only once."""
    registry = Registry(Settings(table, "", ""))
    for shard in range(MAX_SHARDS):
        page = registry.due(shard, 0)
        while page.next:
            page = registry.due(shard, 0, page.next)


def _swept(table: str, size: int) -> Invoked:
    # An Elevate of its own: it keeps what it received, which slows it down.
    with elevate() as url, sweeper(table, url) as function:
        invoked = function.invoke(ALL)
    check(invoked, size)
    return invoked


def _side_by_side() -> list[Result]:
    table = f"due-{8 * SHARD}-{WARM_UP}"
    _make_rows(table)
    speeds: dict[int, list[float]] = {count: [] for count in SIDE_BY_SIDE}
    with elevate(LATENCY_MS) as url, ExitStack() as stack:
        functions = [stack.enter_context(sweeper(table, url)) for _ in range(max(SIDE_BY_SIDE))]
        for _ in range(3):
            for count in SIDE_BY_SIDE:
                started = time.perf_counter()
                for shard, function in enumerate(functions[:count]):
                    function.start(sweep_event([shard]))
                for function in functions[:count]:
                    check(function.finish(), SHARD)
                speeds[count].append(count * SHARD / (time.perf_counter() - started))
    one = statistics.median(speeds[1])
    return [
        info(f"growth: sessions per second, one invocation at {LATENCY_MS} ms", one),
        *(
            at_least(
                f"growth: {count} shards by {count} invocations / one",
                statistics.median(speeds[count]) / one,
                0.9 * count,
            )
            for count in SIDE_BY_SIDE[1:]
        ),
    ]
