"""Track sessions: `PUT` and `GET /sessions/{sessionKey}`, and the event `Session Active`."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from handler.api import Answer, Problem, answer, json_body, method, path_key, query, respond
from handler.application import (
    activity_validator,
    application,
    key_validator,
    market_validator,
    now,
)
from handler.bus import InvalidEvent, NotKept, consume, happened_at, until_of, valid
from sessions.registry import Status
from sessions.session import Activity, FieldError, InvalidPayload, session_from


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    if method(event) == "GET":
        return respond(event, _status)
    if method(event):
        return respond(event, _track_one)
    consume(event, context, lambda e, correlation_id: _track_all(e, context, correlation_id))
    return None


def _track_one(event: dict[str, Any], request_id: str) -> Answer:
    payload = json_body(event)
    errors: list[FieldError] = []
    key = path_key(event)
    for validator, value in (
        (key_validator(), key),
        (activity_validator(key_in_body=False), payload),
    ):
        try:
            validator(value)
        except InvalidPayload as invalid:
            errors += invalid.errors
    if errors:
        raise InvalidPayload(errors)
    activity = _activity(payload | {"sessionKey": key}, now())
    if application().ending.track(activity):
        return answer(HTTPStatus.NO_CONTENT)
    raise Problem(
        HTTPStatus.CONFLICT, "session-over", "This session is over; its key must not be reused."
    )


def _status(event: dict[str, Any], request_id: str) -> Answer:
    key, market = path_key(event), query(event, "market")
    key_validator()(key)
    if market is not None:
        market_validator()(market)
    states = [s for s in application().ending.status(key) if market in (None, s.market)]
    if not states:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown-session", "This session is not known.")
    return answer(HTTPStatus.OK, {"sessions": [_shown(state) for state in states]})


def _track_all(event: dict[str, Any], context: Any, correlation_id: str) -> None:
    accepted, refused = valid(event, activity_validator(key_in_body=True), correlation_id)
    at = happened_at(event)
    tracked = application().ending.track_all(
        [_activity(payload, at) for payload in accepted], correlation_id, until_of(context)
    )
    if over := tracked.count("over"):
        application().telemetry.count("TrackedTooLate", over)
    if lost := tracked.count("lost"):
        raise NotKept(f"{lost} of {len(tracked)} sessions not tracked")
    if refused:
        raise InvalidEvent(f"{refused} of {refused + len(accepted)} sessions are invalid")


def _activity(payload: dict[str, Any], at: int) -> Activity:
    return Activity(session_from(payload), at, payload.get("interactive"))


def _shown(status: Status) -> dict[str, Any]:
    return {
        "market": status.market,
        "state": status.state,
        "dueAt": _iso(status.due_at),
        "attempts": status.attempts,
        "lastStatus": status.last_status,
        "lastReason": status.last_reason,
    }


def _iso(seconds: int | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None
