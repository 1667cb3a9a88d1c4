"""The playground: one page on the loopback that shows what happens to sessions, and lets you try.

It reads the registry, the simulated Elevate and the functions' logs, and does what its buttons ask
for through the API and the bus. It shows session keys, so it answers nobody but its own page.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from local.service import Answer, Service, new_session

_PAGE = Path(__file__).parent / "playground"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/story.js": ("story.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_BODY_LIMIT = 16_384

# How much of each the page shows.
_SESSIONS, _RECEIVED, _LINES = 2000, 50, 200
# How long (seconds) one state is shown to all: several tabs cost no more than one.
_FRESH = 0.5
_MANY = 100


class Playground:
    """Serve the page for as long as the context lasts; `url` is where."""

    def __init__(self, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=[0.05], name="playground"
        )
        self._service: Service | None = None
        self._about: dict[str, Any] = {"phase": "Starting …"}
        self._lines: deque[dict[str, Any]] = deque(maxlen=_LINES)
        self._reading = threading.Lock()
        self._state: dict[str, Any] = {}
        self._read_at = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hosts(self) -> set[str]:
        """Return the names by which the page may be asked for."""
        return {f"{name}:{self._server.server_port}" for name in ("127.0.0.1", "localhost")}

    def say(self, phase: str) -> None:
        """Show what is being waited for, until the stack is ready."""
        self._about = {"phase": phase}

    def show(self, service: Service) -> None:
        """Show a stack that is ready."""
        self._about = {"markets": service.markets}
        self._service = service

    def add_line(self, line: dict[str, Any]) -> None:
        """Show one more line of the functions' logs."""
        self._lines.append(line)

    # -- what the page asks for ------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all that the page shows."""
        if self._service is None:
            return self._about
        with self._reading:
            if time.monotonic() - self._read_at > _FRESH:
                self._state = self._read(self._service)
                self._read_at = time.monotonic()
            return self._state

    def _read(self, service: Service) -> dict[str, Any]:
        rows = service.sessions(_SESSIONS + 1)
        return self._about | {
            "now": time.time(),
            "sessions": rows[:_SESSIONS],
            "more": len(rows) > _SESSIONS,
            "elevate": _elevate(service) if service.simulates_elevate else None,
            "log": list(self._lines),
        }

    def act(self, action: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Do what a button asks for; return the answer, or None if there is no such action."""
        if self._service is None:
            return None
        try:
            return _do(self._service, action, body)
        finally:
            self._read_at = 0.0  # so that the next to ask sees the effect


def _do(service: Service, action: str, body: dict[str, Any]) -> dict[str, Any] | None:
    match action:
        case "track" | "end":
            return _call(service, action, body)
        case "track-many":
            sessions = [new_session(body["market"]) for _ in range(_MANY)]
            service.put_event("Session Active", {"sessions": sessions})
            return {"request": f"Session Active event with {_MANY} sessions"}
        case "sweep":
            service.put_event("Session Sweep", {})
            return {"request": "Session Sweep event"}
        case "fault" if service.simulates_elevate:
            return _reply("PUT /_sim/fault", service.set_fault(body))
    return None


def _call(service: Service, action: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call the API for a session: the one that is given, or a new visitor's."""
    session = new_session(body["market"])
    if body.get("userContext") in ("UNPERSONALIZED", "SYNTHETIC"):
        del session["customerKey"]
    session |= {name: value for name, value in body.items() if value is not None}
    if action == "track":
        reply = _reply(f"PUT /sessions/{session['sessionKey'][:8]}…", service.track(session))
    else:
        reply = _reply("POST /sessions/end", service.end(session))
    return reply | {"session": session}


def _reply(request: str, answer: Answer) -> dict[str, Any]:
    return {"request": request, "status": answer.status, "body": answer.json}


def _elevate(service: Service) -> dict[str, Any]:
    summary = service.summary()
    newest = summary["received"] + summary["forgotten"]
    return {
        "fault": service.fault(),
        "received": newest,
        "delivered": summary["delivered"],
        "latest": service.received(f"after={max(0, newest - _RECEIVED)}"),
    }


# -- HTTP ----------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stop waits for no browser

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the browser only left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(playground: Playground) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answer the playground's own page, and nobody else."""

        timeout = 60

        def do_GET(self) -> None:
            if not self._is_ours():
                return
            if self.path == "/state":
                self._try(playground.state)
            elif self.path in _FILES:
                name, kind = _FILES[self.path]
                self._answer(200, (_PAGE / name).read_bytes(), kind)
            else:
                self._problem(404, "There is no such page.")

        def do_POST(self) -> None:
            if not self._is_ours():
                return
            # A page of another origin cannot send this type without asking first.
            if self.headers.get_content_type() != "application/json":
                self._problem(415, "Send application/json.")
                return
            length = self.headers.get("Content-Length", "")
            if not (length.isdecimal() and int(length) <= _BODY_LIMIT):
                self._problem(413, f"Send at most {_BODY_LIMIT} bytes, and say how many.")
                return
            try:
                body = json.loads(self.rfile.read(int(length)))
                if not isinstance(body, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError):
                self._problem(400, "Send a JSON object.")
                return
            self._try(lambda: playground.act(self.path.removeprefix("/"), body))

        def _is_ours(self) -> bool:
            """Refuse other hosts' names (DNS rebinding) and other origins' pages."""
            hosts = playground.hosts()
            origin = self.headers.get("Origin")
            if self.headers.get("Host") not in hosts:
                self._problem(421, "This host name is not the playground's.")
            elif origin is not None and origin not in {f"http://{host}" for host in hosts}:
                self._problem(403, "The playground answers its own page only.")
            else:
                return True
            return False

        def _try(self, call: Callable[[], dict[str, Any] | None]) -> None:
            try:
                found = call()
            except (KeyError, TypeError):
                self._problem(400, "Name the market.")
            except (OSError, BotoCoreError, ClientError) as error:
                self._problem(503, f"The stack does not answer ({type(error).__name__}).")
            else:
                if found is None:
                    self._problem(404, "There is no such action now.")
                else:
                    self._answer(200, json.dumps(found).encode(), "application/json")

        def _problem(self, status: int, text: str) -> None:
            self.close_connection = True
            self._answer(status, json.dumps({"error": text}).encode(), "application/json")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Write no access log: the terminal shows what the functions log."""

    return Handler
