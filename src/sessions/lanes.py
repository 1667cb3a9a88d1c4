"""Whose turn is it? Which due sessions a sweep takes up next: fairly between markets, oldest first.

Each market has a lane with a window: how many of its sessions may be under way. The first windows
share START between them; a window grows by one with each session that gets through and falls back
when one does not. A market for which nothing gets through is given up for this sweep.

Turns are counted in the seconds for which a market has kept threads busy, not in sessions: so a
slow market cannot starve a quick one.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Literal

from sessions.session import Row

# Sessions that may be under way, or in trouble, before the first one gets through: what an outage
# of all markets costs each minute, or one for each market, if there are more.
START = 25

# So many failures before anything got through are an outage of all markets, tried or not: callers
# may have made the markets up.
OUTAGE = 100

# What a session is taken to last (seconds) while none of its market has been answered.
_UNKNOWN_PACE = 0.1

# How much of the latest session's time goes into its market's pace.
_LATEST = 0.25


@dataclass(slots=True, eq=False)
class Lane:
    """One market: its sessions that wait, and how it fares."""

    waiting: list[tuple[int, int, Row]] = field(default_factory=list)  # a heap, oldest first
    under_way: int = 0
    grown: int = 0  # got through since the last trouble
    failures: int = 0  # troubled since the last one that got through
    has_got_through: bool = False
    given_up: bool = False
    spent: float = 0.0  # thread-seconds
    pace: float = _UNKNOWN_PACE  # seconds a session

    @property
    def is_in_trouble(self) -> bool:
        """Return whether it was given up, or all that was tried has failed."""
        has_failed = self.failures > 0 and not (self.has_got_through or self.under_way)
        return self.given_up or has_failed

    @property
    def share(self) -> float:
        """Return the thread-seconds it has had, and those its sessions under way will take."""
        return self.spent + self.under_way * self.pace


class Lanes:
    """The due sessions of all markets. `waiting` and `under_way` count over all of them."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._order = itertools.count()
        self._failures = 0  # until something gets through
        self._has_got_through = False
        self._is_outage = False
        self.waiting = 0
        self.under_way = 0
        # Sessions of markets that were given up.
        self.abandoned = 0

    @property
    def given_up(self) -> list[str]:
        """Return the markets for which nothing gets through, however few sessions were tried."""
        return sorted(market for market, lane in self._lanes.items() if lane.is_in_trouble)

    @property
    def shards_waiting(self) -> set[int]:
        """Return the shards of the sessions that wait."""
        return {row.shard for lane in self._lanes.values() for _, _, row in lane.waiting}

    def put(self, row: Row) -> None:
        """Let a due session wait for its turn."""
        lane = self._lanes.get(row.session.market)
        if lane is None:
            lane = self._lanes[row.session.market] = Lane()
        if lane.given_up or self._is_outage:
            self.abandoned += 1
            return
        if not lane.waiting and not lane.under_way:
            # It has had no turns because it had no sessions, which saves none up.
            busy = [other.spent for other in self._lanes.values() if other.waiting]
            lane.spent = max(lane.spent, min(busy, default=0.0))
        heapq.heappush(lane.waiting, (row.due_at or 0, next(self._order), row))
        self.waiting += 1

    def take(self, most: int) -> list[Row]:
        """Return at most so many sessions whose turn it is; they are under way now."""
        if most <= 0:
            return []
        turns = [
            (lane.share, number, lane)
            for number, lane in enumerate(self._lanes.values())
            if lane.waiting and self._room(lane) > 0
        ]
        heapq.heapify(turns)
        taken: list[Row] = []
        while turns and len(taken) < most:
            _, number, lane = heapq.heappop(turns)
            # The markets before it have used up what an outage may cost.
            if self._room(lane) <= 0:
                continue
            _, _, row = heapq.heappop(lane.waiting)
            taken.append(row)
            lane.under_way += 1
            self.under_way += 1
            self.waiting -= 1
            if lane.waiting and self._room(lane) > 0:
                heapq.heappush(turns, (lane.share, number, lane))
        return taken

    def done(
        self, row: Row, came_to: Literal["through", "trouble", "nothing"], seconds: float
    ) -> None:
        """Note what came of a session, and for how long it kept a thread.

        `nothing` was sent: that says nothing about its market.
        """
        lane = self._lanes[row.session.market]
        lane.under_way -= 1
        self.under_way -= 1
        if came_to == "nothing":
            return
        lane.spent += seconds
        if lane.has_got_through or lane.failures:
            lane.pace += (seconds - lane.pace) * _LATEST
        else:
            lane.pace = seconds
        if came_to == "through":
            self._has_got_through = lane.has_got_through = True
            lane.grown += 1
            lane.failures = 0
        else:
            self._failures += 1
            lane.grown = 0
            lane.failures += 1
        if lane.failures and not lane.under_way and self._room(lane) <= 0:
            self._give_up(lane)
        if self._failures >= OUTAGE and not (self._has_got_through or self.under_way):
            self._is_outage = True
            for each in self._lanes.values():
                self._give_up(each)

    def _give_up(self, lane: Lane) -> None:
        lane.given_up = True
        self.waiting -= len(lane.waiting)
        self.abandoned += len(lane.waiting)
        lane.waiting.clear()

    def _room(self, lane: Lane) -> int:
        """Return how many more of a market's sessions may be taken up now."""
        first = START if lane.has_got_through else max(1, START // len(self._lanes))
        room = first + lane.grown - lane.failures - lane.under_way
        if self._has_got_through:
            return room
        # Nothing gets through yet: a market that is found late may be tried once all the same.
        tried = self._failures + self.under_way
        once = 1 - lane.failures - lane.under_way if tried < OUTAGE else 0
        return min(room, max(once, START - tried))
