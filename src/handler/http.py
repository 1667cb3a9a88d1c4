"""HTTP: API Gateway's proxy events in, answers and problems (RFC 9457) out."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote

from handler.application import application
from sessions.session import FieldError, InvalidPayload, RegistryUnavailable

MAX_BODY_BYTES = 16 * 1024
RETRY_AFTER_SECONDS = 30
# What a signed call carries.
SIGNING = ("authorization", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token")

_BAD, _INVALID = HTTPStatus.BAD_REQUEST, "invalid-payload"

type Answer = dict[str, Any]


class Problem(Exception):
    """An answer other than success; `errors` name fields and never a value."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.errors = errors
        self.headers = headers or {}
        self.status = status
        self.body = {
            "type": f"urn:elevate-sessions:problem:{kind}",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
            **members,
        } | ({"errors": errors} if errors else {})


def method(event: Any) -> str | None:
    """Return the method of an API call, None for what is none."""
    return event.get("httpMethod") if isinstance(event, dict) else None


def answer(status: HTTPStatus, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer for API Gateway; `body` is sent as JSON."""
    head = {"Cache-Control": "no-store"} | (headers or {})
    if body is not None:
        head = {"Content-Type": "application/json"} | head
    text = "" if body is None else json.dumps(body)
    return {"statusCode": status.value, "headers": head, "body": text}


def respond(event: dict[str, Any], handle: Callable[[dict[str, Any]], Answer]) -> Answer:
    """Return the answer of `handle(event)`: the one place that turns exceptions into answers.

    Pages of the configured origin may read it.
    """
    request_id = str((event.get("requestContext") or {}).get("requestId", ""))
    telemetry = application().telemetry
    telemetry.begin(request_id)
    try:
        answered = handle(event)
    except Exception as error:
        problem = _problem_of(error)
        head = {"Content-Type": "application/problem+json"} | problem.headers
        answered = answer(problem.status, problem.body | {"requestId": request_id}, head)
    finally:
        telemetry.flush()
    if origin := (event.get("stageVariables") or {}).get("corsOrigin"):
        answered["headers"] |= {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "Location, Retry-After",
            "Vary": "Origin",
        }
    return answered


def _problem_of(error: Exception) -> Problem:
    """Return the problem that an exception is to the caller, and log it."""
    telemetry = application().telemetry
    match error:
        case Problem():
            if error.errors:
                telemetry.refused(error.errors, "api")
            return error
        case InvalidPayload():
            telemetry.refused(error.errors, "api")
            detail = "The request does not fit its schema."
            return Problem(_BAD, _INVALID, detail, error.errors)
        case RegistryUnavailable():
            telemetry.registry_failed("api", error)
            return unavailable("The session registry cannot be reached.")
        case _:
            telemetry.crashed(error)
            detail = "The service has a defect."
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)


def preflight(event: dict[str, Any]) -> Answer:
    """Answer what a browser asks before it calls; `respond` names the origin that may."""
    headers = {
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": ", ".join(("content-type", "x-api-key", *SIGNING)),
        "Access-Control-Max-Age": "7200",
    }
    return answer(HTTPStatus.NO_CONTENT, headers=headers)


def unavailable(detail: str, retry_after: int = RETRY_AFTER_SECONDS) -> Problem:
    """Return the problem of a call that must be made again after `retry_after` seconds."""
    headers = {"Retry-After": str(retry_after)}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", detail, headers=headers)


def rejected(status: HTTPStatus, elevate_status: int | None, reason: str) -> Problem:
    """Return the problem of an end that Elevate refuses for good."""
    detail = "Elevate rejected the end notification."
    members: dict[str, Any] = {"elevateStatus": elevate_status, "elevateReason": reason}
    return Problem(status, "rejected", detail, **members)


def lost(retry_after: int) -> Problem:
    """Return the problem of an end that nobody took."""
    return unavailable("Neither Elevate nor the session registry can be reached.", retry_after)


def json_body(event: dict[str, Any]) -> Any:
    """Return the body's JSON value; raises Problem 400, 413 or 415."""
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    content_type = str(headers.get("content-type", "")).split(";")[0].strip().lower()
    if content_type != "application/json":
        detail = "must be application/json"
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


def _refuse(field: str, detail: str, status: HTTPStatus = _BAD, kind: str = _INVALID) -> NoReturn:
    raise Problem(status, kind, f"The {field} {detail}.", [FieldError(field=field, detail=detail)])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
