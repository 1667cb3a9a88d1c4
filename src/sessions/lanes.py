"""Which sessions a sweep takes up next: in order of their due time, and fairly between markets.

Each market has a lane with a window: how many of its sessions may be under way. It starts small,
grows by what gets through, and falls back when something does not. A market for which nothing gets
through is given up for this sweep and holds up no other.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sessions.registry import BATCH
from sessions.session import Row

# Sessions under way until the first of them gets through: what an outage costs each minute.
START = 25

# The smallest batch (sessions) that is worth its two calls to DynamoDB while others are at work.
LEAST = 8

# Sessions of a market that are kept ready. Of a market that is slower than this (seconds each),
# further ones stay due for the next sweep: others are behind them.
AHEAD = 1000
SLOW = 0.25

# A batch should keep its thread for no longer than this (seconds): others wait for their turn.
BATCH_SECONDS = 2.5


@dataclass(slots=True)
class Lane:
    """One market: its sessions that wait, and how it fares."""

    window: int = START
    waiting: deque[Row] = field(default_factory=deque)
    flying: int = 0
    tried: int = 0
    silent: Literal["", "elevate", "registry"] = ""
    given_up: bool = False
    seconds_each: float = 0.0

    @property
    def is_full(self) -> bool:
        """Tell whether no more of its sessions are kept ready."""
        return len(self.waiting) >= AHEAD

    @property
    def is_quick(self) -> bool:
        """Tell whether what waits will soon be done, as far as is known."""
        return not self.silent and self.seconds_each <= SLOW


class Lanes:
    """The due sessions of all markets; `next` gives a batch, `done` says what came of it."""

    def __init__(self, rows: Iterator[Row], threads: int, most: int) -> None:
        self._rows = rows
        self._threads = threads
        self._most = most
        self._lanes: dict[str, Lane] = {}
        self._read_all = False
        self._waiting = 0
        self._flying = 0
        self._fruitless = 0
        self._got_through = False
        self._no_room: set[int] = set()

    @property
    def given_up(self) -> dict[str, str]:
        """Return the markets that were given up, each with who was silent."""
        return {market: lane.silent for market, lane in self._lanes.items() if lane.given_up}

    @property
    def left(self) -> set[int]:
        """Return the shards of sessions that wait, or for which there was no room."""
        waiting = {row.shard for lane in self._lanes.values() for row in lane.waiting}
        return self._no_room | waiting

    def next(self, batches: int) -> list[Row]:
        """Return the next batch, of one market, while so many are at work; or nothing for now."""
        # A thread has one batch in work, and one to go on with: who comes next need not wait long.
        if self._room() <= 0 or batches >= 2 * self._threads:
            return []
        self._read_ahead(batches)
        for market, lane in list(self._lanes.items()):
            if count := self._size(lane, batches):
                self._lanes[market] = self._lanes.pop(market)  # others first, next time
                lane.flying += count
                lane.tried += count
                self._flying += count
                self._waiting -= count
                return [lane.waiting.popleft() for _ in range(count)]
        return []

    def done(self, rows: Sequence[Row], counts: Counter[str], seconds: float) -> None:
        """Take note of what came of a batch, and of how long it took."""
        lane = self._lanes[rows[0].session.market]
        lane.flying -= len(rows)
        self._flying -= len(rows)
        lane.seconds_each = seconds / len(rows)
        through, failed = counts["delivered"] + counts["rejected"], counts["failed"]
        troubled = counts["retried"] + counts["held_back"]
        self._fruitless += troubled + failed
        if through:
            self._got_through = True
            lane.silent = ""
        elif troubled or failed:
            lane.silent = "elevate" if troubled else "registry"
        lane.window = START if troubled else min(lane.window + len(rows), self._most)
        if lane.silent and not lane.flying:
            lane.given_up = True
            self._waiting -= len(lane.waiting)
            lane.waiting.clear()

    def _room(self) -> int:
        """Return how many more sessions may be under way now."""
        room = self._most - self._flying
        if self._got_through:
            return room
        # Each market may be tried once, however many there are.
        return min(room, max(START, len(self._lanes)) - self._flying - self._fruitless)

    def _size(self, lane: Lane, batches: int) -> int:
        """Return how many sessions of a lane to take now; 0 is none, or better a full batch later.

        A window is spread over all threads; where it is wide, in DynamoDB's full batches.
        """
        if lane.silent or not lane.waiting:
            return 0
        room = min(lane.window - lane.flying, self._room())
        size = min(-(-lane.window // self._threads), BATCH)
        if not self._got_through:
            # A share for each market, and one for those that may be further back.
            share = max(1, START // (len(self._lanes) + (not self._read_all)))
            room = min(room, share - lane.tried)
            size = min(size, share)
        if lane.seconds_each:
            size = min(size, max(1, int(BATCH_SECONDS / lane.seconds_each)))
        if room < size and batches >= self._threads:
            return 0
        if self._read_all:
            # The last sessions are spread, so that no thread ends long after the others.
            size = min(size, max(-(-self._waiting // self._threads), LEAST))
        return max(0, min(size, room, len(lane.waiting)))

    def _read_ahead(self, batches: int) -> None:
        """Read until there is work for all threads, of a quick market that may take it.

        What a quick market has in plenty is soon done; then it is read on.
        """
        while not self._read_all:
            quick = [lane for lane in self._lanes.values() if lane.is_quick and lane.waiting]
            is_any_ready = any(lane.flying < lane.window for lane in quick)
            is_enough = self._waiting >= self._threads * BATCH
            if is_enough and (is_any_ready or (quick and batches >= self._threads)):
                break
            if any(lane.is_full for lane in quick):
                break
            row = next(self._rows, None)
            if row is None:
                self._read_all = True
                break
            self._put(row)

    def _put(self, row: Row) -> None:
        lane = self._lanes.setdefault(row.session.market, Lane())
        if lane.given_up:
            return
        if lane.is_full:
            self._no_room.add(row.shard)
            return
        lane.waiting.append(row)
        self._waiting += 1
