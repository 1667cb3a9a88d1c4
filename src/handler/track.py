"""Track sessions: `PUT` and `GET /sessions/{sessionKey}`, and the event `Session Active`."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from handler.application import (
    activity_validator,
    application,
    key_validator,
    market_validator,
    now,
)
from handler.events import consume, demand_all, happened_at, until_of, valid
from handler.http import Answer, Problem, answer, json_body, method, path_key, query, respond
from sessions.session import Activity, FieldError, InvalidPayload, Status, session_from

_ACTIVE = "Session Active"


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    if method(event):
        return respond(event, _status if method(event) == "GET" else _track_one)
    consume(event, context, lambda event: _take(event, context))
    return None


def _track_one(event: dict[str, Any]) -> Answer:
    payload, key = json_body(event), path_key(event)
    errors: list[FieldError] = []
    checks = ((key_validator(), key), (activity_validator(key_in_body=False), payload))
    for validator, value in checks:
        try:
            validator(value)
        except InvalidPayload as invalid:
            errors += invalid.errors
    if errors:
        raise InvalidPayload(errors)
    if application().ending.track(_activity(payload | {"sessionKey": key}, now())) == "over":
        detail = "This session was ended on request; its key must not be reused."
        raise Problem(HTTPStatus.CONFLICT, "session-over", detail)
    return answer(HTTPStatus.NO_CONTENT)


def _status(event: dict[str, Any]) -> Answer:
    key, market = path_key(event), query(event, "market")
    key_validator()(key)
    if market is not None:
        market_validator()(market)
    states = [s for s in application().ending.status(key) if market in (None, s.market)]
    if not states:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown-session", "This session is not known.")
    return answer(HTTPStatus.OK, {"sessions": [_shown(state) for state in states]})


def _take(event: dict[str, Any], context: Any) -> None:
    """Track an event's sessions. The bus also sends here what no other rule takes."""
    detail_type = event.get("detail-type", _ACTIVE)
    if detail_type == _ACTIVE:
        _track_all(event, context)
    else:
        application().telemetry.unknown(detail_type)


def _track_all(event: dict[str, Any], context: Any) -> None:
    accepted, refused = valid(event, activity_validator(key_in_body=True))
    at = happened_at(event)
    activities = [_activity(payload, at) for payload in accepted]
    tracked = application().ending.track_all(activities, until_of(context, calls=1))
    demand_all("not tracked", tracked.count("lost"), refused, len(tracked))


def _activity(payload: dict[str, Any], at: int) -> Activity:
    return Activity(session_from(payload), at, payload.get("interactive"))


def _shown(status: Status) -> dict[str, Any]:
    due = datetime.fromtimestamp(status.due_at, UTC) if status.due_at else None
    return {
        "market": status.market,
        "state": status.state,
        "dueAt": due.strftime("%Y-%m-%dT%H:%M:%SZ") if due else None,
        "attempts": status.attempts,
        "lastStatus": status.last_status,
        "lastReason": status.last_reason,
    }
