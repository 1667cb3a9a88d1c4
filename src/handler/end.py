"""End sessions: `POST /sessions/end`, Elevate's own routes, and the event `Session Ended`."""

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from handler import notifications
from handler.api import (
    Answer,
    Problem,
    answer,
    json_body,
    method,
    preflight,
    respond,
    unavailable,
)
from handler.application import application, now, session_validator
from handler.bus import InvalidEvent, NotKept, consume, happened_at, until_of, valid
from sessions.session import session_from


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    if method(event) == "OPTIONS":
        return respond(event, preflight)
    if method(event):
        elevates_own = event.get("resource") in notifications.ROUTES
        return respond(event, notifications.end if elevates_own else _end_one)
    consume(event, context, lambda e, correlation_id: _end_all(e, context, correlation_id))
    return None


def _end_one(event: dict[str, Any], request_id: str) -> Answer:
    payload = json_body(event)
    session_validator(application().settings.dialect)(payload)
    session = session_from(payload)
    end = application().ending.end(session, now(), "api", request_id)
    match end.result:
        case "delivered" | "over":
            return answer(HTTPStatus.NO_CONTENT)
        case "kept":
            key, market = quote(session.session_key, safe=""), quote(session.market, safe="")
            return answer(
                HTTPStatus.ACCEPTED, headers={"Location": f"/sessions/{key}?market={market}"}
            )
        case "rejected":
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "rejected",
                "Elevate rejected the end notification.",
                elevateStatus=end.status,
                elevateReason=end.reason,
            )
        case "lost":
            raise unavailable(
                "Neither Elevate nor the session registry can be reached.", end.retry_after
            )


def _end_all(event: dict[str, Any], context: Any, correlation_id: str) -> None:
    accepted, refused = valid(
        event, session_validator(application().settings.dialect), correlation_id
    )
    asked_at = happened_at(event)
    ends = application().ending.end_all(
        [(session_from(payload), asked_at) for payload in accepted],
        "event",
        correlation_id,
        until_of(context),
    )
    lost = sum(end.result == "lost" for end in ends)
    if lost:
        raise NotKept(f"{lost} of {len(ends)} sessions neither delivered nor kept")
    if refused:
        raise InvalidEvent(f"{refused} of {refused + len(accepted)} sessions are invalid")
