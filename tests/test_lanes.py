"""Lanes: who is next in a sweep, without a registry; threads and time are the test's."""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from sessions.lanes import Lanes
from sessions.session import Row, Session


def rows(count: int) -> list[Row]:
    return [Row(Session("UK", str(n), "c"), n, 0, n % 8) for n in range(count)]


def run(lanes: Lanes, outcome: Callable[[Row], str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    flying: list[list[Row]] = []
    while True:
        while batch := lanes.next(len(flying)):
            flying.append(batch)
        if not flying:
            return counts
        batch = flying.pop(0)
        came = Counter(outcome(row) for row in batch)
        counts += came
        lanes.done(batch, came, 0.03 * len(batch))


@pytest.mark.parametrize("threads", [8, 16, 32])
def test_one_healthy_market_is_swept_to_its_end(threads: int) -> None:
    lanes = Lanes(iter(rows(20_000)), threads, 50 * threads)
    assert run(lanes, lambda row: "delivered") == {"delivered": 20_000}


def test_a_market_that_is_slow_but_alive_keeps_no_other_waiting() -> None:
    """Its sessions are the oldest, and more of them than a sweep can send."""
    slow = [replace(row, session=Session("SE", "s", "c")) for row in rows(5000)]
    well = [replace(row, due_at=5000) for row in rows(100)]
    lanes, now, tie = Lanes(iter(slow + well), 16, 800), 0.0, 0
    free, came = [0.0] * 16, Counter[str]()
    work: list[tuple[float, int, float, list[Row]]] = []
    while now < 50:
        while batch := lanes.next(len(work)):
            market, tie = batch[0].session.market, tie + 1
            seconds = len(batch) * (2.9 if market == "SE" else 0.03)
            done_at = max(now, heapq.heappop(free)) + seconds
            heapq.heappush(free, done_at)
            heapq.heappush(work, (done_at, tie, seconds, batch))
        now, _, seconds, batch = heapq.heappop(work)
        came[batch[0].session.market] += len(batch) * (now < 20)
        lanes.done(batch, Counter(delivered=len(batch)), seconds)
    assert came["UK"] == 100


@pytest.mark.parametrize("neutral", ["expired", "skipped"])
def test_what_needs_no_notification_does_not_use_up_a_sweep(neutral: str) -> None:
    lanes = Lanes(iter(rows(2000)), 16, 800)
    come = run(lanes, lambda row: neutral if (row.due_at or 0) < 1000 else "delivered")
    assert come == {neutral: 1000, "delivered": 1000}
