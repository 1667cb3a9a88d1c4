"""EventBridge: events in, hand-overs out.

If part of an event cannot be done, it raises: Lambda then makes it a dead-letter message.
"""

import json
import time
from collections.abc import Callable
from datetime import datetime
from itertools import batched
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from handler.application import application, bus, now
from sessions.schemas import Validator
from sessions.session import FieldError, InvalidPayload, Source
from sessions.sweeping import SETTLE_RESERVE


class InvalidEvent(Exception):
    """An event, or a part of its list, is invalid. What was valid in it has been done."""


class NotKept(Exception):
    """Neither Elevate nor the registry took all of an event; Lambda will deliver it again."""


class EventFailed(Exception):
    """An unexpected error; the message names its type only, for messages may hold keys."""


def consume(
    event: Any, context: Any, handle: Callable[[dict[str, Any]], None], source: Source = "event"
) -> None:
    """Run `handle(event)` and let nothing out that may hold a key."""
    is_event = isinstance(event, dict)
    telemetry = application().telemetry
    telemetry.begin(str((is_event and event.get("id")) or context.aws_request_id))
    try:
        if not is_event:
            telemetry.refused([FieldError(field="event", detail="must be a JSON object")], source)
            raise InvalidEvent("the event is not a JSON object")
        handle(event)
    except (InvalidEvent, NotKept):
        raise
    except Exception as error:
        telemetry.crashed(error)
        raise EventFailed(type(error).__name__) from None
    finally:
        telemetry.flush()


def valid(event: dict[str, Any], validator: Validator) -> tuple[list[dict[str, Any]], int]:
    """Return the payloads that are valid, and how many are not; those are logged and counted."""
    detail = event.get("detail")
    payloads: list[Any] = [detail]
    if isinstance(detail, dict) and set(detail) == {"sessions"}:
        sessions = detail["sessions"]
        payloads = sessions if isinstance(sessions, list) else [sessions]
    accepted: list[dict[str, Any]] = []
    refused = 0
    for position, payload in enumerate(payloads):
        try:
            validator(payload)
        except InvalidPayload as invalid:
            errors = [
                FieldError(field=f"sessions[{position}].{e['field']}", detail=e["detail"])
                for e in invalid.errors
            ]
            application().telemetry.refused(errors, "event")
            refused += 1
        else:
            accepted.append(payload)
    return accepted, refused


def demand_all(what: str, lost: int, refused: int, of: int) -> None:
    """Raise NotKept if some of an event's sessions are lost, InvalidEvent if some were refused."""
    if lost:
        raise NotKept(f"{lost} of {of} sessions {what}")
    if refused:
        raise InvalidEvent(f"{refused} of {of + refused} sessions are invalid")


def happened_at(event: dict[str, Any]) -> int:
    """Return the event's time in epoch seconds; a time that is missing or to come counts as now."""
    try:
        return min(int(datetime.fromisoformat(event["time"]).timestamp()), now())
    except (KeyError, TypeError, ValueError, OverflowError):
        return now()


def until_of(context: Any, calls: int) -> float:
    """Return when to begin with no further session of a list (monotonic seconds).

    The last one may still make so many calls that hang.
    """
    left = context.get_remaining_time_in_millis() / 1000
    return float(time.monotonic() + left - calls * SETTLE_RESERVE)


def put_sweeps(details: list[dict[str, Any]]) -> int:
    """Put `Session Sweep` events on the stack's own bus; return how many it took.

    What it does not take is still due, and the schedule's next tick finds it.
    """
    entry = {
        "EventBusName": application().settings.event_bus_name,
        "Source": "elevate-sessions",
        "DetailType": "Session Sweep",
    }
    taken = 0
    for some in batched(details, 10, strict=False):
        try:
            entries = [entry | {"Detail": json.dumps(detail)} for detail in some]
            taken += len(some) - bus().put_events(Entries=entries)["FailedEntryCount"]
        except (BotoCoreError, ClientError) as error:
            application().telemetry.crashed(error)
            break
    return taken
