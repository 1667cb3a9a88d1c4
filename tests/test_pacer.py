"""The pacer: turns evenly spaced at a rate, by a clock of the test's own."""

import itertools

import pytest

from sessions.pacer import Pacer


def test_turns_are_spaced_evenly_at_the_rate() -> None:
    pacer, now, turns = Pacer(50), 100.0, list[float]()
    while len(turns) < 501:
        if pacer.wait(now):
            now += pacer.wait(now)
        pacer.take(now)
        turns.append(now)
    assert turns[-1] - turns[0] == pytest.approx(500 / 50)
    assert min(later - earlier for earlier, later in itertools.pairwise(turns)) == pytest.approx(
        1 / 50
    )


def test_an_unused_rate_is_not_saved_up() -> None:
    pacer = Pacer(10)
    pacer.take(100.0)
    assert pacer.wait(160.0) == 0
    pacer.take(160.0)
    assert pacer.wait(160.0) == pytest.approx(0.1)


def test_a_rate_of_zero_is_no_limit() -> None:
    pacer = Pacer(0)
    pacer.take(100.0)
    assert (pacer.wait(100.0), pacer.ahead) == (0, None)


@pytest.mark.parametrize(("rate", "ahead"), [(0.2, 1), (1, 1), (5.9, 5), (400, 400)])
def test_a_seconds_turns_may_be_claimed_ahead(rate: float, ahead: int) -> None:
    assert Pacer(rate).ahead == ahead
