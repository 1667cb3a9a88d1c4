"""EventBridge: events in, hand-overs out.

If part of an event cannot be done, it raises: Lambda then makes it a dead-letter message.
"""

import json
import time
from collections.abc import Callable
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

# Elevate has ended every session that was last active so long ago (seconds).
OLDEST = 15 * DAY


class InvalidEvent(Exception):
    """An event, or a part of its list, is invalid. What was valid in it has been done."""


class NotKept(Exception):
    """Neither Elevate nor the registry took all of an event; Lambda will deliver it again."""


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


def demand_all(what: str, lost: int, of: int, refused: list[list[FieldError]]) -> None:
    """Raise NotKept if sessions of an event are lost, else InvalidPayload if some were refused.

    What is lost is delivered again, and with it what is refused.
    """
    if lost:
        raise NotKept(f"{lost} of {of} sessions {what}")
    if refused:
        errors = [error for entry in refused[:DESCRIBED] for error in entry]
        if len(refused) > DESCRIBED:
            others = f"{len(refused) - DESCRIBED} more are invalid"
            errors.append(FieldError(field="sessions", detail=others))
        raise InvalidPayload(errors)


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

    The last one may still make so many calls that hang.
    """
    left = context.get_remaining_time_in_millis() / 1000
    return float(time.monotonic() + left - calls * aws.HANGING_CALL)


def put_sweeps(
    bus: aws.Client, bus_name: str, telemetry: Telemetry, details: list[dict[str, Any]]
) -> int:
    """Put `Session Sweep` events on the stack's own bus; return how many it took.

    What it does not take is still due, and the schedule's next tick finds it.
    """
    entry = {
        "EventBusName": bus_name,
        "Source": "elevate-sessions",
        "DetailType": "Session Sweep",
    }
    taken = 0
    for some in batched(details, 10, strict=False):
        try:
            entries = [entry | {"Detail": json.dumps(detail)} for detail in some]
            taken += len(some) - bus.put_events(Entries=entries)["FailedEntryCount"]
        except (BotoCoreError, ClientError) as error:
            telemetry.crashed(error)
            break
    return taken
