"""Access, on the emulator: the template deployed with each kind of `ApiAuth`, and fuzzed.

MiniStack checks API keys, rates, quotas, the template's rules, and that calls are signed; not the
signature itself. It ignores permissions boundaries, reserved concurrency and a function's KMS key.
"""

import http.server
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from playwright.sync_api import Browser, Page

from local.interface import interface
from local.stack import BIN, REGION, ROOT, Stack, StackError
from stack.conftest import wait_for

ORIGIN = "https://www.shop.example"
# MiniStack ignores the limits of single routes as AWS writes them: all get those of open ends.
OPEN = {"ApiAuth": "NONE", "CorsOrigins": ORIGIN, "OpenRateLimit": "10000"}
KMS_KEY = f"arn:aws:kms:{REGION}:000000000000:key/{uuid.UUID(int=1)}"
# Parameters that no other test deploys.
OPTIONS = {
    "LogLevel": "WARNING",
    "Tracing": "Active",
    "KmsKeyArn": KMS_KEY,
    "PermissionsBoundaryArn": "arn:aws:iam::aws:policy/PowerUserAccess",
    "EndReservedConcurrency": "5",
    "TrackReservedConcurrency": "5",
    "SweepReservedConcurrency": "5",
    "SessionIdleMinutes": "7",
}

# Checks that do not apply to this API, or to this emulator.
NOT_CHECKED = (
    # Which markets and key formats are accepted is configuration, which the document cannot know.
    "positive_data_acceptance",
    # The gateway answers 403 to an unknown method, and does not name the known ones.
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve the shop's pages, which are empty; return their port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serve = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serve.start()
        yield server.server_port
        server.shutdown()
        serve.join()


@pytest.fixture(scope="module")
def stack(port: int) -> Iterator[Stack]:
    with Stack(ROOT / ".local" / "test-access") as stack:
        stack.start_elevate()
        stack.build()
        stack.deploy(OPEN | {"CorsOrigins": f"{ORIGIN},http://localhost:{port}"})
        yield stack


def call(
    stack: Stack,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any = None,
    base: str | None = None,
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    url = (base or stack.info["apiUrl"]) + path
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


def received(stack: Stack, session: dict[str, str]) -> int:
    """Return how often the simulated Elevate was notified of a session."""
    url = f"{stack.elevate_url}/_sim/notifications?sessionKey={session['sessionKey']}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return len(json.load(answer)["notifications"])


def keys_at_rest(stack: Stack) -> set[str | None]:
    """Return the keys that encrypt the table, the logs and the visitors' dead-letter messages."""
    table = stack.client("dynamodb").describe_table(TableName=stack.info["tableName"])["Table"]
    logs = stack.client("logs").describe_log_groups(logGroupNamePrefix="/aws/lambda/")["logGroups"]
    sqs = stack.client("sqs")
    queues = [
        sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        for url in sqs.list_queues()["QueueUrls"]
        if "MissedSweeps" not in url
    ]
    return {
        table["SSEDescription"]["KMSMasterKeyArn"],
        *(group.get("kmsKeyId") for group in logs),
        *(queue.get("KmsMasterKeyId") for queue in queues),
    }


def test_a_page_of_the_shop_may_end_sessions_and_do_nothing_else(stack: Stack) -> None:
    visitor = session()
    asked, headers, _ = call(stack, "OPTIONS", "/sessions/end", {"Origin": ORIGIN})
    assert (asked, headers["Access-Control-Allow-Methods"]) == (204, "POST")
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    allowed = headers["Access-Control-Allow-Headers"].split(", ")
    assert {"content-type", "x-api-key", "authorization", "x-amz-date"} <= set(allowed)
    assert headers["Access-Control-Allow-Credentials"] == "true"
    status, headers, _ = call(stack, "POST", "/sessions/end", {"Origin": ORIGIN}, visitor)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    # So may anyone who guesses a session; however often, Elevate gets one notification.
    assert call(stack, "POST", "/sessions/end", {}, visitor)[0] == 204
    assert received(stack, visitor) == 1
    status, headers, _ = call(stack, "POST", "/sessions/end", {"Origin": ORIGIN}, {})
    assert (status, headers["Access-Control-Allow-Origin"]) == (400, ORIGIN)
    for elevates in ("/v2/notifications/end", "/storefront/v3/notifications/end"):
        assert call(stack, "OPTIONS", elevates, {})[0] == 204
        assert call(stack, "POST", elevates, {})[0] == 400
    assert call(stack, "GET", path_of(visitor), {"Origin": ORIGIN})[0] == 403
    assert call(stack, "PUT", path_of(visitor), {"Origin": ORIGIN}, {})[0] == 403
    known = {"x-api-key": stack.info["apiKey"]}
    assert call(stack, "GET", path_of(visitor), known)[0] == 200


# How a page can send an end: to which route, and how. docs/api.md has them in a table.
OURS, ELEVATES = "url + '/sessions/end'", "url + '/v2/notifications/end?' + query"
JSON = "{'content-type': 'application/json'}"
BEACONS = [
    f"navigator.sendBeacon({OURS}, json)",
    f"navigator.sendBeacon({OURS}, new Blob([json], {{type: 'application/json'}}))",
    f"navigator.sendBeacon({ELEVATES})",
]
FETCHES = [
    f"fetch({OURS}, {{method: 'POST', keepalive: true, body: json}})",
    f"fetch({OURS}, {{method: 'POST', keepalive: true, body: json, headers: {JSON}}})",
    f"fetch({ELEVATES}, {{method: 'POST', keepalive: true}})",
]
ASK_FIRST = {BEACONS[1], FETCHES[1]}
PATIENCE = 120  # seconds


def on(page: Page, stack: Stack, visitor: dict[str, str], script: str) -> Any:
    """Run a script on a page that knows the API and the visitor's keys; return its value."""
    query = urllib.parse.urlencode({f"esales.{name}": value for name, value in visitor.items()})
    known = [stack.info["apiUrl"], json.dumps(visitor), query]
    return page.evaluate(f"async ([url, json, query]) => {script}", known)


@pytest.mark.parametrize("way", BEACONS)
def test_a_page_sends_a_beacon(stack: Stack, browser: Browser, port: int, way: str) -> None:
    visitor = session()
    with browser.new_page() as page:
        page.goto(f"http://localhost:{port}")
        assert on(page, stack, visitor, way) is True
        wait_for(lambda: received(stack, visitor), PATIENCE)


@pytest.mark.parametrize("way", FETCHES)
def test_a_page_reads_what_it_is_answered(
    stack: Stack, browser: Browser, port: int, way: str
) -> None:
    visitor = session()
    with browser.new_page() as page:
        page.goto(f"http://localhost:{port}")
        assert on(page, stack, visitor, f"(await {way}).status") == 204
        assert received(stack, visitor) == 1
        # The gateway's own answers too.
        assert on(page, stack, visitor, "(await fetch(url + '/sessions/x')).status") == 403


@pytest.mark.parametrize("way", BEACONS + FETCHES)
def test_a_page_that_is_left_sends_its_end(
    stack: Stack, browser: Browser, port: int, way: str
) -> None:
    visitor = session()
    with browser.new_page() as page:
        page.goto(f"http://localhost:{port}")
        on(page, stack, visitor, f"{{ addEventListener('pagehide', () => {{ {way} }}) }}")
        page.goto("about:blank")
        wait_for(lambda: received(stack, visitor), PATIENCE)


@pytest.mark.parametrize("way", FETCHES)
def test_a_page_of_others_reads_no_answer(
    stack: Stack, browser: Browser, port: int, way: str
) -> None:
    visitor = session()
    with browser.new_page() as page:
        page.goto(f"http://127.0.0.1:{port}")
        assert (
            on(page, stack, visitor, f"{way}.then(() => 'read', error => error.name)")
            == "TypeError"
        )
        # As at Elevate itself, it need not read an answer to end a session whose keys it knows.
        assert received(stack, visitor) == (way not in ASK_FIRST)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [("/api/v2/notifications/end", "esales."), ("/api/storefront/v3/notifications/end", "")],
)
def test_elevates_own_paths_are_at_the_origin(stack: Stack, path: str, prefix: str) -> None:
    visitor = session()
    arguments = urllib.parse.urlencode({prefix + name: value for name, value in visitor.items()})
    host = {"Host": f"{stack.api_id}.execute-api.localhost"}
    origin = stack.aws_endpoint_url
    assert call(stack, "POST", f"{path}?{arguments}", host, base=origin)[0] == 204
    assert received(stack, visitor) == 1


def test_the_gateways_own_answers_are_problems(stack: Stack) -> None:
    gateway = stack.client("apigateway")
    for answer in gateway.get_gateway_responses(restApiId=stack.api_id)["items"]:
        assert json.loads(answer["responseTemplates"]["application/json"])["status"] == int(
            answer["statusCode"]
        )
    status, headers, body = call(stack, "GET", "/sessions/any", {"x-api-key": "guessed"})
    assert (status, json.loads(body)["detail"]) == (403, "The API key is missing or not known.")
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("dialect", ["web-v2", "storefront-v3"])
def test_every_input_gets_a_documented_answer(stack: Stack, tmp_path: Path, dialect: str) -> None:
    if dialect != "web-v2":
        stack.deploy(OPEN | {"ElevateApi": dialect})
    seconds = int(os.environ.get("FUZZ", "20")) // 2  # the other half is the other dialect's
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(interface({"HasApiKey", "HasCorsOrigins"})))
    fuzzed = subprocess.run(
        [
            str(BIN / "schemathesis"),
            "--no-color",
            *("run", str(document), "--url", stack.info["apiUrl"]),
            *("--header", f"x-api-key: {stack.info['apiKey']}"),
            # Not `stateful`: it follows links, and the document has none.
            *("--phases", "examples,coverage,fuzzing", "--max-time", str(seconds)),
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


def test_changed_settings_are_live_at_once_and_calls_must_be_signed(stack: Stack) -> None:
    stack.deploy({"ApiAuth": "AWS_IAM"} | OPTIONS)
    functions = stack.client("lambda")
    for name in stack.info["functions"].values():
        live = functions.get_function_configuration(FunctionName=name)
        variables = live["Environment"]["Variables"]
        assert variables["SESSION_IDLE_MINUTES"] == OPTIONS["SessionIdleMinutes"]
        assert variables["POWERTOOLS_LOG_LEVEL"] == OPTIONS["LogLevel"]
        assert live["TracingConfig"]["Mode"] == OPTIONS["Tracing"]
    assert keys_at_rest(stack) == {KMS_KEY}

    visitor = session()
    for method, path in (("POST", "/sessions/end"), ("PUT", path_of(visitor))):
        assert call(stack, method, path, {}, visitor)[0] == 403
        assert call(stack, method, path, {"x-api-key": "guessed"}, visitor)[0] == 403
    url = stack.info["apiUrl"] + "/sessions/end"
    request = AWSRequest("POST", url, {"Content-Type": "application/json"}, json.dumps(visitor))
    SigV4Auth(Credentials("test", "test"), "execute-api", REGION).add_auth(request)
    assert call(stack, "POST", "/sessions/end", dict(request.headers.items()), visitor)[0] == 204


def test_rules_rates_and_quotas_hold(stack: Stack) -> None:
    with pytest.raises(StackError):
        stack.deploy({"ApiAuth": "NONE", "CorsOrigins": ""})
    log = (stack.folder / "sam-deploy.log").read_text()
    assert "ApiAuth NONE is for browsers, so it needs CorsOrigins." in log
    with pytest.raises(StackError):
        stack.deploy(OPEN | {"Markets": ""})
    log = (stack.folder / "sam-deploy.log").read_text()
    assert "With ApiAuth NONE anybody may call, so it needs Markets." in log

    stack.deploy(OPEN | {"OpenRateLimit": "1"})
    answers = [call(stack, "POST", "/sessions/end", {}, session())[0] for _ in range(3)]
    assert answers[0] == 204
    assert 429 in answers

    limits = {"ApiRateLimit": "1", "ApiBurstLimit": "1", "ApiDailyQuota": "2"}
    stack.deploy({"ApiAuth": "API_KEY"} | limits)
    known = {"x-api-key": stack.info["apiKey"]}
    taken = 0
    refused: set[str] = set()
    deadline = time.monotonic() + 20
    while len(refused) < 2 and time.monotonic() < deadline:
        status, _, body = call(stack, "GET", path_of(session()), known)
        if status == 429:
            refused.add(json.loads(body)["detail"])
        else:
            taken += 1
    assert refused == {"Too many calls at once; try again.", "The daily quota is used up."}
    assert taken == 2
