"""Checks that schemathesis adds to its own on each answer (tests/access/test_access.py)."""

import json

import schemathesis
from schemathesis import Case, CheckContext, Response


@schemathesis.check
def no_key_is_echoed(ctx: CheckContext, response: Response, case: Case) -> None:  # type: ignore[type-arg]
    """Fail if an answer repeats a key that was sent."""
    keys = {
        value
        for part in (case.body, case.path_parameters, case.query)
        if isinstance(part, dict)
        for name, value in part.items()
        if name.lower().endswith("key") and isinstance(value, str) and len(value) >= 8
    }
    answer = response.text + str(response.headers)
    # A 202 says where to read the state: at a path that contains the key.
    assert response.status_code == 202 or not any(key in answer for key in keys), "a key is echoed"


@schemathesis.check
def errors_are_problems(ctx: CheckContext, response: Response, case: Case) -> None:  # type: ignore[type-arg]
    """Fail if an error, even one of the gateway's, is not a problem document (RFC 9457)."""
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"]
        problem = json.loads(response.text)
        assert problem["status"] == response.status_code
        assert {"type", "title", "detail", "requestId"} <= set(problem)
