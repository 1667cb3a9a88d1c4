"""The pacer: calls evenly spaced at a rate, by a clock of the test's own."""

import itertools

import pytest

from endings import FOREVER
from sessions.pacer import Pacer


def test_calls_are_spaced_evenly_at_the_rate() -> None:
    """Sixteen threads share it; 500 turns at 50 a second take ten seconds, within 5 %."""
    now = [100.0]
    turns: list[float] = []
    pacer = Pacer(50, clock=lambda: now[0], sleep=lambda seconds: turns.append(now[0] + seconds))
    for _ in range(501):
        pacer.wait(FOREVER)
        now[0] += 0.001  # a caller comes every millisecond: far more than the rate
    spent = turns[-1] - 100.0
    assert spent == pytest.approx(500 / 50, rel=0.05)
    steps = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert min(steps) == pytest.approx(1 / 50)


def test_an_unused_rate_is_not_saved_up() -> None:
    now = [100.0]
    slept: list[float] = []
    pacer = Pacer(10, clock=lambda: now[0], sleep=slept.append)
    pacer.wait(FOREVER)
    now[0] += 60
    for _ in range(3):
        pacer.wait(FOREVER)
    assert slept == pytest.approx([0.1, 0.2])


def test_a_turn_that_would_come_too_late_is_neither_awaited_nor_taken() -> None:
    slept: list[float] = []
    pacer = Pacer(10, clock=lambda: 100.0, sleep=slept.append)
    assert [pacer.wait(100.15) for _ in range(4)] == [True, True, False, False]
    assert pacer.wait(100.2)
    assert slept == pytest.approx([0.1, 0.2])
