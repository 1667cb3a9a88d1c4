"""Keep to a rate that Elevate can take, over all threads of a sweep."""

import threading
import time
from collections.abc import Callable


class Pacer:
    """Let callers through at most `rate` times a second, evenly; a rate of 0 is no limit."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._step = 1 / rate if rate else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, latest: float) -> bool:
        """Return True when it is this caller's turn; False at once if that is not by `latest`."""
        if not self._step:
            return True
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            if turn > latest:
                return False
            self._next = turn + self._step
        if turn > now:
            self._sleep(turn - now)
        return True
