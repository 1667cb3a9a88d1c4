"""HTTP: API Gateway's proxy events in, answers and problems (RFC 9457) out."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote

from handler.application import application
from sessions.registry import RegistryUnavailable
from sessions.session import FieldError, InvalidPayload

MAX_BODY_BYTES = 16 * 1024
RETRY_AFTER_SECONDS = 30
# What a signed call carries.
SIGNING = ("authorization", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token")

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
        self.status = status
        self.kind = kind
        self.errors = errors
        self.headers = headers or {}
        self.members = members


def method(event: Any) -> str | None:
    """Return the method of an API call, None for what is none."""
    return event.get("httpMethod") if isinstance(event, dict) else None


def answer(status: HTTPStatus, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer for API Gateway; `body` is sent as JSON."""
    head = {"Cache-Control": "no-store"} | (headers or {})
    if body is not None:
        head = {"Content-Type": "application/json"} | head
    return {
        "statusCode": status.value,
        "headers": head,
        "body": "" if body is None else json.dumps(body),
    }


def respond(event: dict[str, Any], handle: Callable[[dict[str, Any], str], Answer]) -> Answer:
    """Return the answer of `handle(event, request id)`, readable by pages of the set origin."""
    answered = _answered(event, handle)
    if origin := (event.get("stageVariables") or {}).get("corsOrigin"):
        answered["headers"] |= {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "Location, Retry-After",
            "Vary": "Origin",
        }
    return answered


def _answered(event: dict[str, Any], handle: Callable[[dict[str, Any], str], Answer]) -> Answer:
    """Run `handle`: the one place that turns exceptions into HTTP answers."""
    request_id = str((event.get("requestContext") or {}).get("requestId", ""))
    telemetry = application().telemetry
    try:
        return handle(event, request_id)
    except InvalidPayload as invalid:
        telemetry.refused(invalid.errors, "api", request_id)
        return _problem(
            Problem(
                HTTPStatus.BAD_REQUEST,
                "invalid-payload",
                "The request does not fit its schema.",
                invalid.errors,
            ),
            request_id,
        )
    except Problem as problem:
        if problem.errors:
            telemetry.refused(problem.errors, "api", request_id)
        return _problem(problem, request_id)
    except RegistryUnavailable as error:
        telemetry.registry_failed("api", error, None, request_id)
        return _problem(unavailable("The session registry cannot be reached."), request_id)
    except Exception as error:
        telemetry.crashed(error, request_id)
        return _problem(
            Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "This is a fault of ours."),
            request_id,
        )
    finally:
        telemetry.flush("api")


def preflight(event: dict[str, Any], request_id: str) -> Answer:
    """Answer what a browser asks before it calls; `respond` names the origin that may."""
    return answer(
        HTTPStatus.NO_CONTENT,
        headers={
            "Access-Control-Allow-Methods": "POST",
            "Access-Control-Allow-Headers": ", ".join(("content-type", "x-api-key", *SIGNING)),
            "Access-Control-Max-Age": "7200",
        },
    )


def unavailable(detail: str, retry_after: int = RETRY_AFTER_SECONDS) -> Problem:
    """Return the problem of a call that must be made again, after so many seconds."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        detail,
        headers={"Retry-After": str(retry_after)},
    )


def json_body(event: dict[str, Any]) -> Any:
    """Return the body's JSON value; raises Problem 400, 413 or 415."""
    content_type = _header(event, "content-type").split(";")[0].strip().lower()
    if content_type != "application/json":
        _refuse(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "content-type",
            "must be application/json",
        )
    body = event.get("body") or ""
    if event.get("isBase64Encoded"):
        _refuse(HTTPStatus.BAD_REQUEST, "invalid-payload", "body", "must be JSON text, not base64")
    if len(body.encode("utf-8", "surrogatepass")) > MAX_BODY_BYTES:
        _refuse(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too-large",
            "body",
            f"must be at most {MAX_BODY_BYTES} bytes",
        )
    try:
        return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse(HTTPStatus.BAD_REQUEST, "invalid-payload", "body", "must be valid JSON")


def path_key(event: dict[str, Any]) -> str:
    """Return the session key of the path, as its caller meant it."""
    return unquote((event.get("pathParameters") or {}).get("sessionKey") or "")


def query(event: dict[str, Any], name: str) -> str | None:
    """Return a query argument that may be given once; raises Problem 400."""
    values = (event.get("multiValueQueryStringParameters") or {}).get(name) or []
    if len(values) > 1:
        _refuse(HTTPStatus.BAD_REQUEST, "invalid-payload", name, "must be given once")
    return values[0] if values else None


def _problem(problem: Problem, request_id: str) -> Answer:
    body: dict[str, Any] = {
        "type": f"urn:elevate-sessions:problem:{problem.kind}",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": str(problem),
        "requestId": request_id,
        **problem.members,
    }
    if problem.errors:
        body["errors"] = problem.errors
    return answer(
        problem.status, body, {"Content-Type": "application/problem+json"} | problem.headers
    )


def _refuse(status: HTTPStatus, kind: str, field: str, detail: str) -> NoReturn:
    raise Problem(status, kind, f"The {field} {detail}.", [FieldError(field=field, detail=detail)])


def _header(event: dict[str, Any], name: str) -> str:
    for header, value in (event.get("headers") or {}).items():
        if header.lower() == name:
            return str(value)
    return ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
