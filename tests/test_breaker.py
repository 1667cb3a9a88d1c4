"""When notifications are held back, for a market and for all, on a clock set by hand."""

import pytest

from emulated import Clock
from sessions.breaker import PAUSE, REMEMBERED, TIMEOUTS, Breaker


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def time_out(breaker: Breaker, *markets: str) -> None:
    for market in markets:
        breaker.timed_out(market)


def held_back(breaker: Breaker, *markets: str) -> set[str]:
    return {market for market in markets if not breaker.lets_through(market)}


def test_three_time_outs_in_a_row_hold_a_market_back_and_no_other(breaker: Breaker) -> None:
    for _ in range(TIMEOUTS):
        assert breaker.lets_through("UK")
        breaker.timed_out("UK")
    assert held_back(breaker, "UK", "SE") == {"UK"}


def test_an_answer_restarts_a_markets_count(breaker: Breaker) -> None:
    time_out(breaker, "UK", "UK")
    breaker.answered("UK")
    time_out(breaker, "UK", "UK")
    assert not held_back(breaker, "UK")
    time_out(breaker, "UK")
    assert held_back(breaker, "UK")


def test_another_markets_answer_does_not_restart_it(breaker: Breaker) -> None:
    for _ in range(TIMEOUTS):
        time_out(breaker, "UK")
        breaker.answered("SE")
    assert held_back(breaker, "UK", "SE") == {"UK"}


def test_three_markets_without_an_answer_hold_all_back(breaker: Breaker) -> None:
    """Callers may choose the market: eight ends of eight markets do not wait in turn."""
    waited = 0
    for market in "ABCDEFGH":
        if breaker.lets_through(market):
            waited += 1
            breaker.timed_out(market)
    assert waited == TIMEOUTS


def test_an_answer_to_any_market_lets_all_others_through(breaker: Breaker) -> None:
    time_out(breaker, "A", "B")
    breaker.answered("D")
    time_out(breaker, "C")
    assert not held_back(breaker, "A", "B", "C", "D")
    time_out(breaker, "A", "B")
    assert held_back(breaker, "A", "D") == {"A", "D"}
    breaker.answered("D")
    assert not held_back(breaker, "A", "B", "C", "D")


def test_one_caller_probes_after_each_pause_and_an_answer_ends_it(
    breaker: Breaker, clock: Clock
) -> None:
    time_out(breaker, "UK", "UK", "UK")
    for _ in range(2):
        clock.turn(PAUSE)
        assert [breaker.lets_through("UK") for _ in range(3)] == [True, False, False]
        breaker.timed_out("UK")
        assert held_back(breaker, "UK")
    clock.turn(PAUSE)
    assert breaker.lets_through("UK")
    breaker.answered("UK")
    assert all(breaker.lets_through("UK") for _ in range(3))


def test_one_caller_of_any_market_probes_for_all(breaker: Breaker, clock: Clock) -> None:
    time_out(breaker, "A", "B", "C")
    clock.turn(PAUSE)
    assert held_back(breaker, "D", "E", "F") == {"E", "F"}
    time_out(breaker, "D")
    assert held_back(breaker, "D", "E") == {"D", "E"}
    clock.turn(PAUSE)
    assert breaker.lets_through("E")
    breaker.answered("E")
    assert not held_back(breaker, "A", "D", "E")


def test_many_functions_do_not_probe_in_step(clock: Clock) -> None:
    breakers = [Breaker(clock) for _ in range(100)]
    for breaker in breakers:
        time_out(breaker, *["UK"] * TIMEOUTS)
    clock.turn(PAUSE / 2 - 0.1)
    assert sum(breaker.lets_through("UK") for breaker in breakers) == 0
    clock.turn(PAUSE / 4)
    probing = [breaker for breaker in breakers if breaker.lets_through("UK")]
    assert 10 < len(probing) < 90
    clock.turn(PAUSE / 4 + 0.2)
    assert all(breaker.lets_through("UK") for breaker in breakers if breaker not in probing)


def test_what_is_remembered_is_bounded(breaker: Breaker) -> None:
    """Beyond the bound the market that timed out longest ago is forgotten."""
    time_out(breaker, *["UK"] * TIMEOUTS, *["SE"] * TIMEOUTS)
    time_out(breaker, *(f"M{number}" for number in range(REMEMBERED - 2)))
    time_out(breaker, "UK")
    breaker.answered("another")  # so that not all are held back
    assert held_back(breaker, "UK", "SE") == {"UK", "SE"}
    time_out(breaker, "one more")
    breaker.answered("another")
    assert held_back(breaker, "UK", "SE") == {"UK"}
