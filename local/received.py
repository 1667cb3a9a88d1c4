"""What the simulated Elevate received: kept, counted, and shown in pages."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from local.elevate_rules import session_key


class _Kept(NamedTuple):
    """One request; its query is shown only when somebody asks."""

    time: float
    method: str
    target: str
    session_key: str
    status: int | None
    fault: str


class Received:
    """The last `limit` requests; when there are too many, the older half is forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget what was received."""
        self._received: list[_Kept] = []
        self._dropped = 0
        self._deliveries = 0
        self._delivered: Counter[str] = Counter()

    def keep(self, method: str, target: str, status: int | None, fault: str) -> None:
        """Keep a request, with its answer's status if there was an answer."""
        if len(self._received) >= self._limit:
            self._drop_older_half()
        kept = _Kept(time.time(), method, target, session_key(target), status, fault)
        self._received.append(kept)
        self._count(kept, 1)

    def all(self) -> list[dict[str, Any]]:
        """Return all requests that are still kept."""
        return [self._shown(place) for place in range(len(self._received))]

    def page(self, after: int, limit: int, session_key: str = "") -> dict[str, Any]:
        """Return at most `limit` requests after an index, of one session or of all."""
        places: Sequence[int] = range(len(self._received))
        if session_key:
            places = [n for n in places if self._received[n].session_key == session_key]
        rest = places[bisect_left(places, after - self._dropped) :]
        shown = [self._shown(place) for place in rest[:limit]]
        page: dict[str, Any] = {"count": len(places), "notifications": shown}
        if len(rest) > limit:
            page["next"] = shown[-1]["index"]
        return page

    def summary(self) -> dict[str, Any]:
        """Return how much was received and delivered, and what was delivered twice."""
        return {
            "received": len(self._received),
            "delivered": self._deliveries,
            "sessions": len(self._delivered),
            "deliveredTwice": sorted(key for key, times in self._delivered.items() if times > 1),
            "forgotten": self._dropped,
        }

    def _drop_older_half(self) -> None:
        older = self._received[: self._limit // 2]
        for kept in older:
            self._count(kept, -1)
        del self._received[: len(older)]
        self._dropped += len(older)

    def _count(self, kept: _Kept, change: int) -> None:
        if kept.status != 204:
            return
        self._deliveries += change
        # A synthetic or anonymous visitor may have no session to count.
        if kept.session_key:
            self._delivered[kept.session_key] += change
            if not self._delivered[kept.session_key]:
                del self._delivered[kept.session_key]

    def _shown(self, place: int) -> dict[str, Any]:
        kept = self._received[place]
        path, _, query = kept.target.partition("?")
        shown: dict[str, Any] = {
            "index": self._dropped + place + 1,
            "time": kept.time,
            "method": kept.method,
            "path": path,
            "query": dict(parse_qsl(query, keep_blank_values=True)),
            "rawQuery": query,
            "status": kept.status,
        }
        if kept.fault != "none":
            shown["fault"] = kept.fault
        return shown
