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

faults.py has the kinds of fault; none of them touches the control requests above.

A notification is delivered when Elevate took it, and `status` is then 204, even if the client never
saw that answer: `reset`, or `slow` beyond its patience. What `down`, `busy`, `hang`, `reject` and
`garbage` got is not delivered; `status` is null where there was none.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import h11

from local.elevate_rules import Answer, judge
from local.faults import fault_of, kind_of, lasts
from local.received import Received

_KEPT = 500_000  # about 250 MB of notifications
_BODY_KEPT = 65_536


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
        self._received = Received(kept)
        self._fault: dict[str, Any] = {"kind": "none"}
        self._fault_ends: asyncio.TimerHandle | None = None
        self._fault_changed = asyncio.Event()
        self._stop = asyncio.Event()

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
        return self._ask(self._received.all)

    def summary(self) -> dict[str, Any]:
        """Return how much was received and delivered, and what was delivered twice."""
        return self._ask(self._received.summary)

    def fault(self, fault: dict[str, Any]) -> None:
        """Switch the fault; raises ValueError for an invalid one, which changes nothing."""
        understood = fault_of(fault)
        self._ask(lambda: self._change_fault(understood))

    def clear(self) -> None:
        """Forget what was received."""
        self._ask(self._received.clear)

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
                    answer: Answer | None = self._control(method, target, body)
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
                await _write(http, writer, Answer(error.error_status_hint, b"Not HTTP/1.1."), "")
        except OSError:
            pass  # the client left
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _elevate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str
    ) -> Answer | None:
        """Return the answer, or None when a fault has used up the connection."""
        fault = self._fault
        kind = kind_of(fault)
        match kind:
            case "down" | "hang" | "garbage":
                answer = None
            case "busy":
                after = (("Retry-After", fault["retryAfter"]),) if "retryAfter" in fault else ()
                answer = Answer(503, b"The cluster is busy.", after)
            case "reject":
                answer = Answer(400, b"Rejected by the simulated fault.")
            case _:
                answer = judge(method, target, self._markets)
        self._received.keep(method, target, answer and answer.status, kind)
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

    # -- control ---------------------------------------------------------------------------

    def _control(self, method: str, target: str, body: bytes) -> Answer:
        path, _, query = target.partition("?")
        match method, path:
            case "GET", "/_sim/notifications":
                return self._page(dict(parse_qsl(query, keep_blank_values=True)))
            case "DELETE", "/_sim/notifications":
                self._received.clear()
                return Answer(204)
            case "GET", "/_sim/summary":
                return _json(200, self._received.summary())
            case "GET", "/_sim/fault":
                return _json(200, self._fault)
            case "PUT", "/_sim/fault":
                try:
                    self._change_fault(fault_of(json.loads(body)))
                except (ValueError, RecursionError) as error:
                    return _json(400, {"error": str(error)})
                return Answer(204)
            case _:
                return _json(404, {"error": "no such control"})

    def _page(self, arguments: dict[str, str]) -> Answer:
        try:
            after, limit = int(arguments.get("after", "0")), int(arguments.get("limit", "1000"))
        except ValueError:
            after, limit = -1, 0
        if after < 0 or limit < 1:
            return _json(400, {"error": "after is an index, and limit at least 1"})
        return _json(200, self._received.page(after, limit, arguments.get("sessionKey", "")))

    def _change_fault(self, fault: dict[str, Any]) -> None:
        if self._fault_ends:
            self._fault_ends.cancel()
            self._fault_ends = None
        self._fault = fault
        self._fault_changed.set()
        self._fault_changed = asyncio.Event()
        if (seconds := lasts(fault)) is not None:
            self._fault_ends = self._loop.call_later(seconds, self._change_fault, {"kind": "none"})


def markets_of(text: str) -> tuple[str, ...]:
    """Return the markets of a list as template.yaml takes it: a comma in a name is %2C."""
    return tuple(unquote(market.strip()) for market in text.split(",") if market.strip())


def _json(status: int, value: Any) -> Answer:
    return Answer(status, json.dumps(value).encode(), (("Content-Type", "application/json"),))


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
    http: h11.Connection, writer: asyncio.StreamWriter, answer: Answer, method: str
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
