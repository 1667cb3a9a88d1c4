"""Which sessions a sweep takes up next: in order of their due time, and fairly between markets.

Each market has a lane with a window: how many of its sessions may be under way. It starts small,
grows by what gets through, and falls back when something does not. A market for which nothing gets
through is given up for this sweep and holds up no other.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from sessions.registry import BATCH
from sessions.session import Row

# Sessions under way until the first of them gets through: what an outage costs each minute.
START = 25

# The smallest batch (sessions) that is worth its two calls to DynamoDB while others are at work.
LEAST = 8

# Sessions of one market that are kept ready for each thread: more than a slow one takes in a
# minute. Any beyond that stay due for the next sweep.
AHEAD = 500

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


class Lanes:
    """The due sessions of all markets; `next` gives a batch, `done` says what came of it.

    `left` tells the shards of sessions that nobody took.
    """

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
        self._dropped: set[int] = set()

    @property
    def left(self) -> set[int]:
        """Return the shards of sessions that wait, or for which there was no room."""
        lanes = self._lanes.values()
        return self._dropped.union(row.shard for lane in lanes for row in lane.waiting)

    @property
    def given_up(self) -> dict[str, str]:
        """Return the markets that were given up, each with who did not answer."""
        return {market: lane.silent for market, lane in self._lanes.items() if lane.given_up}

    def next(self, batches: int) -> list[Row]:
        """Return the next batch, of one market, while so many are at work; or nothing for now."""
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
        # Rows that needed no notification say nothing about Elevate; their tries go to others.
        lane.tried -= len(rows) - through - troubled - failed
        lane.window = START if troubled else min(lane.window + len(rows), self._most)
        if lane.silent and not lane.flying:
            lane.given_up = True
            self._waiting -= len(lane.waiting)
            lane.waiting.clear()

    def _room(self) -> int:
        """Return how many more sessions may be taken up now."""
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
        """Read until there is work for all threads, of markets that are quick if there are any.

        A slow market leaves threads free for others further back. A quick one whose queue is full
        is no reason to read on and drop more of its sessions.
        """
        while not self._read_all:
            quick = [lane for lane in self._lanes.values() if lane.waiting and self._is_quick(lane)]
            waiting = sum(len(lane.waiting) for lane in quick)
            is_any_ready = any(lane.flying < lane.window for lane in quick)
            is_full = waiting + BATCH > AHEAD * self._threads
            is_busy = batches >= self._threads
            if waiting >= self._threads * BATCH and (is_any_ready or is_full or is_busy):
                break
            some = list(islice(self._rows, BATCH))
            self._read_all = len(some) < BATCH
            for row in some:
                self._put(row)

    def _is_quick(self, lane: Lane) -> bool:
        return not lane.silent and lane.seconds_each * BATCH <= BATCH_SECONDS

    def _put(self, row: Row) -> None:
        lane = self._lanes.setdefault(row.session.market, Lane())
        if lane.given_up:
            return
        if len(lane.waiting) >= AHEAD * self._threads:
            self._dropped.add(row.shard)
            return
        lane.waiting.append(row)
        self._waiting += 1
