"""A strict simulated Elevate on the loopback, with faults that can be switched at run time.

It serves both dialects as documented, and keeps what it received (the last half million):

    GET    /_sim/notifications   what was received: `index` (from 1), `time`, `method`, `path`,
                                 `query`, `rawQuery`, `status`, and `fault` if one was involved;
                                 `?after=` an index, `limit=` (1000), `sessionKey=`;
                                 `next` is the `after` of the next page, when there is one
    DELETE /_sim/notifications   forget it
    GET    /_sim/summary         how many were received and delivered, of how many sessions, which
                                 session keys were delivered twice, how many are no longer kept
    GET    /_sim/fault           the current fault
    PUT    /_sim/fault           set one: `{"kind": …, "seconds": …, "rate": …, "retryAfter": …}`

Kinds of fault, none of which touches the control requests above:

    none     answer as documented
    down     drop the connection as soon as it asks for something, without an answer
    busy     answer 503, with `Retry-After: retryAfter` when that is given
    slow     take the notification at once, answer after `seconds` (2)
    hang     take the request and never answer, until the client leaves or the fault changes
    reset    take the notification, then reset the connection in the middle of the answer
    reject   answer 400
    garbage  answer bytes that are not HTTP
    flaky    with probability `rate` (0.5) be busy, reset, down or slow, else answer as documented

`for` is how many seconds a fault lasts; for a kind without delays, `seconds` means the same.

A notification is delivered when Elevate took it, and `status` is then 204, even if the client never
saw that answer: `reset`, or `slow` beyond its patience. What `down`, `busy`, `hang`, `reject` and
`garbage` got is not delivered; `status` is null where there was none.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, unquote

import h11

WEB_V2 = "/api/v2/notifications/end"
STOREFRONT_V3 = "/api/storefront/v3/notifications/end"
KINDS = ("none", "down", "busy", "slow", "hang", "reset", "reject", "garbage", "flaky")

_FLAKY = ("busy", "reset", "down", "slow")
_DELAYS = ("slow", "flaky")
_KEPT = 500_000  # about 250 MB of notifications
_BODY_KEPT = 65_536
_UUID4 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)


class _Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class _Kept(NamedTuple):
    """One request; its target is parsed only when somebody asks."""

    time: float
    method: str
    target: str
    session_key: str
    status: int | None
    fault: str


class SimulatedElevate:
    """Serve from a thread of its own for as long as the context lasts; `url` is where."""

    url: str

    def __init__(
        self,
        markets: tuple[str, ...] = ("UK", "SE"),
        port: int = 0,
        latency: float = 0.0,
        kept: int = _KEPT,
    ) -> None:
        self._markets = frozenset(markets)
        self._port = port
        self._latency = latency
        self._limit = kept
        self._fault: dict[str, Any] = {"kind": "none"}
        self._fault_ends: asyncio.TimerHandle | None = None
        self._fault_changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._forget()

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="simulated-elevate", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def notifications(self) -> list[dict[str, Any]]:
        """Return what was received and is still kept."""
        return self._ask(
            lambda: [self._shown(place, kept) for place, kept in enumerate(self._received)]
        )

    def summary(self) -> dict[str, Any]:
        """Return how much was received and delivered, and what was delivered twice."""
        return self._ask(self._summary)

    def fault(self, fault: dict[str, Any]) -> None:
        """Switch the fault; raises ValueError for an invalid one, which changes nothing."""
        understood = _fault(fault)
        self._ask(lambda: self._change_fault(understood))

    def clear(self) -> None:
        """Forget what was received."""
        self._ask(self._forget)

    def _ask[T](self, call: Callable[[], T]) -> T:
        """Call in the server's thread, the only one that touches its state."""

        async def ask() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    # -- the server ------------------------------------------------------------------------

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connection, sock=listener)
        await self._stop.wait()
        # asyncio leaks a connection whose transport comes after the close, so accept no more, and
        # give those just accepted the turn in which they get one.
        self._loop.remove_reader(listener)
        await asyncio.sleep(0)
        server.close()
        server.abort_clients()  # a stop waits for no client

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            # asyncio sets this only where the listener names its protocol; without it pipelined
            # answers wait 40 ms for an acknowledgement.
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while request := await _read(http, reader, writer):
                method, target, body = request
                if target.startswith("/_sim/"):
                    answer: _Answer | None = self._control(method, target, body)
                else:
                    answer = await self._elevate(reader, writer, method, target)
                if answer is None:
                    return
                await _write(http, writer, answer, method)
                if http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            with contextlib.suppress(OSError, h11.LocalProtocolError):
                await _write(http, writer, _Answer(error.error_status_hint, b"Not HTTP/1.1."), "")
        except OSError:
            pass  # the client left
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _elevate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str
    ) -> _Answer | None:
        """Return the answer, or None when a fault has used up the connection."""
        fault = self._fault
        kind = fault["kind"]
        if kind == "flaky":
            kind = random.choice(_FLAKY) if random.random() < fault.get("rate", 0.5) else "none"
        path, _, query = target.partition("?")
        arguments = _arguments(query)
        match kind:
            case "down" | "hang" | "garbage":
                answer = None
            case "busy":
                after = (("Retry-After", fault["retryAfter"]),) if "retryAfter" in fault else ()
                answer = _Answer(503, b"The cluster is busy.", after)
            case "reject":
                answer = _Answer(400, b"Rejected by the simulated fault.")
            case _:
                answer = self._judge(method, path, arguments)
        self._keep(method, target, _session_key(arguments), answer and answer.status, kind)
        match kind:
            case "slow":
                await asyncio.sleep(fault.get("seconds", 2.0))
            case "hang":
                await self._until_gone_or_changed(reader)
            case "garbage":
                writer.write(b"\x16\x03\x01 not HTTP \x00\xff\r\n\r\n")
                await writer.drain()
            case "reset" if answer:
                writer.write(b"HTTP/1.1 %d " % answer.status)
                await writer.drain()
                _reset(writer)
                return None
            case _ if self._latency:
                await asyncio.sleep(self._latency)
        return answer

    async def _until_gone_or_changed(self, reader: asyncio.StreamReader) -> None:
        async def gone() -> None:
            with contextlib.suppress(OSError):
                while await reader.read(65_536):
                    pass

        waits = {
            self._loop.create_task(gone()),
            self._loop.create_task(self._fault_changed.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # -- Elevate's rules -------------------------------------------------------------------

    def _judge(self, method: str, path: str, arguments: list[tuple[str, str]] | None) -> _Answer:
        if path not in (WEB_V2, STOREFRONT_V3):
            return _Answer(404, b"No such resource.")
        if method != "POST":
            return _Answer(405, b"Use POST.", (("Allow", "POST"),))
        if arguments is None:
            return _Answer(400, b"The query is not percent-encoded UTF-8.")
        given = dict(arguments)
        if len(given) != len(arguments):
            return _Answer(400, b"An argument is given twice.")
        wrong = self._web_v2(given) if path == WEB_V2 else self._storefront_v3(given)
        return _Answer(400, wrong.encode()) if wrong else _Answer(204)

    def _web_v2(self, given: dict[str, str]) -> str:
        if given.keys() != {"esales.market", "esales.customerKey", "esales.sessionKey"}:
            return "Required are esales.market, esales.customerKey and esales.sessionKey."
        if not self._has_market(given["esales.market"]):
            return "The market is not configured."
        for name in ("esales.customerKey", "esales.sessionKey"):
            if not _UUID4.fullmatch(given[name]):
                return f"The argument {name} is not a UUID v4."
        return ""

    def _storefront_v3(self, given: dict[str, str]) -> str:
        keys = {"customerKey", "sessionKey"}
        match given.get("userContext", "PERSONALIZED"):
            case "PERSONALIZED":
                wanted, allowed = keys, keys
            case "UNPERSONALIZED":
                wanted, allowed = {"sessionKey"}, {"sessionKey"}
            case "ANONYMOUS":
                wanted, allowed = set(), set()
            case "SYNTHETIC":
                wanted, allowed = set(), keys
            case _:
                return "The userContext is unknown."
        names = given.keys() - {"userContext"}
        if not {"market", *wanted} <= names <= {"market", *allowed}:
            return "The arguments do not fit the userContext."
        if not self._has_market(given["market"]):
            return "The market is not configured."
        if any(not 1 <= len(given[name]) <= 255 for name in names & keys):
            return "A key has 1 to 255 characters."
        return ""

    def _has_market(self, market: str) -> bool:
        return not self._markets or market in self._markets

    # -- what was received -----------------------------------------------------------------

    def _forget(self) -> None:
        self._received: list[_Kept] = []
        self._dropped = 0
        self._deliveries = 0
        self._delivered: Counter[str] = Counter()

    def _keep(
        self, method: str, target: str, session_key: str, status: int | None, fault: str
    ) -> None:
        if len(self._received) >= self._limit:
            self._drop_older_half()
        kept = _Kept(time.time(), method, target, session_key, status, fault)
        self._received.append(kept)
        self._count(kept, 1)

    def _drop_older_half(self) -> None:
        older = self._received[: self._limit // 2]
        for kept in older:
            self._count(kept, -1)
        del self._received[: len(older)]
        self._dropped += len(older)

    def _count(self, kept: _Kept, change: int) -> None:
        if kept.status != 204:
            return
        self._deliveries += change
        # A synthetic or anonymous visitor may have no session to count.
        if kept.session_key:
            self._delivered[kept.session_key] += change
            if not self._delivered[kept.session_key]:
                del self._delivered[kept.session_key]

    def _shown(self, place: int, kept: _Kept) -> dict[str, Any]:
        path, _, query = kept.target.partition("?")
        shown: dict[str, Any] = {
            "index": self._dropped + place + 1,
            "time": kept.time,
            "method": kept.method,
            "path": path,
            "query": dict(parse_qsl(query, keep_blank_values=True)),
            "rawQuery": query,
            "status": kept.status,
        }
        if kept.fault != "none":
            shown["fault"] = kept.fault
        return shown

    def _summary(self) -> dict[str, Any]:
        return {
            "received": len(self._received),
            "delivered": self._deliveries,
            "sessions": len(self._delivered),
            "deliveredTwice": sorted(key for key, times in self._delivered.items() if times > 1),
            "forgotten": self._dropped,
        }

    # -- control ---------------------------------------------------------------------------

    def _control(self, method: str, target: str, body: bytes) -> _Answer:
        path, _, query = target.partition("?")
        match method, path:
            case "GET", "/_sim/notifications":
                return self._page(dict(parse_qsl(query, keep_blank_values=True)))
            case "DELETE", "/_sim/notifications":
                self._forget()
                return _Answer(204)
            case "GET", "/_sim/summary":
                return _json(200, self._summary())
            case "GET", "/_sim/fault":
                return _json(200, self._fault)
            case "PUT", "/_sim/fault":
                try:
                    self._change_fault(_fault(json.loads(body)))
                except (ValueError, RecursionError) as error:
                    return _json(400, {"error": str(error)})
                return _Answer(204)
            case _:
                return _json(404, {"error": "no such control"})

    def _page(self, arguments: dict[str, str]) -> _Answer:
        try:
            after, limit = int(arguments.get("after", "0")), int(arguments.get("limit", "1000"))
        except ValueError:
            after, limit = -1, 0
        if after < 0 or limit < 1:
            return _json(400, {"error": "after is an index, and limit at least 1"})
        places: Sequence[int] = range(len(self._received))
        if key := arguments.get("sessionKey"):
            places = [n for n in places if self._received[n].session_key == key]
        rest = places[bisect_left(places, after - self._dropped) :]
        shown = [self._shown(n, self._received[n]) for n in rest[:limit]]
        page: dict[str, Any] = {"count": len(places), "notifications": shown}
        if len(rest) > limit:
            page["next"] = shown[-1]["index"]
        return _json(200, page)

    def _change_fault(self, fault: dict[str, Any]) -> None:
        if self._fault_ends:
            self._fault_ends.cancel()
            self._fault_ends = None
        self._fault = fault
        self._fault_changed.set()
        self._fault_changed = asyncio.Event()
        lasts = fault.get("for", None if fault["kind"] in _DELAYS else fault.get("seconds"))
        if lasts is not None:
            self._fault_ends = self._loop.call_later(lasts, self._change_fault, {"kind": "none"})


def _fault(given: Any) -> dict[str, Any]:
    """Return a fault that is understood; raises ValueError."""
    if not isinstance(given, dict) or given.get("kind") not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}")
    fault = {name: value for name, value in given.items() if value is not None}
    for name, value in fault.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        match name:
            case "kind":
                pass
            case "seconds" | "for":
                if not (number and 0 <= value <= 86_400):
                    raise ValueError(f"{name} is a number from 0 to 86400")
            case "rate":
                if not (number and 0 <= value <= 1):
                    raise ValueError("rate is a number from 0 to 1")
            case "retryAfter":
                if not (number or isinstance(value, str)):
                    raise ValueError("retryAfter is a number or a string")
                fault[name] = str(value).strip()
                if not (fault[name].isascii() and fault[name].isprintable()):
                    raise ValueError("retryAfter is printable ASCII")
            case _:
                raise ValueError(f"there is no {name} in a fault")
    return fault


def _arguments(query: str) -> list[tuple[str, str]] | None:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        return None


def _session_key(arguments: list[tuple[str, str]] | None) -> str:
    for name, value in arguments or ():
        if name in ("esales.sessionKey", "sessionKey"):
            return value
    return ""


def markets_of(text: str) -> tuple[str, ...]:
    """Return the markets of a list as template.yaml takes it: a comma in a name is %2C."""
    return tuple(unquote(market.strip()) for market in text.split(",") if market.strip())


def _json(status: int, value: Any) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), (("Content-Type", "application/json"),))


# -- the wire ------------------------------------------------------------------------------


async def _read(
    http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, str, bytes] | None:
    """Return method, target and the start of the body, or None when the client has left."""
    method = target = ""
    body = b""
    while True:
        event = http.next_event()
        match event:
            case h11.Request():
                method, target = event.method.decode(), event.target.decode()
            case h11.Data():
                body = (body + event.data)[:_BODY_KEPT]
            case h11.EndOfMessage():
                return method, target, body
            case h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    proceed = h11.InformationalResponse(status_code=100, headers=[])
                    writer.write(http.send(proceed) or b"")
                http.receive_data(await reader.read(65_536))
            case _:
                return None


async def _write(
    http: h11.Connection, writer: asyncio.StreamWriter, answer: _Answer, method: str
) -> None:
    headers = list(answer.headers)
    if answer.status != 204:
        headers.append(("Content-Length", str(len(answer.body))))
    sent = [http.send(h11.Response(status_code=answer.status, headers=headers))]
    if answer.body and method != "HEAD":
        sent.append(http.send(h11.Data(data=answer.body)))
    sent.append(http.send(h11.EndOfMessage()))
    writer.write(b"".join(part for part in sent if part))
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset instead of an orderly end."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="A strict simulated Elevate on the loopback.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--markets",
        default="UK,SE",
        help="markets to accept, separated by commas; a comma in a name is %%2C; none accepts any",
    )
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--seed", type=int, help="makes the draws of `flaky` the same in each run")
    options = parser.parse_args()
    random.seed(options.seed)
    # Blocked before the thread starts, the signals wait for sigwait and interrupt nothing.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with SimulatedElevate(
        markets_of(options.markets), options.port, options.latency_ms / 1000
    ) as elevate:
        print(f"simulated Elevate on {elevate.url}", flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
