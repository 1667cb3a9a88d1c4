"""A strict simulated Elevate on the loopback, with faults that can be switched at run time.

It serves both dialects as documented, and keeps what it received:

    GET    /_sim/notifications?after=0&limit=1000&sessionKey=…   what was received, paged by index
    GET    /_sim/summary                                         counts, and keys answered 204 twice
    DELETE /_sim/notifications                                   forget it
    GET    /_sim/fault, PUT /_sim/fault                          the fault of the moment

A fault is `{"kind", "seconds", "rate", "retryAfter", "for"}`; `for` (seconds) ends it.

    none     answer as documented            reset    take the notification, then reset the answer
    down     drop connections unanswered     reject   answer 400
    busy     answer 503 (`retryAfter`)       garbage  answer bytes that are no HTTP
    slow     answer after `seconds` (2)      flaky    with probability `rate` (0.5) be busy, reset,
    hang     take the request, never answer           down or slow; else answer as documented
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11

KINDS = ("none", "down", "busy", "slow", "hang", "reset", "reject", "garbage", "flaky")
_FLAKY = ("busy", "reset", "down", "slow")

_UUID4 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)
_WEB_V2 = "/api/v2/notifications/end"
_STOREFRONT_V3 = "/api/storefront/v3/notifications/end"

type _Answer = tuple[int, bytes, list[tuple[str, str]]]


class SimulatedElevate:
    """A server in a thread of its own; use as a context manager."""

    def __init__(
        self, markets: tuple[str, ...] = ("UK", "SE"), port: int = 0, latency: float = 0.0
    ) -> None:
        self._markets = set(markets)
        self._latency = latency
        self._received: list[dict[str, Any]] = []
        self._delivered: Counter[str] = Counter()
        self._fault: dict[str, Any] = {"kind": "none"}
        self._fault_changed = asyncio.Event()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="simulated-elevate", daemon=True)

    def __enter__(self) -> "SimulatedElevate":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def notifications(self) -> list[dict[str, Any]]:
        """Return what was received."""
        return list(self._received)

    def fault(self, fault: dict[str, Any]) -> None:
        """Switch the fault; raises HTTPError for one that is invalid."""
        request = urllib.request.Request(
            f"{self.url}/_sim/fault", json.dumps(fault).encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def clear(self) -> None:
        """Forget what was received."""
        self._received.clear()
        self._delivered.clear()

    # -- serving ---------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(connected, sock=self._socket)
        await self._stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            while request := await self._request(http, reader):
                method, target, body = request
                if target.startswith("/_sim/"):
                    await self._send(http, writer, self._control(method, target, body))
                elif not await self._elevate(http, writer, reader, method, target):
                    return
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()
        except (OSError, h11.ProtocolError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _request(
        self, http: h11.Connection, reader: asyncio.StreamReader
    ) -> tuple[str, str, bytes] | None:
        method = target = ""
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                method, target = event.method.decode(), event.target.decode("latin-1")
            elif isinstance(event, h11.Data):
                body = (body + event.data)[:65536]
            elif isinstance(event, h11.EndOfMessage):
                return method, target, body
            else:
                return None

    async def _elevate(
        self,
        http: h11.Connection,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        method: str,
        target: str,
    ) -> bool:
        """Take one request of Elevate's own; return whether the connection lives on."""
        fault = self._current_fault()
        kind = fault["kind"]
        if kind == "flaky":
            kind = random.choice(_FLAKY) if random.random() < fault.get("rate", 0.5) else "none"
        if kind == "hang":
            self._keep(method, target, None, "hang")
            await self._until_changed_or_gone(reader)
            return False
        if kind in ("down", "garbage"):
            self._keep(method, target, None, kind)
            if kind == "garbage":
                writer.write(b"\x16\x03\x01 this is no HTTP \x00\xff\r\n\r\n")
                await writer.drain()
            return False
        if kind == "slow":
            await asyncio.sleep(fault.get("seconds", 2.0))
        elif self._latency:
            await asyncio.sleep(self._latency)
        if kind == "busy":
            headers = [("Retry-After", str(fault["retryAfter"]))] if "retryAfter" in fault else []
            answer: _Answer = (503, b"The cluster is busy.", headers)
        elif kind == "reject":
            answer = (400, b"Rejected by the fault of the moment.", [])
        else:
            answer = self._answer(method, target)
        self._keep(method, target, answer[0], kind)
        if kind == "reset":
            writer.write(b"HTTP/1.1 204 No")
            await writer.drain()
            _reset(writer)
            return False
        await self._send(http, writer, answer)
        return True

    async def _send(
        self, http: h11.Connection, writer: asyncio.StreamWriter, answer: _Answer
    ) -> None:
        status, body, headers = answer
        if status != 204:
            headers = [*headers, ("Content-Length", str(len(body)))]
        head = h11.Response(status_code=status, headers=headers)
        writer.write(
            (http.send(head) or b"")
            + (http.send(h11.Data(data=body)) or b"" if body and status != 204 else b"")
            + (http.send(h11.EndOfMessage()) or b"")
        )
        await writer.drain()

    async def _until_changed_or_gone(self, reader: asyncio.StreamReader) -> None:
        gone = self._loop.create_task(reader.read(1))
        changed = self._loop.create_task(self._fault_changed.wait())
        try:
            await asyncio.wait({gone, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            changed.cancel()

    # -- Elevate's rules -------------------------------------------------------------------

    def _answer(self, method: str, target: str) -> _Answer:
        url = urlsplit(target)
        if url.path not in (_WEB_V2, _STOREFRONT_V3):
            return 404, b"No such resource.", []
        if method != "POST":
            return 405, b"" if method == "HEAD" else b"Use POST.", [("Allow", "POST")]
        try:
            arguments = parse_qsl(url.query, keep_blank_values=True, errors="strict")
        except ValueError:
            return 400, b"The query is not UTF-8.", []
        given = dict(arguments)
        if len(given) != len(arguments):
            return 400, b"An argument is given twice.", []
        fault = self._web_v2(given) if url.path == _WEB_V2 else self._storefront_v3(given)
        return (400, fault.encode(), []) if fault else (204, b"", [])

    def _web_v2(self, given: dict[str, str]) -> str:
        names = {"esales.market", "esales.customerKey", "esales.sessionKey"}
        if set(given) != names:
            return "Wanted are esales.market, esales.customerKey and esales.sessionKey."
        if given["esales.market"] not in self._markets:
            return "The market is not configured."
        for name in ("esales.customerKey", "esales.sessionKey"):
            if not _UUID4.fullmatch(given[name]):
                return f"The argument {name} is no UUID v4."
        return ""

    def _storefront_v3(self, given: dict[str, str]) -> str:
        context = given.get("userContext", "PERSONALIZED")
        keys = {"customerKey", "sessionKey"}
        wanted, allowed = {
            "PERSONALIZED": (keys, keys),
            "UNPERSONALIZED": ({"sessionKey"}, {"sessionKey"}),
            "ANONYMOUS": (set[str](), set[str]()),
            "SYNTHETIC": (set[str](), keys),
        }.get(context, (None, None))
        if wanted is None or allowed is None:
            return "The userContext is unknown."
        names = set(given) - {"userContext"}
        if not {"market", *wanted} <= names <= {"market", *allowed}:
            return f"The arguments do not fit the userContext {context}."
        if given["market"] not in self._markets:
            return "The market is not configured."
        if any(not 1 <= len(given[key]) <= 255 for key in names & keys):
            return "A key has 1 to 255 characters."
        return ""

    # -- control ---------------------------------------------------------------------------

    def _keep(self, method: str, target: str, status: int | None, fault: str) -> None:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        notification = {
            "index": len(self._received),
            "time": time.time(),
            "method": method,
            "path": url.path,
            "query": query,
            "rawQuery": url.query,
            "status": status,
        }
        if fault != "none":
            notification["fault"] = fault
        self._received.append(notification)
        if status == 204:
            self._delivered[_session_key(query)] += 1

    def _current_fault(self) -> dict[str, Any]:
        until = self._fault.get("until")
        if until is not None and time.monotonic() >= until:
            self._change_fault({"kind": "none"})
        return self._fault

    def _change_fault(self, fault: dict[str, Any]) -> None:
        self._fault = fault
        self._fault_changed.set()
        self._fault_changed = asyncio.Event()

    def _control(self, method: str, target: str, body: bytes) -> _Answer:
        url = urlsplit(target)
        arguments = dict(parse_qsl(url.query))
        match method, url.path:
            case "GET", "/_sim/notifications":
                return self._list(arguments)
            case "DELETE", "/_sim/notifications":
                self.clear()
                return 204, b"", []
            case "GET", "/_sim/summary":
                twice = sorted(key for key, times in self._delivered.items() if times > 1)
                return _json(
                    200,
                    {
                        "received": len(self._received),
                        "delivered": sum(self._delivered.values()),
                        "sessions": len(self._delivered),
                        "deliveredTwice": twice,
                    },
                )
            case "GET", "/_sim/fault":
                return _json(200, {k: v for k, v in self._current_fault().items() if k != "until"})
            case "PUT", "/_sim/fault":
                try:
                    self._change_fault(_fault(json.loads(body)))
                except (TypeError, ValueError) as error:
                    return _json(400, {"error": str(error)})
                return 204, b"", []
            case _:
                return _json(404, {"error": "no such control"})

    def _list(self, arguments: dict[str, str]) -> _Answer:
        try:
            after, limit = int(arguments.get("after", 0)), int(arguments.get("limit", 1000))
        except ValueError:
            return _json(400, {"error": "after and limit are integers"})
        found = self._received[after:]
        if "sessionKey" in arguments:
            found = [n for n in found if _session_key(n["query"]) == arguments["sessionKey"]]
        page: dict[str, Any] = {"count": len(found), "notifications": found[:limit]}
        if len(found) > limit:
            page["next"] = found[limit]["index"]
        return _json(200, page)


def _session_key(query: dict[str, str]) -> str:
    return query.get("esales.sessionKey") or query.get("sessionKey") or ""


def _fault(given: Any) -> dict[str, Any]:
    """Return a fault that is understood; raises ValueError or TypeError."""
    if not isinstance(given, dict) or given.get("kind") not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}")
    if unknown := set(given) - {"kind", "seconds", "rate", "retryAfter", "for"}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    fault = {"kind": given["kind"]}
    for name in ("seconds", "rate", "for"):
        if given.get(name) is not None:
            fault[name] = float(given[name])
            if not 0 <= fault[name] <= (1 if name == "rate" else 86_400):
                raise ValueError(f"{name} is out of range")
    if given.get("retryAfter") is not None:
        fault["retryAfter"] = str(given["retryAfter"])
        if not fault["retryAfter"].isprintable() or not fault["retryAfter"].isascii():
            raise ValueError("retryAfter is printable ASCII")
    # For a fault that is no delay, `seconds` can only mean how long it lasts.
    lasts = fault.get("for", fault.get("seconds") if fault["kind"] not in _DELAYS else None)
    if lasts is not None:
        fault["until"] = time.monotonic() + lasts
    return fault


_DELAYS = ("none", "slow", "flaky")


def _json(status: int, value: Any) -> _Answer:
    return status, json.dumps(value).encode(), [("Content-Type", "application/json")]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset instead of an orderly end."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A strict simulated Elevate on the loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--markets", default="UK,SE", help="comma separated")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    markets = tuple(options.markets.split(","))
    with SimulatedElevate(markets, options.port, options.latency_ms / 1000) as elevate:
        print(f"simulated Elevate on {elevate.url}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
