"""Whose turn is it: rules about rows and markets; no clock, no threads, no table."""

from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.lanes import OUTAGE, START, Lanes
from sessions.session import Row, Session

type CameTo = Literal["through", "trouble", "nothing"]


def rows(market: str, count: int, due_at: int = 1, shard: int = 0) -> list[Row]:
    return [Row(Session(market, f"{market}-{n}"), due_at + n, 0, shard) for n in range(count)]


def lanes_of(*several: list[Row]) -> Lanes:
    lanes = Lanes()
    for some in several:
        for row in some:
            lanes.put(row)
    return lanes


def by_market(taken: list[Row]) -> dict[str, int]:
    return dict(Counter(row.session.market for row in taken))


def done(lanes: Lanes, taken: list[Row], came_to: CameTo, seconds: float = 0.02) -> None:
    for row in taken:
        lanes.done(row, came_to, seconds)


# -- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("markets", [1, 2, 10, 25, 50])
def test_the_first_windows_share_what_an_outage_may_cost(markets: int) -> None:
    lanes = lanes_of(*(rows(f"market {n}", 100) for n in range(markets)))
    taken = lanes.take(1000)
    assert by_market(taken) == {f"market {n}": max(1, START // markets) for n in range(markets)}
    assert lanes.take(1000) == []


def test_each_session_that_gets_through_lets_two_more_go() -> None:
    lanes = lanes_of(rows("UK", 1000))
    waves = []
    for _ in range(4):
        taken = lanes.take(1000)
        waves.append(len(taken))
        done(lanes, taken, "through")
    assert waves == [START, 2 * START, 4 * START, 8 * START]


def test_a_window_falls_back_when_something_does_not_get_through() -> None:
    lanes = lanes_of(rows("UK", 1000))
    for _ in range(3):
        done(lanes, lanes.take(1000), "through")
    first, *others = lanes.take(1000)
    done(lanes, others, "through")
    done(lanes, [first], "trouble")
    assert len(lanes.take(1000)) == START - 1


def test_what_needed_no_notification_says_nothing_about_its_market() -> None:
    lanes = lanes_of(rows("UK", 1000))
    for _ in range(3):
        taken = lanes.take(1000)
        assert len(taken) == START
        done(lanes, taken, "nothing")
    assert lanes.given_up == []


# -- outages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("markets", "cost"), [(1, 25), (2, 24), (10, 20), (50, 50)])
def test_an_outage_of_all_markets_costs_about_as_much_as_of_one(markets: int, cost: int) -> None:
    lanes = lanes_of(*(rows(f"market {n}", 100) for n in range(markets)))
    sent = 0
    while taken := lanes.take(7):
        sent += len(taken)
        done(lanes, taken, "trouble")
    assert sent == cost
    assert len(lanes.given_up) == markets
    assert (lanes.waiting, lanes.abandoned) == (0, 100 * markets - cost)


def test_an_outage_is_not_tried_out_over_every_market_that_callers_make_up() -> None:
    lanes, sent = lanes_of(*(rows(f"market {n}", 2) for n in range(1_500))), 0
    while taken := lanes.take(25):
        sent += len(taken)
        done(lanes, taken, "trouble")
    lanes.put(rows("another", 1)[0])
    assert (sent, lanes.waiting, lanes.take(1)) == (OUTAGE, 0, [])
    assert lanes.abandoned == 3_000 - OUTAGE + 1


def test_a_market_that_is_found_after_the_outage_began_is_tried_once() -> None:
    """It may be the one that Elevate answers."""
    lanes = lanes_of(rows("ill", 100))
    done(lanes, lanes.take(100), "trouble")
    for row in rows("well", 100):
        lanes.put(row)
    (tried,) = lanes.take(100)
    done(lanes, [tried], "through")
    assert by_market(lanes.take(100))["well"] > 1
    assert lanes.given_up == ["ill"]


def test_a_market_is_given_up_only_when_its_last_answer_is_there() -> None:
    lanes = lanes_of(rows("UK", 100))
    *others, last = lanes.take(100)
    done(lanes, others, "trouble")
    assert (lanes.take(100), lanes.given_up) == ([], [])
    done(lanes, [last], "through")
    assert lanes.given_up == []
    assert lanes.take(100)


def test_one_answer_among_many_failures_keeps_a_market_going() -> None:
    lanes = lanes_of(rows("UK", 1000))
    for _ in range(10):
        first, *others = lanes.take(1000)
        done(lanes, others, "trouble")
        done(lanes, [first], "through")
    assert lanes.given_up == []


def test_a_market_that_falls_silent_later_is_given_up_too() -> None:
    lanes = lanes_of(rows("UK", 1000))
    done(lanes, lanes.take(1000), "through")
    done(lanes, lanes.take(1000), "trouble")
    assert lanes.given_up == ["UK"]
    assert lanes.take(1000) == []


def test_one_failure_of_a_market_that_got_through_before_does_not_end_it() -> None:
    """However many markets share the first windows."""
    lanes = lanes_of(*(rows(f"market {n}", 9) for n in range(50)))
    done(lanes, lanes.take(50), "through")
    taken = lanes.take(50)
    done(lanes, taken, "trouble")
    assert lanes.given_up == []


def test_a_market_with_few_sessions_is_named_too() -> None:
    lanes = lanes_of(rows("down", 2), rows("UK", 2))
    for row in lanes.take(10):
        lanes.done(row, "through" if row.session.market == "UK" else "trouble", 0.02)
    assert lanes.given_up == ["down"]


def test_sessions_that_are_read_after_their_market_was_given_up_are_counted_only() -> None:
    lanes = lanes_of(rows("UK", START))
    done(lanes, lanes.take(100), "trouble")
    lanes.put(rows("UK", 1)[0])
    assert (lanes.waiting, lanes.abandoned, lanes.shards_waiting) == (0, 1, set())


# -- turns -------------------------------------------------------------------------------------


def test_the_session_that_has_waited_longest_is_first_in_its_market() -> None:
    lanes = lanes_of(rows("UK", 5, due_at=100), rows("UK", 5, due_at=50, shard=1))
    assert [row.due_at for row in lanes.take(10)] == [*range(50, 55), *range(100, 105)]


def test_markets_take_turns() -> None:
    lanes = lanes_of(rows("UK", 100), rows("SE", 100))
    assert by_market(lanes.take(10)) == {"UK": 5, "SE": 5}


def test_turns_are_counted_in_the_seconds_that_threads_were_busy() -> None:
    """A market that takes two seconds has had a hundred turns of one that takes 20 ms."""
    lanes = lanes_of(rows("slow", 1000), rows("quick", 1000))
    for _ in range(2):
        for row in lanes.take(20):
            done(lanes, [row], "through", 2.0 if row.session.market == "slow" else 0.02)
    assert by_market(lanes.take(40)) == {"quick": 40}


def test_what_is_under_way_counts_before_it_is_over() -> None:
    lanes = lanes_of(rows("slow", 1000), rows("quick", 1000))
    for row in lanes.take(20):
        done(lanes, [row], "through", 2.0 if row.session.market == "slow" else 1.9)
    shares = by_market(lanes.take(20))
    assert abs(shares["slow"] - shares["quick"]) <= 3


def test_a_market_that_comes_late_has_saved_no_turns() -> None:
    lanes = lanes_of(rows("early", 1000))
    for _ in range(3):
        done(lanes, lanes.take(100), "through", 1.0)
    for row in rows("late", 1000):
        lanes.put(row)
    for _ in range(3):
        taken = lanes.take(8)
        assert by_market(taken).keys() == {"early", "late"}
        done(lanes, taken, "through", 1.0)


# -- always ------------------------------------------------------------------------------------


@given(st.data())
def test_whatever_happens_no_session_is_taken_twice_and_none_is_forgotten(
    data: st.DataObject,
) -> None:
    markets = data.draw(st.lists(st.sampled_from(["UK", "SE", "NO"]), max_size=300))
    all_rows = [Row(Session(name, str(n)), n + 1, n, n % 8) for n, name in enumerate(markets)]
    lanes = lanes_of(all_rows)
    taken: list[Row] = []
    outcomes: st.SearchStrategy[CameTo] = st.sampled_from(["through", "trouble", "nothing"])
    while some := lanes.take(data.draw(st.integers(1, 30))):
        taken += some
        for row in some:
            lanes.done(row, data.draw(outcomes), data.draw(st.floats(0, 100)))
    assert len({id(row) for row in taken}) == len(taken)
    assert (lanes.waiting, lanes.under_way) == (0, 0)
    assert len(taken) + lanes.abandoned == len(all_rows)
    untouched = {row.session.market for row in all_rows if row not in taken}
    assert untouched <= set(lanes.given_up)
