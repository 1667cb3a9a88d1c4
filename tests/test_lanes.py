"""Which sessions a sweep takes next: rules about rows and counts; no clock, network or table."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.lanes import AHEAD, BATCH_SECONDS, LEAST, START, Lanes
from sessions.registry import BATCH
from sessions.session import Row, Session

THREADS = 4
MOST = 200


def rows(market: str, count: int, shard: int = 0) -> list[Row]:
    return [Row(Session(market, f"{market}-{n}"), n, n, shard) for n in range(count)]


def lanes_of(*some: Sequence[Row], threads: int = THREADS, most: int = MOST) -> Lanes:
    return Lanes(iter([row for several in some for row in several]), threads, most)


def mixed(count: int, *markets: str) -> list[Row]:
    """Return that many rows of each market, the oldest first."""
    return sorted((r for name in markets for r in rows(name, count)), key=lambda row: row.active_at)


def taken(lanes: Lanes, batches: int = 0) -> list[list[Row]]:
    """Return all batches that may go out now, given how many are already out."""
    found: list[list[Row]] = []
    while batch := lanes.next(batches + len(found)):
        found.append(batch)
    return found


def settle(lanes: Lanes, batches: Sequence[list[Row]], came_to: str, seconds: float = 0.1) -> None:
    for batch in batches:
        lanes.done(batch, Counter({came_to: len(batch)}), seconds)


def market(batch: Sequence[Row]) -> str:
    (found,) = {row.session.market for row in batch}
    return found


def count(batches: Sequence[Sequence[Row]]) -> int:
    return sum(map(len, batches))


# -- the window --------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["delivered", "rejected"])
def test_a_window_starts_small_and_doubles_while_everything_gets_through(through: str) -> None:
    """A rejection is an answer too. The first wave is half of START, in case of another market."""
    lanes = lanes_of(rows("UK", 2000), threads=30)
    waves = []
    for _ in range(6):
        wave = taken(lanes)
        waves.append(count(wave))
        settle(lanes, wave, through)
    half = START // 2
    assert waves == [half, START + half, 2 * (START + half), 4 * (START + half), MOST, MOST]


def test_a_window_grows_with_each_batch_that_gets_through() -> None:
    lanes = lanes_of(rows("UK", 1000))
    first, *others = taken(lanes)
    settle(lanes, [first], "delivered")
    assert count(others) + count(taken(lanes)) == START + len(first)


@pytest.mark.parametrize("trouble", ["retried", "held_back"])
def test_a_window_falls_back_when_something_does_not_get_through(trouble: str) -> None:
    lanes = lanes_of(rows("UK", 2000))
    for _ in range(4):
        settle(lanes, taken(lanes), "delivered")
    wave = taken(lanes)
    settle(lanes, wave[1:], "delivered")
    lanes.done(wave[0], Counter({trouble: 1, "delivered": len(wave[0]) - 1}), 0.1)
    assert count(taken(lanes)) == START


def test_claims_that_failed_do_not_slow_down_the_calls_to_elevate() -> None:
    lanes = lanes_of(rows("UK", 1000))
    wave = taken(lanes)
    for batch in wave:
        lanes.done(batch, Counter(delivered=len(batch) - 1, failed=1), 0.1)
    assert count(taken(lanes)) == START + count(wave)


# -- an outage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "silent"),
    [("retried", "elevate"), ("held_back", "elevate"), ("failed", "registry")],
)
def test_a_market_where_nothing_gets_through_is_given_up_on_after_one_window(
    trouble: str, silent: str
) -> None:
    lanes = lanes_of(rows("UK", 90))
    wave = taken(lanes)
    settle(lanes, wave, trouble)
    assert (count(wave), lanes.given_up) == (START, {"UK": silent})
    assert taken(lanes) == []


def test_a_market_is_given_up_on_only_when_none_of_its_sessions_is_in_flight() -> None:
    """The last batch may bring the first answer."""
    lanes = lanes_of(rows("UK", 1000))
    *others, last = taken(lanes)
    settle(lanes, others, "retried")
    assert lanes.given_up == {}
    assert taken(lanes, 1) == [], "but nothing more is sent while it is silent"
    settle(lanes, [last], "delivered")
    assert lanes.given_up == {}
    assert taken(lanes)


def test_one_answer_among_many_failures_keeps_a_market_going() -> None:
    lanes = lanes_of(rows("UK", 1000))
    for batch in taken(lanes):
        lanes.done(batch, Counter(delivered=1, rejected=1, retried=len(batch) - 2), 0.1)
    assert lanes.given_up == {}
    assert taken(lanes)


def test_a_market_with_only_failed_and_held_back_sessions_is_silent() -> None:
    lanes = lanes_of(rows("UK", 1000))
    for batch in taken(lanes):
        lanes.done(batch, Counter(retried=1, held_back=1, skipped=len(batch) - 2), 0.1)
    assert lanes.given_up == {"UK": "elevate"}


def test_a_market_that_falls_silent_later_is_given_up_on_too() -> None:
    lanes = lanes_of(rows("UK", 1000))
    settle(lanes, taken(lanes), "delivered")
    settle(lanes, taken(lanes), "retried")
    assert lanes.given_up == {"UK": "elevate"}


@pytest.mark.parametrize("neither", ["expired", "skipped"])
def test_what_needs_no_notification_says_nothing_about_elevate(neither: str) -> None:
    lanes = lanes_of(rows("UK", 1000))
    for _ in range(2):
        settle(lanes, taken(lanes), neither)
    assert lanes.given_up == {}


def test_the_first_notifications_are_shared_out_between_markets() -> None:
    """Until all rows have been read, one share is reserved for markets further back."""
    lanes = lanes_of(mixed(1000, "UK", "SE"))
    shares = Counter(market(batch) for batch in taken(lanes) for _ in batch)
    assert shares == {name: START // 3 for name in ("UK", "SE")}
    few = lanes_of(*(rows(name, 30) for name in ("UK", "SE", "NO")), threads=12)
    shares = Counter(market(batch) for batch in taken(few) for _ in batch)
    assert shares == {name: START // 3 for name in ("UK", "SE", "NO")}


def test_each_of_many_markets_is_tried_once() -> None:
    names = [f"market {n}" for n in range(2 * START)]
    lanes = lanes_of(*(rows(name, 3) for name in names), most=1000)
    tried: list[str] = []
    for _ in range(10 * START):
        wave = taken(lanes)
        tried += [market(batch) for batch in wave for _ in batch]
        settle(lanes, wave, "retried")
    assert sorted(tried) == sorted(names)
    assert sorted(lanes.given_up) == sorted(names)


@pytest.mark.parametrize("trouble", ["retried", "failed"])
def test_an_outage_of_all_markets_costs_no_more_than_an_outage_of_one(trouble: str) -> None:
    lanes = lanes_of(*(rows(name, 1000) for name in ("UK", "SE", "NO")))
    sent = 0
    for _ in range(20):
        wave = taken(lanes)
        sent += count(wave)
        settle(lanes, wave, trouble)
    assert START - 3 < sent <= START


def test_a_market_that_is_given_up_on_does_not_delay_the_others() -> None:
    lanes = lanes_of(rows("ill", 900), rows("well", 100))
    ended: list[Row] = []
    for _ in range(100):
        for batch in taken(lanes):
            came_to = "retried" if market(batch) == "ill" else "delivered"
            ended += batch if came_to == "delivered" else []
            settle(lanes, [batch], came_to)
    assert sorted(row.active_at for row in ended) == list(range(100))
    assert lanes.given_up == {"ill": "elevate"}


def test_sessions_read_after_their_market_was_given_up_on_are_not_handed_over() -> None:
    ill, well = rows("ill", 3000, shard=1), rows("well", 10, shard=2)
    lanes = lanes_of(ill[:1000], well, ill[1000:])
    for _ in range(20):
        for batch in taken(lanes):
            settle(lanes, [batch], "retried" if market(batch) == "ill" else "delivered")
    assert taken(lanes) == []
    assert lanes.left == set(), "sessions that are not to be sent are not handed over"


# -- fairness ----------------------------------------------------------------------------------


def test_markets_take_turns() -> None:
    lanes = lanes_of(mixed(300, "UK", "SE", "NO"), most=1000)
    settle(lanes, taken(lanes), "delivered")
    turns = [market(lanes.next(0)) for _ in range(6)]
    assert turns[:3] == turns[3:]
    assert sorted(turns[:3]) == ["NO", "SE", "UK"]


def test_a_batch_holds_one_market_in_order_of_due_time() -> None:
    lanes = lanes_of(mixed(50, "UK", "SE"))
    seen: dict[str, list[int]] = {"UK": [], "SE": []}
    while wave := taken(lanes):
        for batch in wave:
            seen[market(batch)] += [row.active_at for row in batch]
        settle(lanes, wave, "delivered")
    assert seen == {"UK": list(range(50)), "SE": list(range(50))}


def test_a_slow_markets_batches_do_not_occupy_a_thread_for_long() -> None:
    lanes = lanes_of(rows("UK", 1000))
    wave = taken(lanes)
    for batch in wave:
        lanes.done(batch, Counter(delivered=len(batch)), 0.5 * len(batch))
    assert {len(batch) for batch in taken(lanes)} == {int(BATCH_SECONDS / 0.5)}


def test_at_most_one_more_batch_is_queued_for_each_thread() -> None:
    """So the next market need not wait behind many slow batches."""
    lanes = lanes_of(rows("UK", 1000), most=1000)
    for _ in range(5):
        settle(lanes, taken(lanes), "delivered", 100)
    assert [len(batch) for batch in taken(lanes)] == [1] * 2 * THREADS


def test_a_very_slow_market_is_taken_one_session_at_a_time() -> None:
    lanes = lanes_of(rows("UK", 1000))
    wave = taken(lanes)
    for batch in wave:
        lanes.done(batch, Counter(delivered=len(batch)), 4 * BATCH_SECONDS * len(batch))
    assert {len(batch) for batch in taken(lanes)} == {1}


def finished(lanes: Lanes, threads: int, seconds: dict[str, float]) -> dict[str, float]:
    """Return when each market is done, given the seconds that one of its sessions takes."""
    free, flying, now = [0.0] * threads, list[tuple[float, int, float, list[Row]]](), 0.0
    order = itertools.count()
    ends: dict[str, float] = {}
    while True:
        for batch in taken(lanes, len(flying)):
            took = len(batch) * seconds[market(batch)]
            end = max(now, heapq.heappop(free)) + took  # the queue of a thread pool
            heapq.heappush(free, end)
            heapq.heappush(flying, (end, next(order), took, batch))
        if not flying:
            return ends
        now, _, took, batch = heapq.heappop(flying)
        ends[market(batch)] = now
        lanes.done(batch, Counter(delivered=len(batch)), took)


@pytest.mark.parametrize("older", [300, 600, 3000])
def test_a_market_that_answers_slowly_lets_others_take_turns(older: int) -> None:
    """A sweep has 50 seconds; 3,000 older sessions alone would keep all threads busy for longer."""
    several = [rows(name, 300) for name in ("quick", "as quick")]
    lanes = lanes_of(rows("slow", older), *several, threads=16, most=800)
    ends = finished(lanes, 16, {"slow": 1.0, "quick": 0.01, "as quick": 0.01})
    assert max(ends["quick"], ends["as quick"]) < 50
    assert ends["slow"] < older / 16 + 5


def test_a_market_that_is_nearly_too_slow_lets_others_take_turns() -> None:
    lanes = lanes_of(rows("slow", 5000), rows("quick", 100), threads=16, most=800)
    assert finished(lanes, 16, {"slow": 2.9, "quick": 0.03})["quick"] < 20


@pytest.mark.parametrize("threads", [1, 16, 128])
def test_a_quick_market_is_swept_completely_however_many_sessions_it_has(threads: int) -> None:
    lanes = lanes_of(rows("UK", 20_000), threads=threads, most=2 * BATCH * threads)
    ended = 0
    while wave := taken(lanes):
        ended += count(wave)
        settle(lanes, wave, "delivered")
    assert (ended, lanes.left) == (20_000, set())


@pytest.mark.parametrize("neutral", ["expired", "skipped"])
def test_what_needs_no_notification_does_not_use_up_a_sweep(neutral: str) -> None:
    lanes = lanes_of(rows("UK", 2000))
    for _ in range(10):
        settle(lanes, taken(lanes), neutral)
    ended = 0
    while wave := taken(lanes):
        ended += count(wave)
        settle(lanes, wave, "delivered")
    assert ended > 1000


@pytest.mark.parametrize("trouble", [("delivered", 0.2), ("retried", 0.01)])
def test_other_markets_are_found_behind_a_large_one_that_is_slow_or_silent(
    trouble: tuple[str, float],
) -> None:
    """Sessions left for the next sweep are reported by their shard."""
    came_to, seconds = trouble
    many, behind = rows("ill", THREADS * AHEAD + 2 * START), rows("well", 5, shard=2)
    lanes = lanes_of(many, rows("ill", 9, shard=1), behind)
    first, *others = taken(lanes)
    assert {market(batch) for batch in [first, *others]} == {"ill"}
    lanes.done(first, Counter({came_to: len(first)}), seconds * len(first))
    assert "well" in {market(batch) for batch in taken(lanes)}
    assert lanes.left >= {1}


# -- batches -----------------------------------------------------------------------------------


def test_a_window_is_spread_over_all_threads() -> None:
    wave = taken(lanes_of(rows("UK", 90)))
    assert [len(batch) for batch in wave] == [7, 7, 7, 4]


def test_a_wide_window_goes_out_in_full_dynamodb_batches() -> None:
    lanes = lanes_of(rows("UK", 2000))
    for _ in range(4):
        settle(lanes, taken(lanes), "delivered")
    assert [len(batch) for batch in taken(lanes)] == [BATCH] * (MOST // BATCH)


def test_a_batch_is_held_until_it_is_full_while_all_threads_are_busy() -> None:
    """This saves many small calls to DynamoDB."""
    lanes = lanes_of(rows("UK", 1000))
    for _ in range(4):
        settle(lanes, taken(lanes), "delivered")
    wave = taken(lanes)
    lanes.done(wave[0][:5], Counter(delivered=5), 0.1)
    assert lanes.next(THREADS) == []
    assert len(lanes.next(THREADS - 1)) == 5, "an idle thread takes what there is"


def test_the_last_sessions_are_spread_over_the_threads() -> None:
    """But not so thinly that their calls to DynamoDB cost more than they gain."""
    lanes = lanes_of(rows("UK", 1200), most=1000)
    left = 1200
    while left > THREADS * BATCH:
        wave = taken(lanes)
        left -= count(wave)
        settle(lanes, wave, "delivered")
    while left:
        wave = taken(lanes)
        assert len(wave[0]) == max(map(len, wave)) == min(left, max(-(-left // THREADS), LEAST))
        assert len(wave) >= min(THREADS, -(-left // LEAST))
        left -= count(wave)
        settle(lanes, wave, "delivered")


# -- always ------------------------------------------------------------------------------------

OUTCOMES = ("delivered", "rejected", "retried", "held_back", "failed", "skipped", "expired")


@given(st.data())
def test_whatever_happens_no_session_is_handed_out_twice_and_none_is_forgotten(
    data: st.DataObject,
) -> None:
    markets = data.draw(st.lists(st.sampled_from(["UK", "SE", "NO"]), max_size=300))
    threads, most = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 120))
    all_rows = [Row(Session(name, str(n)), n, n, n % 8) for n, name in enumerate(markets)]
    lanes = Lanes(iter(all_rows), threads, most)
    flying: list[list[Row]] = []
    handed_out: list[Row] = []
    while True:
        while batch := lanes.next(len(flying)):
            assert 0 < len(batch) <= BATCH
            assert market(batch) not in lanes.given_up
            flying.append(batch)
            handed_out += batch
            assert count(flying) <= most
        if not flying:
            break
        batch = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        outcomes = [data.draw(st.sampled_from(OUTCOMES)) for _ in batch]
        lanes.done(batch, Counter(outcomes), data.draw(st.floats(0.01, 100)))
    keys = [row.session.session_key for row in handed_out]
    assert len(keys) == len(set(keys))
    untouched = {row.session.market for row in all_rows if row not in handed_out}
    assert untouched <= set(lanes.given_up)


def test_rows_are_not_read_further_ahead_than_needed() -> None:
    read = 0

    def endless() -> Iterator[Row]:
        nonlocal read
        for row in rows("UK", 100_000):
            read += 1
            yield row

    lanes = Lanes(endless(), THREADS, MOST)
    settle(lanes, taken(lanes), "delivered")
    assert read <= START + (THREADS + 1) * BATCH
