"""Follow the functions' logs in CloudWatch, one readable line for each."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

_POLL_SECONDS = 0.5
# Fields that say the same on every line here.
_QUIET = {"level", "message", "timestamp", "service", "correlation_id"}


def follow(logs: Any, groups: list[str]) -> Iterator[str]:
    """Yield the lines written from now on, in their order, for ever."""
    since = dict.fromkeys(groups, int(time.time() * 1000))
    shown: dict[str, Counter[tuple[int, str]]] = {group: Counter() for group in groups}
    while True:
        found: list[tuple[int, str]] = []
        for group in groups:
            # The emulator gives events no id, so equal lines of one millisecond are counted.
            events = Counter(
                (e["timestamp"], e["message"]) for e in _events(logs, group, since[group])
            )
            new = events - shown[group]
            shown[group] = events
            since[group] = max((stamp for stamp, _ in events), default=since[group])
            for stamp, message in new.elements():
                if line := readable(group.rsplit("-", 1)[-1], message):
                    found.append((stamp, line))
        yield from (line for _, line in sorted(found))
        time.sleep(_POLL_SECONDS)


def _events(logs: Any, group: str, since: int) -> Iterator[dict[str, Any]]:
    try:
        pages = logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, startTime=since
        )
        for page in pages:
            yield from page["events"]
    except logs.exceptions.ResourceNotFoundException:
        return  # nothing has been written yet


def readable(function: str, message: str) -> str:
    """Return a structured line as text; nothing for metrics and for Lambda's own lines."""
    try:
        line = json.loads(message)
    except ValueError:
        return (
            "" if message.startswith(("START ", "END ", "REPORT ")) else f"{function:5} {message}"
        )
    if not isinstance(line, dict) or "_aws" in line or "message" not in line:
        return ""
    fields = " ".join(f"{name}={value}" for name, value in line.items() if name not in _QUIET)
    clock = str(line.get("timestamp", ""))[11:19]
    return f"{clock} {function:5} {line.get('level', ''):7} {line['message']} {fields}"
