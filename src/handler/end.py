"""End sessions: `POST /sessions/end`, Elevate's own routes, and the event `Session Ended`."""

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from handler import elevate_routes
from handler.application import application, now, session_validator
from handler.events import consume, demand_all, happened_at, until_of, valid
from handler.http import Answer, answer, json_body, lost, method, preflight, rejected, respond
from sessions.session import session_from


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    if method(event) == "OPTIONS":
        return respond(event, preflight)
    if method(event):
        elevates_own = event.get("resource") in elevate_routes.ROUTES
        return respond(event, elevate_routes.end if elevates_own else _end_one)
    consume(event, context, lambda event: _end_all(event, context))
    return None


def _end_one(event: dict[str, Any]) -> Answer:
    payload = json_body(event)
    session_validator(application().settings.dialect)(payload)
    session = session_from(payload)
    end = application().ending.end(session, now(), "api")
    match end.result:
        case "delivered" | "over":
            return answer(HTTPStatus.NO_CONTENT)
        case "kept":
            key, market = quote(session.session_key, safe=""), quote(session.market, safe="")
            # Relative, so that it leads there below any stage, base path or proxy.
            location = {"Location": f"../sessions/{key}?market={market}"}
            return answer(HTTPStatus.ACCEPTED, headers=location)
        case "rejected":
            raise rejected(HTTPStatus.UNPROCESSABLE_ENTITY, end.status, end.reason)
        case "lost":
            raise lost(end.retry_after)


def _end_all(event: dict[str, Any], context: Any) -> None:
    accepted, refused = valid(event, session_validator(application().settings.dialect))
    at = happened_at(event)
    sessions = [(session_from(payload), at) for payload in accepted]
    ends = application().ending.end_all(sessions, "event", until_of(context, calls=2))
    lost = sum(end.result == "lost" for end in ends)
    demand_all("neither delivered nor kept", lost, refused, len(ends))
