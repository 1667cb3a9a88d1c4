"""Follow the functions' logs in CloudWatch, one readable line for each."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

# How late (milliseconds) a line may arrive and still be shown.
_LATE = 10_000
# Fields that say the same on every line here, or have a place of their own.
_QUIET = {"function", "level", "message", "timestamp"}
_TRACEBACK = "Traceback (most recent call last):"


def line_of(message: str) -> dict[str, Any] | None:
    """Return a line's fields; None for metrics, and for Lambda's own lines about success."""
    try:
        line = json.loads(message)
    except ValueError:
        is_frame = message.startswith(("START ", "END ", "REPORT "))
        return None if is_frame else {"message": message.rstrip()}
    if not isinstance(line, dict) or "_aws" in line:
        return None
    if "record" in line:
        return _of_lambda(line)
    if "errorType" in line:
        # An exception left the function. Its text may hold anything, so it is not shown.
        return {"message": "failed"} | {n: line.get(n) for n in ("timestamp", "level", "errorType")}
    return line if "message" in line else None


def _of_lambda(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return one of Lambda's own lines if it is about a failure: time-out, memory, start-up."""
    record = line["record"] if isinstance(line["record"], dict) else {}
    if record.get("status", "success") == "success":
        return None
    about = {name: record[name] for name in ("status", "errorType", "requestId") if name in record}
    return {"message": line.get("type"), "timestamp": line.get("time"), "level": "ERROR"} | about


def readable(function: str, message: str) -> str:
    """Return a line as text; an empty one where `line_of` returns None."""
    line = line_of(message)
    return "" if line is None else text_of({"function": function} | line)


def text_of(line: dict[str, Any]) -> str:
    """Return a line, which names its function, as text."""
    clock = str(line.get("timestamp", ""))[11:19]
    fields = " ".join(f"{name}={value}" for name, value in line.items() if name not in _QUIET)
    level = line.get("level") or ""
    parts = (clock, f"{line['function']:5}", f"{level:7}", str(line["message"]), fields)
    return " ".join(part for part in parts if part.strip())


def as_json(function: str, message: str) -> str:
    """Return a line as a JSON object that names its function; empty where `line_of` gives None."""
    line = line_of(message)
    return "" if line is None else json.dumps({"function": function} | line)


def follow(
    logs: Any,
    groups: list[str],
    seconds: float = 0.5,
    show: Callable[[str, str], str] = readable,
) -> Iterator[str]:
    """Yield the lines written from now on, in order and for ever; poll every `seconds`."""
    since = dict.fromkeys(groups, int(time.time() * 1000))
    shown: dict[str, Counter[tuple[int, str]]] = {group: Counter() for group in groups}
    tracebacks: set[str] = set()
    while True:
        found: list[tuple[int, str]] = []
        for group in groups:
            # The emulator gives events no id, so equal lines of one millisecond are counted.
            events: Counter[tuple[int, str]] = Counter()
            new = []
            for event in _events(logs, group, since[group]):
                written = (event["timestamp"], event["message"])
                events[written] += 1
                if events[written] > shown[group][written]:
                    new.append(written)
            shown[group] = events
            newest = max((stamp for stamp, _ in events), default=0)
            since[group] = max(since[group], newest - _LATE)
            for stamp, message in _without_repeats(new, tracebacks):
                if line := show(group.rsplit("-", 1)[-1], message):
                    found.append((stamp, line))
        # By time only: lines of one moment, such as a traceback's, stay in the order written.
        yield from (line for _, line in sorted(found, key=lambda line: line[0]))
        time.sleep(seconds)


def _without_repeats(
    written: list[tuple[int, str]], tracebacks: set[str]
) -> Iterator[tuple[int, str]]:
    """Yield what was written, but only the last line of a traceback that was shown before."""
    lines = iter(written)
    for stamp, message in lines:
        if message != _TRACEBACK:
            yield stamp, message
            continue
        block = [(stamp, message)]
        for line in lines:
            block.append(line)
            if not line[1].startswith(" "):
                break
        text = "\n".join(message for _, message in block)
        if text in tracebacks:
            yield stamp, f"{block[-1][1]} (again; its traceback is above)"
        else:
            tracebacks.add(text)
            yield from block


def _events(logs: Any, group: str, since: int) -> Iterator[dict[str, Any]]:
    try:
        pages = logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, startTime=since
        )
        for page in pages:
            yield from page["events"]
    except logs.exceptions.ResourceNotFoundException:
        return  # nothing has been written yet
