"""The loop of a sweep on a virtual clock: what is sent, in which order, and how long that takes.

The figures are bounds: a run always takes the same virtual time, however busy the machine is.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from sessions.pacer import Pacer
from sessions.registry import BATCH
from sessions.session import Outcome
from sessions.statements import SHARDS
from sessions.sweeping import HAND_OVER_MARGIN, MOST_AHEAD, READ_AHEAD, SETTLE_RESERVE
from virtual import DELIVERED, UNAVAILABLE, World, due

type Elevate = Callable[[], tuple[float, Outcome]]


def always(seconds: float, outcome: Outcome = DELIVERED) -> Elevate:
    return lambda: (seconds, outcome)


def first_takes(seconds: float) -> Elevate:
    answers = iter([seconds])
    return lambda: (next(answers, 0.02), DELIVERED)


def half_fail() -> Elevate:
    chance = random.Random(1)
    return lambda: (0.02, chance.choice([DELIVERED, UNAVAILABLE]))


# -- all that there is time for ----------------------------------------------------------------


@pytest.mark.parametrize("first", [0.02, 1.0, 3.0])
def test_a_sweep_with_time_left_ends_all_that_is_due(first: float) -> None:
    """At 7ff6b21 a slow first answer made it end early, and say that nothing was left."""
    world = World(due("UK", 12_000))
    world.usual = first_takes(first)
    sweep = world.sweep(seconds=55)
    assert (sweep.counts["delivered"], sweep.counts["left"], sweep.stopped) == (12_000, 0, "")
    assert world.finished["UK"] < 19


def test_a_slow_database_does_not_hold_up_64_notifiers() -> None:
    world = World(due("UK", 40_000), notifiers=64, database=0.015)
    world.sweep()
    assert 40_000 / world.finished["UK"] > 2_000


def test_a_backlog_costs_few_calls() -> None:
    world = World(due("UK", 10_000))
    world.usual = always(0.03)
    world.sweep()
    assert sum(world.calls.values()) <= 0.1 * 10_000


def test_what_is_left_for_want_of_time_stands_in_the_line_and_is_handed_over() -> None:
    world = World(due("UK", 5_000))
    world.usual = always(0.5)
    sweep = world.sweep(seconds=40)
    assert sweep.stopped == "time"
    assert sweep.counts["left"] == 5_000 - sweep.counts["due"] > 0
    assert sweep.unfinished
    assert world.handed_over == [
        {"shards": [shard], "depth": 1, "correlationId": ""} for shard in sweep.unfinished
    ]
    assert world.crew.now() < 40 - SETTLE_RESERVE + 1


def test_a_hand_over_hands_nothing_over_and_ends_before_the_next_tick_may() -> None:
    world = World(due("UK", 5_000))
    world.usual = always(0.5)
    sweep = world.sweep(seconds=60, depth=1)
    assert (sweep.stopped, world.handed_over) == ("time", [])
    assert world.crew.now() < 60 - HAND_OVER_MARGIN - SETTLE_RESERVE + 1


def test_more_than_is_kept_ready_is_read_when_there_is_room() -> None:
    world = World(due("UK", READ_AHEAD + 10_000), notifiers=64)
    world.usual = always(0.01)
    assert world.sweep().counts["delivered"] == READ_AHEAD + 10_000


# -- fairness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "seconds"),
    [
        (always(4.0, UNAVAILABLE), 15),
        (always(0.001, UNAVAILABLE), 5),
        (half_fail(), 8),
        (always(2.5), 15),
    ],
    ids=["hangs", "refuses", "half fails", "is slow"],
)
def test_a_market_in_trouble_does_not_delay_another(trouble: Elevate, seconds: float) -> None:
    """20,000 of its sessions are older than all 3,000 of the other."""
    world = World(due("ill", 20_000, age=1_000) + due("well", 3_000, age=100))
    world.markets["ill"] = trouble
    world.sweep()
    assert world.sent["well"] == 3_000
    assert world.finished["well"] < seconds


@pytest.mark.parametrize("older", [300, 3_000])
def test_two_quick_markets_do_not_wait_for_a_slow_one(older: int) -> None:
    world = World(due("slow", older, age=1_000) + due("quick", 300) + due("as quick", 300))
    world.markets["slow"] = always(1.0)
    world.sweep()
    assert max(world.finished["quick"], world.finished["as quick"]) < 10
    assert world.sent["slow"] >= min(older, 16 * 40)


def test_many_markets_are_all_served() -> None:
    names = [f"market {n}" for n in range(70)]
    world = World([row for name in names for row in due(name, 50)])
    sweep = world.sweep()
    assert (sweep.counts["delivered"], set(world.finished)) == (70 * 50, set(names))


# -- outages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("markets", "cost"), [(1, 25), (2, 24), (10, 20), (50, 50)])
def test_an_outage_of_all_markets_costs_about_25_notifications(markets: int, cost: int) -> None:
    world = World([row for n in range(markets) for row in due(f"market {n}", 5_000 // markets)])
    world.usual = always(0.02, UNAVAILABLE)
    sweep = world.sweep()
    assert (sum(world.sent.values()), sweep.counts["retried"]) == (cost, cost)
    assert (len(sweep.given_up), sweep.stopped) == (markets, "")
    assert sweep.counts["left"] == 5_000 // markets * markets - cost
    assert (sweep.unfinished, world.handed_over) == ([], [])


def test_a_market_behind_the_backlog_of_one_that_is_down_is_found() -> None:
    world = World(due("down", 60_000, age=1_000) + due("well", 50))
    world.markets["down"] = always(0.02, UNAVAILABLE)
    sweep = world.sweep()
    assert (world.sent["well"], sweep.given_up) == (50, ["down"])
    assert sweep.counts["left"] == 60_000 - world.sent["down"]


def test_an_elevate_that_fails_in_the_middle_gets_little_more() -> None:
    world = World(due("UK", 5_000))
    world.usual = lambda: (0.02, DELIVERED if sum(world.sent.values()) < 2_000 else UNAVAILABLE)
    world.sweep()
    assert world.sent["UK"] <= 2_000 + 16 + MOST_AHEAD + BATCH


# -- time --------------------------------------------------------------------------------------


def test_the_last_notification_leaves_time_for_its_answer_and_for_settling() -> None:
    settings = World([]).settings
    needed = 2 * settings.connect_timeout + settings.read_timeout + SETTLE_RESERVE
    world = World(due("UK", 3))
    assert world.sweep(needed - 0.1).stopped == "time"
    assert not world.sent
    assert world.sweep(needed + 1).counts["delivered"] == 3


def test_what_was_claimed_when_time_ran_out_is_given_back() -> None:
    """Of a market whose answers take longer and longer."""
    world = World(due("UK", 3_000), notifiers=4)
    world.usual = lambda: (0.001 if world.crew.now() < 20 else 3.5, DELIVERED)
    world.sweep(seconds=40)
    world = World(due("UK", 30_000), notifiers=4)
    world.usual = lambda: (0.01 if world.crew.now() < 27 else 3.9, DELIVERED)
    sweep = world.sweep(seconds=40)
    given_back = [claim for claim, settled in world.settled if settled.state == "open"]
    assert len(given_back) == sweep.counts["given_back"] > 0
    assert {claim.row.shard for claim in given_back} <= set(sweep.unfinished)
    assert len(world.settled) == sweep.counts["claimed"]
    assert world.crew.now() <= 40 - SETTLE_RESERVE + 1


def test_what_still_drips_is_left_to_its_lease() -> None:
    """A server that sends its answer byte by byte may take longer than any time-out."""
    world = World(due("drips", 1) + due("UK", 100))
    world.markets["drips"] = always(1e6)
    sweep = world.sweep(seconds=60)
    assert (sweep.counts["delivered"], len(world.settled)) == (100, 100)
    assert world.crew.now() <= 60 - SETTLE_RESERVE + 1


def test_an_outcome_does_not_wait_long_to_be_settled() -> None:
    world = World(due("UK", 60), notifiers=2)
    world.usual = always(0.5)
    settled_at: list[float] = []

    def note(call: str, shard: int) -> bool:
        settled_at.extend([world.crew.now()] * (call == "settle"))
        return False

    world.fails = note
    world.sweep()
    assert max(b - a for a, b in itertools.pairwise(settled_at)) <= 2


# -- Elevate's rate ----------------------------------------------------------------------------


def test_a_rate_is_kept_and_nothing_is_claimed_long_before_its_turn() -> None:
    world = World(due("UK", 1_000))
    world.settings = replace(world.settings, max_rate=20)
    most_ahead = 0

    def notify() -> tuple[float, Outcome]:
        nonlocal most_ahead
        most_ahead = max(most_ahead, world.claimed - sum(world.sent.values()))
        return 0.02, DELIVERED

    world.usual = notify
    sweep = world.sweep(seconds=42)
    assert sweep.counts["delivered"] == pytest.approx(20 * 30, rel=0.05)
    assert most_ahead <= (Pacer(20).ahead or 0) + 1
    assert (sweep.stopped, world.handed_over) == ("time", [])


# -- a database in trouble ---------------------------------------------------------------------


def test_a_shard_that_cannot_be_read_does_not_delay_the_others() -> None:
    world = World(due("UK", 800))
    world.fails = lambda call, shard: call == "due" and shard == 3
    sweep = world.sweep()
    assert sweep.counts["delivered"] == 700
    assert (sweep.stopped, sweep.unfinished, world.handed_over) == ("registry", [], [])


def test_a_database_that_fails_three_times_in_a_row_ends_the_taking() -> None:
    world = World(due("UK", 5_000))
    world.fails = lambda call, shard: call == "claim" and world.calls["claim"] > 20
    sweep = world.sweep()
    assert sweep.stopped == "registry"
    assert sweep.counts["failed"] <= 5 * BATCH
    assert len(world.settled) == sweep.counts["delivered"] > 0
    assert sweep.counts["left"] == 5_000 - sweep.counts["due"]


def test_a_failure_now_and_then_does_not_end_a_sweep() -> None:
    world = World(due("UK", 2_000))
    world.fails = lambda call, shard: call == "claim" and world.calls["claim"] % 5 == 0
    sweep = world.sweep()
    assert sweep.counts["delivered"] + sweep.counts["failed"] == 2_000
    assert sweep.counts["failed"] < 600


def test_an_idle_sweep_asks_each_shard_once() -> None:
    world = World([])
    sweep = world.sweep()
    assert dict(world.calls) == {"due": SHARDS}
    assert (sweep.stopped, sum(sweep.counts.values())) == ("", 0)
