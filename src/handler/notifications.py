"""Elevate's own routes: what notifies Elevate today notifies us after a change of host name.

They take what Elevate documents for them and answer as it does, whatever dialect is spoken to it.
"""

from http import HTTPStatus
from typing import Any

from handler.api import Answer, Problem, answer, query, unavailable
from handler.application import application, now, session_validator
from sessions.session import FieldError, InvalidPayload, Session, session_from
from sessions.settings import Dialect

# Resource → its dialect, and what its arguments' names begin with.
ROUTES: dict[str, tuple[Dialect, str]] = {
    "/v2/notifications/end": ("web-v2", "esales."),
    "/storefront/v3/notifications/end": ("storefront-v3", ""),
}


def end(event: dict[str, Any], request_id: str) -> Answer:
    """Answer 204 when the end is delivered or kept, as Elevate does when it has received it.

    A body, a content type and arguments that Elevate does not document are ignored.
    """
    session = _session(event)
    if session is None:
        return answer(HTTPStatus.NO_CONTENT)
    end = application().ending.end(session, now(), "api", request_id)
    match end.result:
        case "delivered" | "over" | "kept":
            return answer(HTTPStatus.NO_CONTENT)
        case "rejected":
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                "rejected",
                "Elevate rejected the end notification.",
                elevateStatus=end.status,
                elevateReason=end.reason,
            )
        case "lost":
            raise unavailable(
                "Neither Elevate nor the session registry can be reached.", end.retry_after
            )


def _session(event: dict[str, Any]) -> Session | None:
    """Return the session to end, None for visitors without one; raises Problem, InvalidPayload."""
    dialect, prefix = ROUTES[event["resource"]]
    names = ["market", "customerKey", "sessionKey"]
    if dialect == "storefront-v3":
        names.append("userContext")
    given = {name: query(event, prefix + name) for name in names}
    payload = {name: value for name, value in given.items() if value is not None}
    if dialect == "storefront-v3" and _has_no_session(payload):
        # What it does give must fit all the same.
        session_validator(dialect)(payload | {"userContext": "SYNTHETIC", "sessionKey": "none"})
        return None
    try:
        session_validator(dialect)(payload)
        # What this route takes, the configured dialect may have no words for.
        session_validator(application().settings.dialect)(payload)
    except InvalidPayload as invalid:
        raise InvalidPayload([_renamed(error, prefix) for error in invalid.errors]) from None
    return session_from(payload)


def _has_no_session(payload: dict[str, Any]) -> bool:
    """Tell whether Elevate 4 takes this end of a visitor who has no session; raises InvalidPayload.

    ANONYMOUS visitors have no keys, SYNTHETIC ones may have none.
    """
    match payload.get("userContext"):
        case "ANONYMOUS":
            keys = [name for name in ("customerKey", "sessionKey") if name in payload]
            if keys:
                detail = "is not allowed with this userContext"
                raise InvalidPayload([FieldError(field=name, detail=detail) for name in keys])
            return True
        case "SYNTHETIC":
            return "sessionKey" not in payload
    return False


def _renamed(error: FieldError, prefix: str) -> FieldError:
    return FieldError(field=prefix + error["field"], detail=error["detail"])
