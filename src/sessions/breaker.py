"""Hold notifications back while Elevate times out, so that callers do not wait in turn."""

import random
import threading
import time
from collections.abc import Callable

# Held back after this many time-outs; one probe after each pause (seconds).
TIMEOUTS = 3
PAUSE = 10.0

# The markets that are remembered: callers may choose them.
REMEMBERED = 100

_ALL = None


class Breaker:
    """Remember where Elevate times out. One per execution environment, for its callers.

    A market is held back after three time-outs in a row, so that one that hangs does not hold up
    the others. All markets are held back after time-outs of three different ones without an answer
    to any, so that nobody waits for one market after the other.

    While something is held back, one caller at a time probes after each pause, which is jittered so
    that many functions do not probe in step. Any answer ends it, for its market and for all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._timeouts: dict[str, int] = {}  # in a row; the market that timed out last is last
        self._silent: set[str] = set()  # three that timed out since the last answer to any
        self._probe_at: dict[str | None, float] = {}

    def lets_through(self, market: str) -> bool:
        """Return whether to send; when a probe is due, only the caller that asks first may."""
        with self._lock:
            held_back = {market, _ALL} & self._probe_at.keys()
            if any(self._clock() < self._probe_at[one] for one in held_back):
                return False
            for one in held_back:
                self._pause(one)
            return True

    def timed_out(self, market: str) -> None:
        """Count a notification for which a caller has waited in vain."""
        with self._lock:
            self._timeouts[market] = self._timeouts.pop(market, 0) + 1
            if self._timeouts[market] >= TIMEOUTS:
                self._pause(market)
            if len(self._silent) < TIMEOUTS:
                self._silent.add(market)
            if len(self._silent) == TIMEOUTS:
                self._pause(_ALL)
            if len(self._timeouts) > REMEMBERED:
                self._forget(next(iter(self._timeouts)))

    def answered(self, market: str) -> None:
        """Let through again: Elevate, or its network, answered at once, if only to refuse."""
        with self._lock:
            self._forget(market)
            self._silent.clear()
            self._probe_at.pop(_ALL, None)

    def _pause(self, one: str | None) -> None:
        self._probe_at[one] = self._clock() + PAUSE * random.uniform(0.5, 1.0)

    def _forget(self, market: str) -> None:
        self._timeouts.pop(market, None)
        self._probe_at.pop(market, None)
