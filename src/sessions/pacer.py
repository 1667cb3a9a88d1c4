"""Keep a sweep to a rate that Elevate can take."""


class Pacer:
    """Give turns at most `rate` times a second, evenly; a rate of 0 is no limit.

    Times are monotonic seconds. Turns that nobody took are not saved up. `ahead` is how many
    sessions may be claimed before their turn: those of the next second, for in a second few come
    back to life. None is no limit.
    """

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate if rate else 0.0
        self._next = 0.0
        self.ahead = max(1, int(rate)) if rate else None

    def wait(self, now: float) -> float:
        """Return the seconds until the next turn."""
        return max(0.0, self._next - now) if self._step else 0.0

    def take(self, now: float) -> None:
        """Take the next turn, which has come."""
        self._next = max(now, self._next) + self._step
