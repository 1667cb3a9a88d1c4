"""What schemathesis checks of each answer beside its own checks (tests/access/test_access.py)."""

import json

import schemathesis
from schemathesis import Case, CheckContext, Response


@schemathesis.check
def no_key_is_echoed(ctx: CheckContext, response: Response, case: Case) -> None:  # type: ignore[type-arg]
    """Find keys that were sent in what was answered."""
    keys = {
        value
        for part in (case.body, case.path_parameters, case.query)
        if isinstance(part, dict)
        for name, value in part.items()
        if name.lower().endswith("key") and isinstance(value, str) and len(value) >= 8
    }
    told = response.text + str(response.headers)
    # 202 tells where the state can be read: at a path that holds the key.
    assert response.status_code == 202 or not any(key in told for key in keys), "a key is echoed"


@schemathesis.check
def errors_are_problems(ctx: CheckContext, response: Response, case: Case) -> None:  # type: ignore[type-arg]
    """Find errors that are no problems (RFC 9457), the gateway's own included."""
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"]
        problem = json.loads(response.text)
        assert problem["status"] == response.status_code
        assert {"type", "title", "detail", "requestId"} <= set(problem)
