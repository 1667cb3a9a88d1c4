"""Track and end visitor sessions from a shop's backend. Copy this file; it needs urllib3 2 only."""

import json
import logging
import time
from typing import Any
from urllib.parse import quote

import urllib3

TRACK_EVERY = 60.0  # seconds; far less than the stack's SessionIdleMinutes
CALL_AGAIN_AFTER = 30.0  # seconds, unless the answer says how many

log = logging.getLogger(__name__)
# At DEBUG, urllib3 logs paths, and so session keys.
logging.getLogger("urllib3").setLevel(logging.INFO)


class ElevateSessions:
    """Share one between threads. No failure of the service or the network raises."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"x-api-key": api_key, "content-type": "application/json"}
        self._http = urllib3.PoolManager(maxsize=16, headers=headers, retries=False)
        self._url = url.rstrip("/")
        self._tracked: dict[object, float] = {}

    def track(self, session: dict[str, Any], interactive: bool = False) -> bool:
        """Note that the visitor is active; False means that they signed out and need new keys."""
        # The first click and a new customerKey (sign-in) are news and do not wait.
        news, now = (*sorted(session.items()), interactive), time.monotonic()
        if now - self._tracked.get(news, -TRACK_EVERY) < TRACK_EVERY:
            return True
        if len(self._tracked) >= 10_000:
            self._tracked.clear()
        self._tracked[news] = now  # even if the call fails: an outage must not slow every page
        body = session | ({"interactive": True} if interactive else {})
        status, _ = self._call("PUT", quote(body.pop("sessionKey"), safe=""), body, 2)
        if status == 409:
            self._tracked.pop(news, None)
        return status != 409

    def end(self, session: dict[str, Any]) -> float | None:
        """End a session; a number means: not accepted, call again after that many seconds."""
        status, wait = self._call("POST", "end", session, 15)
        # 204: ended. 202: kept, and sent later by the service. Other 4xx: it would only fail again.
        return wait if status in (0, 429) or status >= 500 else None

    def _call(self, method: str, path: str, body: object, seconds: float) -> tuple[int, float]:
        url, limit = f"{self._url}/sessions/{path}", urllib3.Timeout(total=seconds, connect=1)
        try:
            reply = self._http.request(method, url, body=json.dumps(body), timeout=limit)
        except urllib3.exceptions.HTTPError as error:
            log.warning("%s: %s", method, type(error).__name__)
            return 0, CALL_AGAIN_AFTER
        if reply.status >= 300:  # the service's own problems name fields and hold no key
            own = reply.headers.get("content-type") == "application/problem+json"
            log.warning("%s: %s %s", method, reply.status, reply.data.decode() if own else "")
        wait = reply.headers.get("retry-after", "")
        return reply.status, float(wait) if wait.isdecimal() else CALL_AGAIN_AFTER
