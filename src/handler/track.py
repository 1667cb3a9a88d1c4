"""Track sessions: `PUT` and `GET /sessions/{sessionKey}`, and the event `Session Active`."""

import time
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from handler.application import Application, application
from handler.events import believed, conclude, consume, happened_at, until_of, valid
from handler.http import Answer, Problem, answer, is_call, json_body, path_key, query, respond
from sessions.schemas import moment_of, session_from
from sessions.session import Activity, InvalidPayload, Status


def handle(event: Any, context: Any) -> Answer | None:
    """Serve one API call or one event."""
    app = application()
    if is_call(event):
        return respond(app, event, ROUTES)
    consume(app.telemetry, event, context, partial(_take, app, context))
    return None


def _track_one(app: Application, event: dict[str, Any]) -> Answer:
    payload, key = json_body(event), path_key(event)
    errors = app.validators.key.errors(key) + app.validators.keyless_activity.errors(payload)
    if errors:
        raise InvalidPayload(errors)
    activity = _activity(app, payload | {"sessionKey": key}, int(time.time()))
    if app.ending.track(activity) == "over":
        detail = "This session was ended on request; its key must not be reused."
        raise Problem(HTTPStatus.CONFLICT, "session-over", detail)
    return answer(HTTPStatus.NO_CONTENT)


def _status(app: Application, event: dict[str, Any]) -> Answer:
    key, market = path_key(event), query(event, "market")
    app.validators.key(key)
    if market is not None:
        app.validators.market(market)
    known = app.ending.status(app.settings.dialect.identity(key))
    states = [state for state in known if market in (None, state.market)]
    if not states:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown-session", "This session is not known.")
    return answer(HTTPStatus.OK, {"sessions": [_shown(state) for state in states]})


def _take(app: Application, context: Any, event: dict[str, Any]) -> None:
    """Track an event's sessions. The bus also sends here what no other rule takes."""
    detail_type = event.get("detail-type", "Session Active")
    if detail_type == "Session Active":
        _track_all(app, context, event)
    else:
        app.telemetry.unknown(detail_type)


def _track_all(app: Application, context: Any, event: dict[str, Any]) -> None:
    payloads, refused = valid(event, app.validators.activity)
    at = happened_at(event)
    activities = [_activity(app, payload, at) for payload in payloads]
    tracked = app.ending.track_all(activities, until_of(context, calls=1))
    conclude(app.telemetry, partial(app.put, "Session Active", at), payloads, tracked, refused)


def _activity(app: Application, payload: dict[str, Any], at: float) -> Activity:
    """Return what a payload reports: `at` its own time, or at the time given here."""
    if "at" in payload:
        at = believed(moment_of(payload["at"]))
    return Activity(session_from(payload, app.settings.dialect), at, payload.get("interactive"))


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


ROUTES = {
    ("PUT", "/sessions/{sessionKey}"): _track_one,
    ("GET", "/sessions/{sessionKey}"): _status,
}
