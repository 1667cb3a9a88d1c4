"""EventBridge: events in, hand-overs out.

An event that cannot be done whole raises, and so reaches the dead letters by Lambda's own way.
"""

import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from itertools import batched
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from handler.application import application, now
from sessions.aws import Events
from sessions.ending import SETTLE_RESERVE
from sessions.session import FieldError, InvalidPayload, Validator
from sessions.telemetry import Source

SOURCE = "elevate-sessions"


class InvalidEvent(Exception):
    """An event, or a part of its list, is invalid. What was valid in it has been done."""


class NotKept(Exception):
    """Neither Elevate nor the registry took all of an event; Lambda will deliver it again."""


class EventFailed(Exception):
    """An unexpected error; the message names its type only, for messages may hold keys."""


def consume(
    event: Any,
    context: Any,
    handle: Callable[[dict[str, Any], str], None],
    source: Source = "event",
) -> None:
    """Run `handle(event, correlation id)` and let nothing out that may hold a key."""
    is_event = isinstance(event, dict)
    correlation_id = str((is_event and event.get("id")) or context.aws_request_id)
    telemetry = application().telemetry
    try:
        if not is_event:
            error = FieldError(field="event", detail="must be a JSON object")
            telemetry.refused([error], source, correlation_id)
            raise InvalidEvent("the event is no JSON object")
        handle(event, correlation_id)
    except (InvalidEvent, NotKept):
        raise
    except Exception as error:
        telemetry.crashed(error, correlation_id)
        raise EventFailed(type(error).__name__) from None
    finally:
        telemetry.flush(source)


def payloads(event: dict[str, Any]) -> list[Any]:
    """Return the detail's list of sessions, or its one session as a list of one."""
    detail = event.get("detail")
    if isinstance(detail, dict) and set(detail) == {"sessions"}:
        sessions = detail["sessions"]
        return sessions if isinstance(sessions, list) else [sessions]
    return [detail]


def valid(
    event: dict[str, Any], validator: Validator, correlation_id: str
) -> tuple[list[dict[str, Any]], int]:
    """Return the payloads that are valid, and how many are not; those are logged and counted."""
    accepted, refused = [], 0
    for position, payload in enumerate(payloads(event)):
        try:
            validator(payload)
        except InvalidPayload as invalid:
            errors = [
                FieldError(field=f"sessions[{position}].{e['field']}", detail=e["detail"])
                for e in invalid.errors
            ]
            application().telemetry.refused(errors, "event", correlation_id)
            refused += 1
        else:
            accepted.append(payload)
    return accepted, refused


def happened_at(event: dict[str, Any]) -> int:
    """Return the event's time in epoch seconds; a time that is missing or to come counts as now."""
    try:
        return min(int(datetime.fromisoformat(event["time"]).timestamp()), now())
    except (KeyError, TypeError, ValueError, OverflowError):
        return now()


def until_of(context: Any) -> float:
    """Return when to begin with no further session of a list (monotonic seconds)."""
    left: float = context.get_remaining_time_in_millis() / 1000
    return time.monotonic() + left - 2 * SETTLE_RESERVE


def put_sweeps(details: list[dict[str, Any]]) -> int:
    """Put `Session Sweep` events on the stack's own bus; return how many it took.

    What it does not take is still due, and the schedule's next tick finds it.
    """
    bus = application().settings.event_bus_name
    taken = 0
    for some in batched(details, 10, strict=False):
        entries = [
            {
                "EventBusName": bus,
                "Source": SOURCE,
                "DetailType": "Session Sweep",
                "Detail": json.dumps(detail),
            }
            for detail in some
        ]
        try:
            answer = _events().put_events(Entries=entries)
        except (BotoCoreError, ClientError) as error:
            application().telemetry.crashed(error, str(some[0].get("correlationId", "")))
            break
        taken += len(some) - answer["FailedEntryCount"]
    return taken


@cache
def _events() -> Events:
    return Events(connections=1)
