"""Who is let in, on the emulator: the template deployed with each kind of `ApiAuth`, and fuzzed.

MiniStack checks API keys, and that calls are signed; not the signature itself. It does not read the
gateway's own answers out of openapi.yaml, so what they look like is not seen here.
"""

import json
import os
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local.interface import interface
from local.stack import BIN, REGION, ROOT, Stack

ORIGIN = "https://www.shop.example"
OPEN = {"ApiAuth": "NONE", "CorsOrigin": ORIGIN}

# What schemathesis is not to ask of this API, or of this emulator.
NOT_CHECKED = (
    # Which markets and shapes of keys are taken is configuration, which the document cannot know.
    "positive_data_acceptance",
    # The gateway answers 403 where a method is not known, and names none that is.
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(ROOT / ".local" / "test-door") as stack:
        stack.start_elevate()
        stack.build()
        stack.deploy(OPEN)
        yield stack


def call(
    stack: Stack, method: str, path: str, headers: dict[str, str], body: Any = None
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    url = stack.info["apiUrl"] + path
    head = headers | ({"Content-Type": "application/json"} if data else {})
    request = urllib.request.Request(url, data, head, method=method)
    try:
        with urllib.request.urlopen(request, timeout=40) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, dict(answer.headers), answer.read().decode()


def session() -> dict[str, str]:
    keys = {name: str(uuid.uuid4()) for name in ("customerKey", "sessionKey")}
    return {"market": "UK"} | keys


def path_of(session: dict[str, str]) -> str:
    return f"/sessions/{session['sessionKey']}"


def versions(stack: Stack) -> dict[str, str]:
    """Return the version behind each function's alias."""
    functions = stack.client("lambda")
    return {
        name: functions.get_alias(FunctionName=name, Name="live")["FunctionVersion"]
        for name in stack.info["functions"].values()
    }


def test_a_page_of_the_shop_may_end_and_do_nothing_else(stack: Stack) -> None:
    visitor = session()
    asked, headers, _ = call(stack, "OPTIONS", "/sessions/end", {"Origin": ORIGIN})
    assert (asked, headers["Access-Control-Allow-Methods"]) == (204, "POST")
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    status, headers, _ = call(stack, "POST", "/sessions/end", {"Origin": ORIGIN}, visitor)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    status, headers, _ = call(stack, "POST", "/sessions/end", {"Origin": ORIGIN}, {})
    assert (status, headers["Access-Control-Allow-Origin"]) == (400, ORIGIN)
    for elevates in ("/v2/notifications/end", "/storefront/v3/notifications/end"):
        assert call(stack, "OPTIONS", elevates, {})[0] == 204
        assert call(stack, "POST", elevates, {})[0] == 400
    assert call(stack, "GET", path_of(visitor), {"Origin": ORIGIN})[0] == 403
    assert call(stack, "PUT", path_of(visitor), {"Origin": ORIGIN}, {})[0] == 403
    known = {"x-api-key": stack.info["apiKey"]}
    assert call(stack, "GET", path_of(visitor), known)[0] == 200


def test_every_input_has_a_right_answer(stack: Stack, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(interface({"HasApiKey", "HasCorsOrigin"})))
    fuzzed = subprocess.run(
        [
            str(BIN / "schemathesis"),
            "--no-color",
            *("run", str(document), "--url", stack.info["apiUrl"]),
            *("--header", f"x-api-key: {stack.info['apiKey']}"),
            *("--phases", "examples,coverage,fuzzing", "--max-time", os.environ.get("FUZZ", "15")),
            *("--seed", os.environ.get("SEED", "1"), "--exclude-checks", ",".join(NOT_CHECKED)),
        ],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "fuzzing", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    print(fuzzed.stdout)
    assert fuzzed.returncode == 0, fuzzed.stdout + fuzzed.stderr


def test_a_changed_setting_is_live_at_once_and_calls_must_be_signed(stack: Stack) -> None:
    before = versions(stack)
    stack.deploy({"ApiAuth": "AWS_IAM", "SessionIdleMinutes": "7"})
    assert all(versions(stack)[name] != version for name, version in before.items())
    functions = stack.client("lambda")
    for name in before:
        live = functions.get_function_configuration(FunctionName=name, Qualifier="live")
        assert live["Environment"]["Variables"]["SESSION_IDLE_MINUTES"] == "7"

    visitor = session()
    for method, path in (("POST", "/sessions/end"), ("PUT", path_of(visitor))):
        assert call(stack, method, path, {}, visitor)[0] == 403
        assert call(stack, method, path, {"x-api-key": "guessed"}, visitor)[0] == 403
    url = stack.info["apiUrl"] + "/sessions/end"
    request = AWSRequest("POST", url, {"Content-Type": "application/json"}, json.dumps(visitor))
    SigV4Auth(Credentials("test", "test"), "execute-api", REGION).add_auth(request)
    assert call(stack, "POST", "/sessions/end", dict(request.headers.items()), visitor)[0] == 204
