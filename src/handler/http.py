"""HTTP: API Gateway's proxy events in, answers and problems (RFC 9457) out."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote

from handler.application import Application
from sessions.session import FieldError, InvalidPayload, RegistryUnavailable
from sessions.telemetry import Telemetry

MAX_BODY_BYTES = 16 * 1024
RETRY_AFTER_SECONDS = 30
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "POST",
    # A signed call carries the last four.
    "Access-Control-Allow-Headers": "content-type, x-api-key, "
    "authorization, x-amz-content-sha256, x-amz-date, x-amz-security-token",
    "Access-Control-Max-Age": "7200",
}

type Answer = dict[str, Any]
# What serves a method and a resource, as openapi.yaml names them.
type Routes = Mapping[tuple[str, str], Callable[[Application, dict[str, Any]], Answer]]


class Problem(Exception):
    """An answer other than success; its `errors`, if any, name fields and never a value."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}
        self.body: dict[str, Any] = {
            "type": f"urn:elevate-sessions:problem:{kind}",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
            **members,
        }


def is_call(event: Any) -> bool:
    """Return whether API Gateway sent this event."""
    return isinstance(event, dict) and "httpMethod" in event


def answer(status: HTTPStatus, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer for API Gateway; `body` is sent as JSON."""
    head = {"Cache-Control": "no-store"} | (headers or {})
    if body is not None:
        head = {"Content-Type": "application/json"} | head
    text = "" if body is None else json.dumps(body)
    return {"statusCode": status.value, "headers": head, "body": text}


def respond(app: Application, event: dict[str, Any], routes: Routes) -> Answer:
    """Return the answer of an event's route: the one place that turns exceptions into answers.

    Pages of the configured origins may read it.
    """
    request_id = str((event.get("requestContext") or {}).get("requestId", ""))
    app.telemetry.begin(request_id)
    try:
        # openapi.yaml names the routes, so one that is not in the table is a defect.
        answered = routes[event["httpMethod"], event["resource"]](app, event)
    except Exception as error:
        problem = _problem_of(error, app.telemetry)
        head = {"Content-Type": "application/problem+json"} | problem.headers
        answered = answer(problem.status, problem.body | {"requestId": request_id}, head)
    finally:
        app.telemetry.flush()
    answered["headers"] |= _for_browsers(app, event)
    return answered


def _problem_of(error: Exception, telemetry: Telemetry) -> Problem:
    """Return the problem that an exception is to the caller, and log it."""
    match error:
        case Problem():
            if errors := error.body.get("errors"):
                telemetry.refused(errors, "api")
            return error
        case InvalidPayload():
            telemetry.refused(error.errors, "api")
            detail = "The request does not fit its schema."
            return Problem(HTTPStatus.BAD_REQUEST, "invalid-payload", detail, errors=error.errors)
        case RegistryUnavailable():
            telemetry.registry_failed("api", error)
            return unavailable("The session registry cannot be reached.")
        case _:
            telemetry.crashed(error)
            detail = "The service has a defect."
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)


def preflight(app: Application, event: dict[str, Any]) -> Answer:
    """Answer what a browser asks before it calls; `respond` names the origin that may."""
    return answer(HTTPStatus.NO_CONTENT, headers=_PREFLIGHT if _allows(app, event) else None)


def _for_browsers(app: Application, event: dict[str, Any]) -> dict[str, str]:
    """Return the headers that let a page of a configured origin read an answer.

    Credentials are allowed because `sendBeacon` always sends in that mode, and asks before it sends
    a Blob. That opens nothing: no cookie is read here, and a page must know a key to send it.
    """
    if not app.settings.cors_origins:
        return {}
    if not _allows(app, event):
        return {"Vary": "Origin"}
    return {
        "Access-Control-Allow-Origin": _header(event, "origin"),
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "Location, Retry-After",
        "Vary": "Origin",
    }


def _allows(app: Application, event: dict[str, Any]) -> bool:
    return _header(event, "origin") in app.settings.cors_origins


def unavailable(detail: str, retry_after: int = RETRY_AFTER_SECONDS) -> Problem:
    """Return the problem of a call that must be made again after `retry_after` seconds."""
    headers = {"Retry-After": str(retry_after)}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", detail, headers)


def rejected(status: HTTPStatus, elevate_status: int | None, reason: str) -> Problem:
    """Return the problem of an end that Elevate refuses for good."""
    detail = "Elevate rejected the end notification."
    return Problem(status, "rejected", detail, elevateStatus=elevate_status, elevateReason=reason)


def lost(retry_after: int) -> Problem:
    """Return the problem of an end that nobody took."""
    return unavailable("Neither Elevate nor the session registry can be reached.", retry_after)


def json_body(event: dict[str, Any], types: Sequence[str] = ("application/json",)) -> Any:
    """Return the JSON value of a body of one of these types; raises Problem 400, 413 or 415."""
    if _header(event, "content-type").split(";")[0].strip().lower() not in types:
        detail = f"must be {' or '.join(types)}"
        _refuse("content-type", detail, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type")
    if event.get("isBase64Encoded"):
        _refuse("body", "must be JSON text, not base64")
    body = event.get("body") or ""
    if len(body.encode("utf-8", "surrogatepass")) > MAX_BODY_BYTES:
        detail = f"must be at most {MAX_BODY_BYTES} bytes"
        _refuse("body", detail, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large")
    try:
        return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("body", "must be valid JSON, with each name given once")


def _header(event: dict[str, Any], name: str) -> str:
    """Return a header's value by its name in lower case; "" where it was not sent."""
    headers = {given.lower(): value for given, value in (event.get("headers") or {}).items()}
    return str(headers.get(name, ""))


def path_key(event: dict[str, Any]) -> str:
    """Return the session key of the path, as its caller meant it; raises Problem 400.

    API Gateway's REST APIs pass a path on as it was sent: one unquote is right.
    """
    try:
        return unquote((event.get("pathParameters") or {}).get("sessionKey") or "", errors="strict")
    except UnicodeDecodeError:
        _refuse("sessionKey", "must be UTF-8")


def query(event: dict[str, Any], name: str) -> str | None:
    """Return a query argument that may be given once; raises Problem 400."""
    values = (event.get("multiValueQueryStringParameters") or {}).get(name) or []
    if len(values) > 1:
        _refuse(name, "must be given once")
    return values[0] if values else None


def _refuse(
    field: str,
    detail: str,
    status: HTTPStatus = HTTPStatus.BAD_REQUEST,
    kind: str = "invalid-payload",
) -> NoReturn:
    errors = [FieldError(field=field, detail=detail)]
    raise Problem(status, kind, f"The {field} {detail}.", errors=errors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
