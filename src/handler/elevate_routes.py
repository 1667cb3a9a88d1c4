"""Elevate's own routes: what notifies Elevate today notifies us after a change of host name.

They take what Elevate documents for them and answer as it does, whatever dialect is spoken to it.
"""

import time
from http import HTTPStatus
from typing import Any

from handler.application import Application
from handler.http import Answer, answer, lost, query, rejected
from sessions.dialects import STOREFRONT_V3, WEB_V2, Dialect
from sessions.schemas import renamed
from sessions.session import InvalidPayload


def end_as_web_v2(app: Application, event: dict[str, Any]) -> Answer:
    """Serve the route of Elevate 3."""
    return _end(app, event, WEB_V2)


def end_as_storefront_v3(app: Application, event: dict[str, Any]) -> Answer:
    """Serve the route of Elevate 4."""
    return _end(app, event, STOREFRONT_V3)


def _end(app: Application, event: dict[str, Any], spoken: Dialect) -> Answer:
    """Answer 204 when the end is delivered or kept, as Elevate does when it has received it.

    A body, a content type and arguments that Elevate does not document are ignored.
    """
    try:
        session = app.validators.session_of(_arguments(event, spoken), spoken)
    except InvalidPayload as invalid:
        raise InvalidPayload(renamed(spoken.prefix, invalid.errors)) from None
    if session is None:
        return answer(HTTPStatus.NO_CONTENT)
    end = app.ending.end(session, int(time.time()), "api")
    match end.result:
        case "delivered" | "over" | "outdated" | "kept":
            return answer(HTTPStatus.NO_CONTENT)
        case "rejected":
            raise rejected(HTTPStatus.BAD_REQUEST, end.status, end.reason)
        case "lost":
            raise lost(end.retry_after)


def _arguments(event: dict[str, Any], spoken: Dialect) -> dict[str, Any]:
    names = ["market", "customerKey", "sessionKey"]
    if spoken.sends_context:
        names.append("userContext")
    given = {name: query(event, spoken.prefix + name) for name in names}
    return {name: value for name, value in given.items() if value is not None}
