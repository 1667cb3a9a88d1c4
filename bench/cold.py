"""Cold start: the first answer of `POST /sessions/end` under the Runtime Interface Emulator.

Once with an Elevate that is called over http, and once over https, as in production.
"""

import contextlib
import http.server
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import certifi

from fixtures import OURS, YARDSTICK, before, end_call, new_table, package, yardstick
from local.rie import LambdaFunction
from local.stack import Stack
from results import Result, Taken, at_most, in_turns, info, taken

ROUNDS = 9


def cold(stack: Stack) -> list[Result]:
    """Measure an empty handler, ours, the former, the lean and the plain build, in turns."""
    environment = {
        "TABLE_NAME": new_table(),
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }
    others = yardstick(stack)
    functions = {
        "ours": (package(stack, "ours", OURS), "handler.end.handle"),
        "before": (package(stack, "before", before()), "handler.end.handle"),
        "lean": (others / "Lean", "app.handle"),
        "plain": (others / "Plain", "app.handle"),
    }
    plainly = environment | {"ELEVATE_BASE_URL": stack.elevate_url}
    turns = {"empty": partial(_start, YARDSTICK, "empty.handle", plainly)}
    with https_elevate(stack.folder) as (url, authorities):
        securely = environment | {"ELEVATE_BASE_URL": url, "SSL_CERT_FILE": str(authorities)}
        for scheme, there in (("http", plainly), ("https", securely)):
            for name, (task, handler) in functions.items():
                turns[f"{name}, {scheme}"] = partial(_start, task, handler, there)
        times = in_turns(turns, ROUNDS)
    return [
        *(info(f"cold: {name}, ms", time.wall * 1000) for name, time in times.items()),
        *(
            at_most(
                f"cold: ours / {other}, {scheme}",
                times[f"ours, {scheme}"].wall / times[f"{other}, {scheme}"].wall,
                limit,
            )
            for scheme in ("http", "https")
            for other, limit in (("before", 0.95), ("lean", 0.4), ("plain", 0.35))
        ),
    ]


def _start(task: Path, handler: str, environment: dict[str, str]) -> Taken:
    """Start a function; return what its first answer takes."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        LambdaFunction(task, handler, Path(scratch), environment) as function,
    ):
        event = end_call()
        return taken(lambda: _answered(function, event))


def _answered(function: LambdaFunction, event: dict[str, object]) -> None:
    """Invoke, and make sure that the session was ended."""
    answer = function.invoke(event)
    assert answer["statusCode"] == 204, answer


@contextlib.contextmanager
def https_elevate(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run an Elevate that takes everything; yield its URL, and a file of whom to trust.

    Beside its own certificate that has as many as a system: to load them is part of a cold start.
    """
    certificate, authorities = folder / "elevate.pem", folder / "authorities.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(certificate)]
    made = subprocess.run([*command.split(), *names], check=True, capture_output=True, text=True)
    certificate.write_text(certificate.read_text() + made.stdout)
    authorities.write_text(Path(certifi.where()).read_text() + made.stdout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elevate) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", authorities
        finally:
            server.shutdown()


class _Elevate(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
