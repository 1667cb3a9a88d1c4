"""Follow the functions' logs in CloudWatch, one readable line for each."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

# How long (milliseconds) a line may be under way: later ones are not shown.
_LATE = 10_000
# Fields that say the same on every line here, or have a place of their own.
_QUIET = {"level", "message", "timestamp", "service"}


def readable(function: str, message: str) -> str:
    """Return a structured line as text; nothing for metrics and what Lambda says of success."""
    try:
        line = json.loads(message)
    except ValueError:
        usual = message.startswith(("START ", "END ", "REPORT "))
        return "" if usual else f"{function:5} {message.rstrip()}"
    if not isinstance(line, dict) or "_aws" in line:
        return ""
    if "record" in line:
        return _of_lambda(function, line)
    if "errorType" in line:
        # An exception left the function. Its text may hold anything, so it is not shown.
        line = {"message": "failed"} | {n: line.get(n) for n in ("timestamp", "level", "errorType")}
    if "message" not in line:
        return ""
    fields = " ".join(f"{name}={value}" for name, value in line.items() if name not in _QUIET)
    clock = str(line.get("timestamp", ""))[11:19]
    return f"{clock} {function:5} {line.get('level', ''):7} {line['message']} {fields}"


def _of_lambda(function: str, line: dict[str, Any]) -> str:
    """Return a line of Lambda's own about what did not succeed: time-outs, memory, start-up."""
    record = line["record"]
    status = record.get("status", "success") if isinstance(record, dict) else "success"
    if status == "success":
        return ""
    clock = str(line.get("time", ""))[11:19]
    about = {"status": status, "errorType": record.get("errorType"), "id": record.get("requestId")}
    fields = " ".join(f"{name}={value}" for name, value in about.items() if value)
    return f"{clock} {function:5} {'ERROR':7} {line.get('type')} {fields}"


def follow(
    logs: Any,
    groups: list[str],
    seconds: float = 0.5,
    show: Callable[[str, str], str] = readable,
) -> Iterator[str]:
    """Yield the lines written from now on, in their order, for ever; ask every so many seconds."""
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
            newest = max((stamp for stamp, _ in events), default=0)
            since[group] = max(since[group], newest - _LATE)
            for stamp, message in new.elements():
                if line := show(group.rsplit("-", 1)[-1], message):
                    found.append((stamp, line))
        yield from (line for _, line in sorted(found))
        time.sleep(seconds)


def _events(logs: Any, group: str, since: int) -> Iterator[dict[str, Any]]:
    try:
        pages = logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, startTime=since
        )
        for page in pages:
            yield from page["events"]
    except logs.exceptions.ResourceNotFoundException:
        return  # nothing has been written yet
