"""The threads of a sweep. They decide nothing: what came of their work is read from one inbox."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

# Threads that call DynamoDB, and so the connections that an idle sweep opens: one reads a page
# while one claims and one settles.
CLERKS = 3

# What comes within this time (seconds) is received together, so as not to wake for each piece.
TOGETHER = 0.003

type Work = Callable[[], Callable[[], None]]


class Crew:
    """Threads that post (`notifiers`) and threads that call DynamoDB (CLERKS); times are monotonic.

    Work returns what is to be done about it, which `receive` runs in the thread that calls it.
    Threads are started when there is work for them, and nobody waits for their end.
    """

    def __init__(self, notifiers: int) -> None:
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._notifiers = _Threads(notifiers, self._inbox)
        self._clerks = _Threads(CLERKS, self._inbox)

    def now(self) -> float:
        """Return the time."""
        return time.monotonic()

    def notify(self, work: Work) -> None:
        """Let a notifier do this."""
        self._notifiers.do(work)

    def call(self, work: Work) -> None:
        """Let a clerk do this."""
        self._clerks.do(work)

    def receive(self, seconds: float) -> None:
        """Wait for something to come of the work, so long at most, and run what has come."""
        try:
            then = self._inbox.get(timeout=max(0.0, seconds))
            time.sleep(min(TOGETHER, max(0.0, seconds)))
            while True:
                then()
                then = self._inbox.get_nowait()
        except Empty:
            return

    def dismiss(self) -> None:
        """Let the threads end when they have done what they are at."""
        self._notifiers.dismiss()
        self._clerks.dismiss()


class _Threads:
    def __init__(self, most: int, inbox: SimpleQueue[Callable[[], None]]) -> None:
        self._most = most
        self._started = 0
        self._inbox = inbox
        self._work: SimpleQueue[Work | None] = SimpleQueue()

    def do(self, work: Work) -> None:
        self._work.put(work)
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._run, daemon=True).start()

    def dismiss(self) -> None:
        for _ in range(self._started):
            self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            self._inbox.put(work())
