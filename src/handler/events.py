"""EventBridge: events in; what there was no time for out again.

If part of an event cannot be done, it raises: Lambda then makes it a dead-letter message.
"""

import json
import time
from collections.abc import Callable, Sequence
from itertools import batched
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sessions import aws
from sessions.lifetime import DAY
from sessions.schemas import Validator, moment_of, renamed
from sessions.session import FieldError, InvalidPayload, Source
from sessions.telemetry import Telemetry

# An event is at most 1 MiB: 8,600 sessions with UUIDs for keys, about 20,000 with the shortest keys
# there are. A longer list is junk, and checking it would take the time of sessions that are none.
MAX_SESSIONS = 20_000

# So many invalid entries of a list are described; the others are counted.
DESCRIBED = 10

# What is put back on the bus is put in parts of so many bytes at most: three times the 64 KB that
# EventBridge bills, and about as many sessions as one invocation ends. An event may be 1 MiB today,
# but for years 256 KB were the most, also for what an event becomes when it fails: a message, with
# Lambda's record around it.
MOST_BYTES = 192 * 1024

# So many events a call at most. EventBridge takes ten, and 1 MiB in all: here 768 KB, which are
# less than that even with their quotes escaped.
MOST_EVENTS = 4

# Elevate has ended every session that was last active so long ago (seconds).
OLDEST = 15 * DAY


class InvalidEvent(Exception):
    """An event, or a part of its list, is invalid. What was valid in it has been done."""


class NotKept(Exception):
    """Neither Elevate, nor the registry, nor the bus took all of it: Lambda delivers it again."""


class EventFailed(Exception):
    """An unexpected error; the message names its type only, for messages may hold keys."""


def consume(
    telemetry: Telemetry,
    event: Any,
    context: Any,
    handle: Callable[[dict[str, Any]], None],
    source: Source = "event",
) -> None:
    """Run `handle(event)`: the one place that turns exceptions into those that Lambda may see.

    Nothing that it lets out holds a key. Raises InvalidEvent, NotKept, EventFailed.
    """
    event_id = event.get("id") if isinstance(event, dict) else None
    telemetry.begin(str(event_id or context.aws_request_id))
    try:
        if not isinstance(event, dict):
            raise InvalidPayload([FieldError(field="event", detail="must be a JSON object")])
        handle(event)
    except InvalidPayload as invalid:
        telemetry.refused(invalid.errors, source)
        raise InvalidEvent(str(invalid)) from None
    except NotKept:
        raise
    except Exception as error:
        telemetry.crashed(error)
        raise EventFailed(type(error).__name__) from None
    finally:
        telemetry.flush()


def valid(
    event: dict[str, Any], validator: Validator
) -> tuple[list[dict[str, Any]], list[list[FieldError]]]:
    """Return an event's valid payloads, and the errors of each that is not.

    Raises InvalidPayload if there are too many to look at.
    """
    detail = event.get("detail")
    payloads: list[Any] = [detail]
    if isinstance(detail, dict) and set(detail) == {"sessions"}:
        sessions = detail["sessions"]
        payloads = sessions if isinstance(sessions, list) else [sessions]
    if len(payloads) > MAX_SESSIONS:
        most = f"must be a list of at most {MAX_SESSIONS} sessions"
        raise InvalidPayload([FieldError(field="sessions", detail=most)])
    accepted: list[dict[str, Any]] = []
    refused: list[list[FieldError]] = []
    for position, payload in enumerate(payloads):
        if errors := validator.errors(payload):
            refused.append(renamed(f"sessions[{position}].", errors))
        else:
            accepted.append(payload)
    return accepted, refused


def conclude(
    telemetry: Telemetry,
    put: Callable[[list[dict[str, Any]]], int],
    payloads: list[dict[str, Any]],
    results: Sequence[str | None],
    refused: list[list[FieldError]],
) -> None:
    """Put back on the bus what there was no time for, whose result is None; raise what went wrong.

    Raises NotKept if something is `lost`, or the bus does not take all: the whole event is then
    delivered again, so nothing is put back beside what is lost, and what is done is `over`. Raises
    InvalidPayload if entries were refused.

    This comes to an end: each pass does one session at least (Ending sees to it), so what it puts
    back is less than what it got; and a pass that fails is one of the three that Lambda gives it.
    """
    if lost := results.count("lost"):
        raise NotKept(f"{lost} of {len(results)} sessions are lost")
    left = [payload for payload, result in zip(payloads, results, strict=True) if result is None]
    if left:
        details = _parts(left)
        taken = put(details)
        telemetry.put_back(len(left), taken)
        if taken < len(details):
            raise NotKept(f"{len(left)} of {len(results)} sessions were not put back")
    if refused:
        errors = [error for entry in refused[:DESCRIBED] for error in entry]
        if len(refused) > DESCRIBED:
            others = f"{len(refused) - DESCRIBED} more are invalid"
            errors.append(FieldError(field="sessions", detail=others))
        raise InvalidPayload(errors)


def _parts(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the details of events that hold these sessions, none larger than MOST_BYTES."""
    detail = {"sessions": sessions}
    if len(_json(detail)) <= MOST_BYTES:
        return [detail]
    middle = len(sessions) // 2
    return _parts(sessions[:middle]) + _parts(sessions[middle:])


def _json(detail: dict[str, Any]) -> str:
    """Return a detail as it is sent: ASCII, so a character is a byte."""
    return json.dumps(detail, separators=(",", ":"))


def happened_at(event: dict[str, Any]) -> int:
    """Return the event's time in epoch seconds; one that is missing counts as now."""
    try:
        return int(believed(moment_of(event["time"])))
    except (KeyError, TypeError, ValueError):
        return int(time.time())


def believed(at: float) -> float:
    """Return a sender's time in epoch seconds, within reason.

    A time to come counts as now, one of long ago as no older than OLDEST.
    """
    now = time.time()
    return max(now - OLDEST, min(at, now))


def until_of(context: Any, calls: int) -> float:
    """Return when to begin with no further session of a list (monotonic seconds).

    The last one may still make so many calls that hang. Where none does, the rest is put back in
    that time; where one does, and a session is lost by it, nothing is.
    """
    left = context.get_remaining_time_in_millis() / 1000
    return float(time.monotonic() + left - calls * aws.HANGING_CALL)


def put_events(
    bus: aws.Client,
    bus_name: str,
    telemetry: Telemetry,
    detail_type: str,
    at: int | None,
    details: list[dict[str, Any]],
) -> int:
    """Put events on the stack's own bus; return how many it took.

    They happened `at` (epoch seconds; None is now).
    """
    entry: dict[str, Any] = {
        "EventBusName": bus_name,
        "Source": "elevate-sessions",
        "DetailType": detail_type,
    }
    if at is not None:
        entry["Time"] = at
    taken = 0
    for some in batched(details, MOST_EVENTS, strict=False):
        entries = [entry | {"Detail": _json(detail)} for detail in some]
        try:
            answer = bus.put_events(Entries=entries)
        except (BotoCoreError, ClientError) as error:
            telemetry.crashed(error)
            break
        # botocore makes {} of an answer that was cut short.
        taken += len(some) - answer.get("FailedEntryCount", len(some))
    return taken
