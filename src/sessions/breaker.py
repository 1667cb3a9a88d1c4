"""Hold notifications back while Elevate times out, so that callers do not wait in turn."""

import threading
import time
from collections.abc import Callable
from random import SystemRandom

# The system's: a generator's own state would be the same in all copies of a snapshot (SnapStart).
_random = SystemRandom()

# Open after this many time-outs in a row; one probe after each pause (seconds).
TIMEOUTS = 3
PAUSE = 10.0


class Breaker:
    """Remember for which markets Elevate times out. One per execution environment.

    While it is open, one caller at a time probes after each pause, which is jittered so that many
    functions do not probe in step. Any answer closes it. Each market has its own state, so that one
    that hangs does not hold up the others.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._timeouts: dict[str, int] = {}
        self._probe_at: dict[str, float] = {}

    def is_open(self, market: str) -> bool:
        """Return whether a market's notifications are held back at the moment."""
        return self._clock() < self._probe_at.get(market, 0.0)

    def lets_through(self, market: str) -> bool:
        """Return whether to send; when a probe is due, only the caller that asks first may."""
        with self._lock:
            if self.is_open(market):
                return False
            if market in self._probe_at:
                self._pause(market)
            return True

    def timed_out(self, market: str) -> None:
        """Count one time-out."""
        with self._lock:
            self._timeouts[market] = self._timeouts.get(market, 0) + 1
            if self._timeouts[market] >= TIMEOUTS:
                self._pause(market)

    def answered(self, market: str) -> None:
        """Close: Elevate, or its network, answered at once, if only to refuse."""
        with self._lock:
            self._timeouts.pop(market, None)
            self._probe_at.pop(market, None)

    def _pause(self, market: str) -> None:
        self._probe_at[market] = self._clock() + PAUSE * _random.uniform(0.5, 1.0)
