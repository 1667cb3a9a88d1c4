"""Elevate's own routes: what notifies Elevate today notifies us after a change of host name.

They take what Elevate documents for them and answer as it does, whatever dialect is spoken to it.
"""

from http import HTTPStatus
from typing import Any

from handler.application import application, now, session_validator
from handler.http import Answer, answer, lost, query, rejected
from sessions.dialects import DIALECTS, Dialect
from sessions.session import FieldError, InvalidPayload, Session, session_from

# Our stage is named "api", so Elevate's paths are served at the API's origin as they are.
ROUTES = {dialect.path.removeprefix("/api"): dialect for dialect in DIALECTS.values()}


def end(event: dict[str, Any]) -> Answer:
    """Answer 204 when the end is delivered or kept, as Elevate does when it has received it.

    A body, a content type and arguments that Elevate does not document are ignored.
    """
    session = _session(event, ROUTES[event["resource"]])
    if session is None:
        return answer(HTTPStatus.NO_CONTENT)
    end = application().ending.end(session, now(), "api")
    match end.result:
        case "delivered" | "over" | "kept":
            return answer(HTTPStatus.NO_CONTENT)
        case "rejected":
            raise rejected(HTTPStatus.BAD_REQUEST, end.status, end.reason)
        case "lost":
            raise lost(end.retry_after)


def _session(event: dict[str, Any], dialect: Dialect) -> Session | None:
    """Return the session to end, None for visitors without one; raises Problem, InvalidPayload."""
    names = ["market", "customerKey", "sessionKey"] + ["userContext"] * dialect.sends_context
    given = {name: query(event, dialect.prefix + name) for name in names}
    payload = {name: value for name, value in given.items() if value is not None}
    context = payload.get("userContext", "")
    stand_in = dialect.sessionless.get(context)
    if stand_in and "sessionKey" in payload and context not in dialect.contexts:
        detail = "is not allowed with this userContext"
        raise InvalidPayload([FieldError(field=dialect.prefix + "sessionKey", detail=detail)])
    if stand_in and "sessionKey" not in payload:
        # What it does give must fit all the same.
        session_validator(dialect)(payload | {"userContext": stand_in, "sessionKey": "none"})
        return None
    try:
        session_validator(dialect)(payload)
        # What this route takes, the configured dialect may have no words for.
        session_validator(application().settings.dialect)(payload)
    except InvalidPayload as invalid:
        errors = invalid.errors
        named = [FieldError(field=dialect.prefix + e["field"], detail=e["detail"]) for e in errors]
        raise InvalidPayload(named) from None
    return session_from(payload)
