"""A DynamoDB with faults: a proxy on the wire between the SDK and the emulator."""

import contextlib
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

THROTTLED = (
    400,
    b'{"__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException", "message": "slow down"}',
)

type Statements = list[dict[str, Any]]


class FaultyDynamoDB:
    """`before(operation)` and `after(operation)` may raise Drop; `throttles` counts down.

    `headers` go with every answer. `garbled` makes of an answer's body what is sent in its place.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None
        self.throttles = 0
        self.headers: dict[str, str] = {}
        self.garbled: Callable[[bytes], bytes] = lambda body: body
        self.statement_errors: Callable[[Statements], dict[int, str]] = lambda statements: {}
        self.calls: list[str] = []
        self.asked: set[tuple[str, str]] = set()


class Drop(Exception):
    """Close the connection without an answer."""


@contextlib.contextmanager
def faulty_dynamodb(endpoint: str) -> Iterator[FaultyDynamoDB]:
    """Run the proxy in front of an endpoint."""
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            operation = self.headers["X-Amz-Target"].split(".")[-1]
            with lock:
                faulty.calls.append(operation)
                faulty.asked.add((operation, json.loads(body).get("IndexName", "")))
                throttled, faulty.throttles = faulty.throttles > 0, faulty.throttles - 1
            try:
                faulty.before(operation)
                status, answer = THROTTLED if throttled else self._forward(operation, body)
                faulty.after(operation)
            except Drop:
                self.close_connection = True
                return
            sent = faulty.garbled(answer)
            self.send_response(status)
            # One that is cut short still announces all of it.
            self.send_header("Content-Length", str(max(len(answer), len(sent))))
            for name, value in faulty.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection |= len(sent) < len(answer)

        def _forward(self, operation: str, body: bytes) -> tuple[int, bytes]:
            if operation != "BatchExecuteStatement":
                return self._post(body)
            statements: Statements = json.loads(body)["Statements"]
            errors = faulty.statement_errors(statements)
            left = [s for number, s in enumerate(statements) if number not in errors]
            responses: list[Any] = []
            if left:
                _, answer = self._post(json.dumps({"Statements": left}).encode())
                responses = json.loads(answer)["Responses"]
            for number, code in sorted(errors.items()):
                responses.insert(number, {"Error": {"Code": code, "Message": ""}})
            return 200, json.dumps({"Responses": responses}).encode()

        def _post(self, body: bytes) -> tuple[int, bytes]:
            names = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
            headers = {name: self.headers[name] for name in names if self.headers[name]}
            request = urllib.request.Request(endpoint, body, headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as answer:
                with answer:
                    return answer.code, answer.read()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client was killed
                super().handle()

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Log nothing: clients are killed on purpose."""

    server = Server(("127.0.0.1", 0), Handler)
    faulty = FaultyDynamoDB(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def dynamo(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyDynamoDB]:
    """Return the DynamoDB that the functions use, which may be told to fail."""
    with faulty_dynamodb(aws) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        yield faulty
