"""End sessions: `POST /sessions/end`, Elevate's own routes, and the event `Session Ended`."""

import time
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from handler.application import Application, application
from handler.elevate_routes import end_as_storefront_v3, end_as_web_v2
from handler.events import conclude, consume, happened_at, until_of, valid
from handler.http import Answer, answer, is_call, json_body, lost, preflight, rejected, respond
from sessions.schemas import session_from


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    app = application()
    if is_call(event):
        return respond(app, event, ROUTES)
    consume(app.telemetry, event, context, partial(_end_all, app, context))
    return None


# `navigator.sendBeacon(url, json)` sends its text as text/plain, and lets no page say otherwise.
_TYPES = ("application/json", "text/plain")


def _end_one(app: Application, event: dict[str, Any]) -> Answer:
    payload = json_body(event, _TYPES)
    app.validators.session(payload)
    session = session_from(payload, app.settings.dialect)
    end = app.ending.end(session, int(time.time()), "api")
    match end.result:
        case "delivered" | "over" | "outdated":
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


def _end_all(app: Application, context: Any, event: dict[str, Any]) -> None:
    payloads, refused = valid(event, app.validators.session)
    at = happened_at(event)
    sessions = [(session_from(payload, app.settings.dialect), at) for payload in payloads]
    ends = app.ending.end_all(sessions, "event", until_of(context, calls=2))
    results = [end.result if end else None for end in ends]
    conclude(app.telemetry, partial(app.put, "Session Ended", at), payloads, results, refused)


ROUTES = {
    ("POST", "/sessions/end"): _end_one,
    ("OPTIONS", "/sessions/end"): preflight,
    ("POST", "/v2/notifications/end"): end_as_web_v2,
    ("OPTIONS", "/v2/notifications/end"): preflight,
    ("POST", "/storefront/v3/notifications/end"): end_as_storefront_v3,
    ("OPTIONS", "/storefront/v3/notifications/end"): preflight,
}
