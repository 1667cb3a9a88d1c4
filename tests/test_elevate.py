"""The end notification on real wires: what is sent, and the outcome of every answer or none."""

import base64
import datetime
import email.utils
import itertools
import logging
import signal
import socket
import ssl
import subprocess
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sessions.breaker import PAUSE, TIMEOUTS, Breaker
from sessions.connection import AT_ONCE
from sessions.dialects import STOREFRONT_V3, WEB_V2, Dialect
from sessions.elevate import RETRY_AFTER_LIMIT, Elevate, query_of
from sessions.session import Outcome, Session
from sessions.settings import Settings
from wire import Wire, read_request, reset, wire

SESSION = Session(
    market="UK",
    session_key="b106299c-eac0-4f6f-96d2-93e57c255784",
    customer_key="d9528030-509c-4e0f-b585-7168f1e9feca",
)
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def client(url: str, dialect: Dialect = WEB_V2, **changes: Any) -> Elevate:
    changes = {"connect_timeout": 0.5, "read_timeout": 0.3} | changes
    return Elevate(Settings("table", "bus", url, dialect=dialect, **changes))


def answering(*answers: bytes) -> Callable[[socket.socket, int], None]:
    """Give each request on a connection the next of the answers, then close."""

    def serve(connection: socket.socket, number: int) -> None:
        for answer in answers:
            if read_request(connection):
                connection.sendall(answer)

    return serve


def after(answer: bytes, **changes: Any) -> Outcome:
    """Return the outcome of a notification that gets these bytes as its answer."""
    with wire(answering(answer)) as server:
        return client(server.url, **changes).notify(SESSION)


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


# -- what is sent ------------------------------------------------------------------------------


def request_for(session: Session, dialect: Dialect) -> str:
    seen: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(NO_CONTENT)

    with wire(serve) as server:
        assert client(server.url, dialect).notify(session).kind == "delivered"
    return seen[0].decode()


def test_the_documented_example_is_sent_to_the_letter() -> None:
    request = request_for(SESSION, WEB_V2)
    assert request.splitlines()[0] == (
        "POST /api/v2/notifications/end?esales.market=UK"
        "&esales.customerKey=d9528030-509c-4e0f-b585-7168f1e9feca"
        "&esales.sessionKey=b106299c-eac0-4f6f-96d2-93e57c255784 HTTP/1.1"
    )
    assert "Content-Type: application/json\r\n" in request
    assert "User-Agent: elevate-sessions\r\n" in request
    assert "content-length: 0" in request.lower()
    assert request.endswith("\r\n\r\n")


def test_storefront_has_its_own_path_and_names() -> None:
    session = Session("SE", "Case-Sensitive", "c", "SYNTHETIC")
    line = request_for(session, STOREFRONT_V3).splitlines()[0]
    assert line == (
        "POST /api/storefront/v3/notifications/end"
        "?market=SE&customerKey=c&sessionKey=Case-Sensitive&userContext=SYNTHETIC HTTP/1.1"
    )


def test_what_a_session_does_not_have_is_not_sent() -> None:
    line = request_for(Session("SE", "s", None, "UNPERSONALIZED"), STOREFRONT_V3).splitlines()[0]
    assert "?market=SE&sessionKey=s&userContext=UNPERSONALIZED " in line


def test_a_base_url_keeps_its_path() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(NO_CONTENT)

    with wire(serve) as server:
        client(server.url + "/proxy").notify(SESSION)
    assert seen[0].startswith(b"POST /proxy/api/v2/notifications/end?")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(min_size=1))
def test_any_market_and_key_arrive_intact(market: str, key: str) -> None:
    key = key.encode("utf-8", "ignore").decode() or "k"
    query = query_of(Session(market, key, key), WEB_V2)
    assert query.isascii()
    assert not set(query) & set(" \r\n#")
    assert parse_qsl(query, strict_parsing=True) == [
        ("esales.market", market),
        ("esales.customerKey", key),
        ("esales.sessionKey", key),
    ]


# -- the outcome of an answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("200 OK", "delivered"),
        ("204 No Content", "delivered"),
        ("400 Bad Request", "rejected"),
        ("403 Forbidden", "rejected"),
        ("404 Not Found", "rejected"),
        ("408 Request Timeout", "unavailable"),
        ("425 Too Early", "unavailable"),
        ("429 Too Many Requests", "unavailable"),
        ("500 Internal Server Error", "unavailable"),
        ("502 Bad Gateway", "unavailable"),
        ("503 Service Unavailable", "unavailable"),
        ("300 Multiple Choices", "unavailable"),
        ("301 Moved Permanently", "unavailable"),
        ("302 Found", "unavailable"),
        ("307 Temporary Redirect", "unavailable"),
    ],
)
def test_outcome_of_a_status(status: str, kind: str) -> None:
    outcome = after(http(status, b"", "Location: http://127.0.0.1:9/elsewhere"))
    assert (outcome.kind, outcome.status) == (kind, int(status[:3]))


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", b"thank you"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\n\r\nwithout a length",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        NO_CONTENT + b"a body all the same",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + NO_CONTENT,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + NO_CONTENT,
    ],
    ids=[
        *("200 with a body", "200 with half a body", "200 until closed"),
        *("chunked 204", "chunked 204 that ends", "204 with a length", "204 with a body"),
        *("early hints", "several interim answers"),
    ],
)
def test_a_success_is_delivered_whatever_comes_with_it(answer: bytes) -> None:
    """And what comes with it is not taken for the next session's answer."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(answer if number == 0 else http("400 Bad Request"))
        never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, read_timeout=5)
        started = time.monotonic()
        assert elevate.notify(SESSION).kind == "delivered"
        assert time.monotonic() - started < 4, "must be delivered at once, not after the time-out"
        if server.connections == 1 and answer.endswith(NO_CONTENT):
            return  # a whole answer: its connection may be used again
        assert elevate.notify(SESSION).kind == "rejected"
        assert server.connections == 2


def test_interim_answers_do_not_extend_the_time_out() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        never(connection, number)

    with wire(serve) as server:
        assert "TimeoutError" in client(server.url).notify(SESSION).reason


def test_a_second_answer_is_never_taken_for_another_sessions() -> None:
    """Elevate answers A with 204 and, a moment later, sends a stray second answer."""
    sent_stray = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        if number == 0:
            connection.sendall(http("500 Stray"))
            sent_stray.set()
            never(connection, number)
        answering(NO_CONTENT, NO_CONTENT)(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert sent_stray.wait(5)
        assert [elevate.notify(SESSION).status for _ in range(2)] == [204, 204]
        assert server.connections == 2


def test_a_refusal_keeps_its_status_when_its_body_does_not_end() -> None:
    slow = drip([b"HTTP/1.1 400 Oh\r\nContent-Length: 9999\r\n\r\n", *[b"x"] * 9999])
    with wire(slow) as server:
        outcome = client(server.url).notify(SESSION)
    assert (outcome.kind, outcome.status, outcome.reason) == ("rejected", 400, "")


def test_a_used_connection_is_used_again() -> None:
    with wire(answering(*[NO_CONTENT, http("400 Bad", b"why"), http("503 Busy")] * 2)) as server:
        elevate = client(server.url)
        kinds = [elevate.notify(SESSION).kind for _ in range(6)]
        assert kinds == ["delivered", "rejected", "unavailable"] * 2
        assert server.connections == 1


def test_connect_and_read_time_outs_are_separate() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            time.sleep(0.5)  # longer than the connect time-out, shorter than the read one
            connection.sendall(NO_CONTENT)

    with wire(serve) as server:
        elevate = client(server.url, connect_timeout=0.2, read_timeout=5)
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2


def test_a_request_that_was_answered_in_part_is_not_sent_again() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 2")
        reset(connection)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_a_redirect_is_not_followed() -> None:
    with wire(answering(NO_CONTENT)) as elsewhere:
        outcome = after(http("307 Temporary Redirect", b"", f"Location: {elsewhere.url}/x"))
        assert outcome.kind == "unavailable"
        assert elsewhere.connections == 0


# -- which part of an answer is quoted ---------------------------------------------------------


@pytest.fixture(scope="module")
def quoted() -> Iterator[Callable[[bytes, Session], str]]:
    """Return a helper that gives the reason after Elevate refuses a session with some body."""
    body = b""

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(http("400 Bad Request", body))

    with wire(serve) as server:
        elevate = {d.name: client(server.url, d) for d in (WEB_V2, STOREFRONT_V3)}

        def quote(answer: bytes, session: Session) -> str:
            nonlocal body
            body = answer
            is_uuid = len(session.session_key) == 36
            return elevate["web-v2" if is_uuid else "storefront-v3"].notify(session).reason

        yield quote


def test_plain_words_are_quoted_and_nothing_else(
    quoted: Callable[[bytes, Session], str],
) -> None:
    body = b'{"title": "Bad Request", "status": 400, "detail": "The market UK is not a known one."}'
    assert quoted(body, SESSION) == (
        '{"title": "Bad Request", "status": …, "detail": "The market UK is not a known one."}'
    )
    upper = SESSION.session_key.upper()
    body = f"no session {upper} of {SESSION.customer_key}".encode()
    assert "".join(c for c in quoted(body, SESSION) if c.isalnum()) == "nosessionof"


def test_the_reason_is_at_most_1_kb(quoted: Callable[[bytes, Session], str]) -> None:
    reason = quoted(b"\xff" + b"many words " * 10_000, SESSION)
    assert 1000 < len(reason.encode()) <= 1024


def test_the_reason_is_not_cut_within_a_character(
    quoted: Callable[[bytes, Session], str],
) -> None:
    """An ellipsis is three bytes long."""
    reasons = [quoted(b"a" + b" " * spaces + b"1 " * 1000, SESSION) for spaces in (1, 2, 3, 4)]
    assert all(set(reason) == set("a …") for reason in reasons)


def letter_by_letter(pattern: str) -> Callable[[str], str]:
    return lambda key: "".join(pattern.format(ord(letter), letter) for letter in key)


ENCODINGS: list[Callable[[str], str]] = [
    str,
    str.upper,
    lambda key: key.replace("-", ""),
    lambda key: key.replace("-", "%252D"),
    letter_by_letter("%{:02x}"),
    letter_by_letter("&#{};"),
    letter_by_letter("&#x{:x};"),
    letter_by_letter("\\u{:04x}"),
    letter_by_letter("{} "),
    letter_by_letter("{1}_"),
    lambda key: base64.b64encode(key.encode()).decode(),
    lambda key: base64.b64encode(uuid.UUID(key).bytes).decode(),
    lambda key: base64.b32encode(key.encode()).decode(),
    lambda key: key.encode().hex(),
]


@given(
    st.uuids(),
    st.sampled_from(ENCODINGS),
    st.tuples(st.integers(0, 20), st.integers(8, 40)),
    st.sampled_from([9, 20, 64]),
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_no_part_of_a_uuid_is_quoted_however_it_is_written(
    quoted: Callable[[bytes, Session], str],
    key: uuid.UUID,
    encode: Callable[[str], str],
    cut: tuple[int, int],
    width: int,
    encoding: str,
) -> None:
    session = replace(SESSION, session_key=str(key))
    text = encode(str(key)[cut[0] : cut[0] + cut[1]] if encode is not ENCODINGS[11] else str(key))
    body = "??? " + "\n".join(textwrap.wrap(text, width)) + " !!!"
    left = "".join(letter for letter in quoted(body.encode(encoding), session) if letter.isalnum())
    assert len(left) <= 4, left


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200))
def test_where_a_key_may_be_anything_nothing_is_quoted(
    quoted: Callable[[bytes, Session], str], key: str
) -> None:
    assume(len(key) != 36)
    session = Session("UK", key, SESSION.customer_key)
    assert quoted(f"no {key}".encode(), session) == "not shown, for it might hold a key"
    assert quoted(b"", session) == ""


@pytest.mark.parametrize("key", ["a" + "-" * 60 + "z", "-" * 255, "(a+)+" * 40, "a" * 255])
def test_no_key_makes_quoting_slow(quoted: Callable[[bytes, Session], str], key: str) -> None:
    """The limit is on processor time, so a busy machine does not matter."""

    def too_much(*_: object) -> None:
        raise AssertionError("two seconds of work")

    before = signal.signal(signal.SIGVTALRM, too_much)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2)
    try:
        for body in (b"a" + b"-" * 8000, b"a" * 8000, b"a-" * 4000, key.encode() * 20):
            quoted(body, Session("UK", key, key))
            quoted(body, SESSION)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# -- when to try again -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999", RETRY_AFTER_LIMIT),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("", None),
        ("²", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_LIMIT),
        ("Fri, 99 Dec 2001 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_honoured_within_bounds(header: str, seconds: int | None) -> None:
    answer = http("503 Service Unavailable").replace(
        b"Content-Length: 0", b"Content-Length: 0\r\nRetry-After: " + header.encode()
    )
    assert after(answer).retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    date = email.utils.format_datetime(soon, usegmt=True)
    outcome = after(http("503 Service Unavailable", b"", f"Retry-After: {date}"))
    assert outcome.retry_after in range(50, 61)


# -- the outcome of no answer -------------------------------------------------------------------


def never(connection: socket.socket, number: int) -> None:
    while read_request(connection):
        pass


def drip(data: Iterable[bytes]) -> Callable[[socket.socket, int], None]:
    """Send a byte now and then: each arrives in time, the whole never does."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        left = threading.Event()
        for piece in data:
            connection.sendall(piece)
            left.wait(0.02)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        never,
        drip(itertools.repeat(b"H")),
        drip([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 90]),
        drip(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
    ],
    ids=["hang", "endless status", "slow headers", "endless continue"],
)
def test_an_answer_that_does_not_end_in_time_is_a_time_out(
    serve: Callable[[socket.socket, int], None],
) -> None:
    with wire(serve) as server:
        started = time.monotonic()
        outcome = client(server.url).notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "TimeoutError" in outcome.reason
        # The read time-out bounds the whole answer; the rest allows for a slow machine.
        assert time.monotonic() - started < 3


def test_the_read_time_out_is_for_the_whole_answer() -> None:
    with wire(drip(itertools.repeat(b"H"))) as server:
        outcome = client(server.url, read_timeout=1).notify(SESSION)
    assert 900 < outcome.latency_ms < 1800


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\x13garbage",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/9.9 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 4, 5\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 20",
        b"",
    ],
)
def test_what_is_not_an_answer_is_unavailable(answer: bytes) -> None:
    outcome = after(answer)
    assert outcome.kind == "unavailable"
    assert SESSION.session_key not in outcome.reason


@given(st.binary(max_size=300))
def test_no_answer_whatsoever_raises(answer: bytes) -> None:
    after(answer, read_timeout=0.05)
    after(b"HTTP/1.1 400 Bad\r\n" + answer, read_timeout=0.05)


@pytest.mark.parametrize("status", ["204 No Content", "400 Bad Request", "503 Busy"])
def test_an_outcome_has_the_time_that_elevate_took(status: str) -> None:
    now = 100.0

    def serve(connection: socket.socket, number: int) -> None:
        nonlocal now
        read_request(connection)
        now += 0.12344
        connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())

    with wire(serve) as server:
        outcome = Elevate(Settings("table", "bus", server.url), lambda: now).notify(SESSION)
    assert (outcome.latency_ms, outcome.reason) == (123.4, "")


def test_a_connection_that_owes_a_body_is_not_used_again() -> None:
    """A 204 has none, so whatever comes of it would be in the way of the next answer."""
    owing = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"
    with wire(answering(owing, NO_CONTENT)) as server:
        elevate = client(server.url)
        assert [elevate.notify(SESSION).kind for _ in range(2)] == ["delivered"] * 2
        assert server.connections == 2


def test_refused_connections_and_unknown_hosts_are_unavailable() -> None:
    with wire(answering()) as server:
        server.close()
        reason = client(server.url).notify(SESSION).reason
    assert reason == "NewConnectionError: ConnectionRefusedError", "the error and its cause"
    assert client("http://elevate.invalid").notify(SESSION).kind == "unavailable"


def test_a_reset_is_unavailable() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        reset(connection)

    with wire(serve) as server:
        assert client(server.url).notify(SESSION).kind == "unavailable"
        assert server.connections == 1, "after a partial answer it is not sent again"


# -- the one retry -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [lambda c: c.close(), reset], ids=["closed", "reset"])
def test_a_connection_that_died_while_pooled_is_replaced_at_once(
    end: Callable[[socket.socket], None],
) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(NO_CONTENT)
        if number == 0:
            read_request(connection)  # it dies only once the next request is on its way
            end(connection)
        else:
            never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_nothing_is_sent_on_a_pooled_connection_that_was_closed() -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        if number == 0:
            connection.shutdown(socket.SHUT_RDWR)
            closed.set()
            assert not connection.recv(1), "a request on a closed connection"

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert closed.wait(5)
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


def test_a_pooled_connection_that_dies_late_is_not_retried() -> None:
    """Elevate may have taken the notification."""

    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        read_request(connection)
        threading.Event().wait(AT_ONCE + 0.2)

    with wire(serve) as server:
        elevate = client(server.url, read_timeout=5)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_all_addresses_of_a_host_share_one_connect_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight dead addresses: a listener whose queue is full takes no connection and refuses none."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address] * 8)
        started = time.monotonic()
        outcome = client(f"http://elevate.test:{port}").notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "Timeout" in outcome.reason
        assert 0.4 < time.monotonic() - started < 1.5  # twice the time-out at most
        for one in waiting:
            one.close()


def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)

    with wire(serve) as server:
        assert client(server.url).notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_a_time_out_on_a_pooled_connection_is_not_retried() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        answering(NO_CONTENT)(connection, number)
        never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 1


def test_a_second_death_is_unavailable() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == 0:
            connection.sendall(NO_CONTENT)
            read_request(connection)

    with wire(serve) as server:
        elevate = client(server.url)
        elevate.notify(SESSION)
        assert elevate.notify(SESSION).kind == "unavailable"
        assert server.connections == 2


def test_faults_leak_no_pooled_connection() -> None:
    """With one place in the pool, each fault must give it back."""
    faults = [http("500 Oh", b"x" * 20_000), b"junk", b"", http("400 Bad", b"why"), NO_CONTENT]

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(faults[number % len(faults)])

    with wire(serve) as server:
        elevate = client(server.url, concurrency=1)
        kinds = [elevate.notify(SESSION).kind for _ in range(2 * len(faults))]
    assert kinds.count("delivered") >= 2


# -- the breaker -------------------------------------------------------------------------------


def test_after_three_time_outs_no_caller_waits() -> None:
    with wire(never) as server:
        elevate = client(server.url, read_timeout=0.05)
        for _ in range(3):
            assert elevate.notify(SESSION).sent
        held_back = elevate.notify(SESSION)
        assert (held_back.kind, held_back.sent) == ("unavailable", False)
        assert held_back.reason == "not sent: Elevate has timed out"
        assert server.connections == 3
        assert elevate.is_held_back("UK")
        assert not elevate.is_held_back("SE")
        assert elevate.notify(replace(SESSION, market="SE")).sent, "another market is not held back"


def test_a_failure_that_takes_as_long_as_a_time_out_counts_as_one() -> None:
    """For example, a resolver that hangs: none of our time-outs bounds it."""
    now = itertools.count(step=2)
    with wire(answering(b"")) as server:
        url = server.url
    elevate = Elevate(Settings("table", "bus", url), clock=lambda: float(next(now)))
    kinds = [elevate.notify(SESSION).reason.split(":")[0] for _ in range(3)]
    assert kinds == ["NewConnectionError"] * 3
    assert elevate.is_held_back("UK")


def test_quick_failures_do_not_open_the_breaker() -> None:
    with wire(answering(http("503 Busy"))) as server:
        elevate = client(server.url)
        assert all(elevate.notify(SESSION).sent for _ in range(5))
    # Now nothing listens there any more.
    assert all(elevate.notify(SESSION).sent for _ in range(5))
    assert elevate.notify(SESSION).reason.startswith("NewConnectionError")


def test_a_quick_failure_between_time_outs_restarts_the_count() -> None:
    """The network answers at once, so nobody waits in vain."""
    quick = 2

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number != quick:
            never(connection, number)

    with wire(serve) as server:
        elevate = client(server.url, read_timeout=0.05)
        held_back = []
        for _ in range(quick + 1 + TIMEOUTS):
            elevate.notify(SESSION)
            held_back.append(elevate.is_held_back("UK"))
    assert held_back == [False] * (quick + TIMEOUTS) + [True]


def test_one_caller_probes_after_the_pause_and_its_success_closes_the_breaker() -> None:
    now = [1000.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(3):
        assert breaker.lets_through("UK")
        breaker.timed_out("UK")
    assert not breaker.lets_through("UK")
    now[0] += 11
    assert [breaker.lets_through("UK") for _ in range(4)] == [True, False, False, False]
    breaker.timed_out("UK")
    assert not breaker.lets_through("UK")
    now[0] += 11
    assert breaker.lets_through("UK")
    breaker.answered("UK")
    assert all(breaker.lets_through("UK") for _ in range(4))


def test_many_functions_do_not_probe_in_step() -> None:
    now = [1000.0]
    breakers = [Breaker(lambda: now[0]) for _ in range(100)]
    for breaker in breakers:
        for _ in range(TIMEOUTS):
            breaker.timed_out("UK")
    probing = []
    for at in (0.49, 0.75, 1.01):
        now[0] = 1000 + at * PAUSE
        probing.append(sum(not breaker.is_open("UK") for breaker in breakers))
    assert (probing[0], probing[2]) == (0, 100)
    assert 10 < probing[1] < 90


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate with its key for localhost."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", "/dev/stdout"]
    made = subprocess.run([*command.split(), *names], check=True, capture_output=True, text=True)
    path.write_text(path.read_text() + made.stdout)
    return path


def over_tls(certificate: Path, *answers: bytes) -> Callable[[socket.socket, int], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            answering(*answers)(secured, number)

    return serve


def secure_url(server: Wire) -> str:
    return f"https://localhost:{urlsplit(server.url).port}"


def test_an_untrusted_certificate_is_unavailable(certificate: Path) -> None:
    with wire(over_tls(certificate, NO_CONTENT)) as server:
        outcome = client(secure_url(server)).notify(SESSION)
        assert outcome.kind == "unavailable"
        assert "SSL" in outcome.reason


def test_a_trusted_certificate_is_used_and_a_stale_connection_replaced(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with wire(over_tls(certificate, NO_CONTENT)) as server:
        elevate = client(secure_url(server), read_timeout=2)
        assert elevate.notify(SESSION).kind == "delivered"
        assert elevate.notify(SESSION).kind == "delivered"
        assert server.connections == 2


# -- privacy -----------------------------------------------------------------------------------


def test_urllib3_writes_no_key_into_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    after(http("200 OK", b"", "bad header without colon"))
    after(b"")
    assert SESSION.session_key not in caplog.text
