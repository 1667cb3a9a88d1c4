"""Growth: a sweep of ten and a hundred times as many sessions, and sweeps side by side.

Every sweep is an invocation in a process of its own, through the function's handler, after a small
one that warms it up.
"""

import statistics
import time
from contextlib import ExitStack

from fixtures import dynamodb, sweep_event
from processes import Invoked, elevate, instant_dynamodb
from results import Result, at_least, at_most, info
from sweep import ALL_BUT_LAST, WARM_UP, check, sweeper

# Sizes, with how often each is swept: a short sweep is a noisy one.
SIZES = {1000: 5, 10_000: 3, 100_000: 1}
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
        dynamodb().scan(TableName=table)  # makes the rows, for which no sweep would wait
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
                at_most(f"growth: peak memory above that, MB, {size:,}", peak - first[1], 20),
            ]
    return results


def _swept(table: str, size: int) -> Invoked:
    # An Elevate of its own: it keeps what it received, which slows it down.
    with elevate() as url, sweeper(table, url) as function:
        invoked = function.invoke(ALL_BUT_LAST)
    check(invoked, size)
    return invoked


def _side_by_side() -> list[Result]:
    """Measure shards of as many sessions each, swept by as many functions."""
    table = f"due-{7 * WARM_UP}-{WARM_UP}"
    speeds: dict[int, list[float]] = {count: [] for count in SIDE_BY_SIDE}
    with elevate(LATENCY_MS) as url, ExitStack() as stack:
        functions = [stack.enter_context(sweeper(table, url)) for _ in range(max(SIDE_BY_SIDE))]
        for _ in range(3):
            for count in SIDE_BY_SIDE:
                started = time.perf_counter()
                for shard, function in enumerate(functions[:count]):
                    function.start(sweep_event([shard]))
                for function in functions[:count]:
                    check(function.finish(), WARM_UP)
                speeds[count].append(count * WARM_UP / (time.perf_counter() - started))
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
