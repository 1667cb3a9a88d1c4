"""The end notification on real wires: what is sent, and the outcome of every answer or none."""

import base64
import gzip
import logging
import signal
import socket
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emulated import Clock
from sessions.dialects import STOREFRONT_V3, WEB_V2, Dialect
from sessions.elevate import RETRY_AFTER_LIMIT, query_of
from sessions.session import Session
from wire import (
    NO_CONTENT,
    SESSION,
    after,
    answering,
    client,
    http,
    never,
    read_request,
    wire,
)

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


def test_a_reason_is_one_line(quoted: Callable[[bytes, Session], str]) -> None:
    """Elevate must not be able to break the lines of a log."""
    body = b" the market\r\n\tis  not\xc2\x85\x0b known\xe2\x80\xa8 here\n"
    assert quoted(body, SESSION) == "the market is not known here"


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


def test_a_compressed_body_is_not_inflated() -> None:
    body = gzip.compress(b"The market is unknown. " * 1000)
    assert "market" not in after(http("400 Bad", body, "Content-Encoding: gzip")).reason


def test_the_reason_is_not_cut_within_a_character(
    quoted: Callable[[bytes, Session], str],
) -> None:
    """An ellipsis is three bytes long."""
    reasons = [quoted(b"x" * length + b" 1" * 1000, SESSION) for length in (1, 2, 3, 4)]
    assert all(set(reason) == set("x …") for reason in reasons)


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
        ("1.5", 2),
        ("600.0", 600),
        ("0.0", 0),
        ("00007", 7),
        ("900.1", RETRY_AFTER_LIMIT),
        ("999999999", RETRY_AFTER_LIMIT),
        ("9" * 100, RETRY_AFTER_LIMIT),
        ("9" * 60_000, None),
        ("1." + "9" * 60_000, None),
        ("-5", None),
        ("-0.5", None),
        ("+5", None),
        (".5", None),
        ("5.", None),
        ("1,5", None),
        ("1_0", None),
        ("nan", None),
        ("inf", None),
        ("infinity", None),
        ("soon", None),
        ("1e9", None),
        ("0x10", None),
        ("", None),
        ("²", None),
        ("Fri, 23 Nov 2001 12:00:00 GMT", 0),
        ("Fri, 23 Nov 2001 11:59:59 GMT", 0),
        ("Fri, 23 Nov 2001 12:01:00 GMT", 60),
        ("Friday, 23-Nov-01 12:01:00 GMT", 60),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_LIMIT),
        ("Fri, 99 Dec 2001 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_honoured_within_bounds(
    header: str, seconds: int | None, clock: Clock
) -> None:
    answer = http("503 Busy", b"", f"Retry-After: {header} ")
    assert after(answer, wall_clock=clock).retry_after == seconds


def test_seconds_until_a_date_are_rounded_up(clock: Clock) -> None:
    clock.turn(0.4)
    answer = http("503 Busy", b"", "Retry-After: Fri, 23 Nov 2001 12:01:00 GMT")
    assert after(answer, wall_clock=clock).retry_after == 60


@given(st.lists(st.sampled_from([*"0123456789 ,.:;+-()²", "Fri", "Nov", "GMT", "am"]), max_size=30))
def test_no_retry_after_raises(header: list[str]) -> None:
    answer = http("503 Busy", b"", "Retry-After: " + "".join(header))
    retry_after = after(answer).retry_after
    assert retry_after is None or 0 <= retry_after <= RETRY_AFTER_LIMIT


# -- the outcome of no answer -------------------------------------------------------------------


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
    after(answer)
    after(b"HTTP/1.1 400 Bad\r\n" + answer)


@pytest.mark.parametrize("status", ["204 No Content", "400 Bad Request", "503 Busy"])
def test_an_outcome_has_the_time_that_elevate_took(status: str) -> None:
    now = 100.0

    def serve(connection: socket.socket, number: int) -> None:
        nonlocal now
        read_request(connection)
        now += 0.12344
        connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())

    with wire(serve) as server:
        outcome = client(server.url, clock=lambda: now).notify(SESSION)
    assert (outcome.latency_ms, outcome.reason) == (123.4, "")


@pytest.fixture
def nobody() -> str:
    """Return an address where nothing listens."""
    with wire(never) as server:
        return server.url


def test_refused_connections_and_unknown_hosts_are_unavailable(nobody: str) -> None:
    refused = client(nobody).notify(SESSION)
    assert (refused.kind, refused.timed_out) == ("unavailable", False)
    assert refused.reason == "NewConnectionError: ConnectionRefusedError", "the error and its cause"
    unknown = client("http://elevate.invalid").notify(SESSION)
    assert (unknown.kind, unknown.timed_out) == ("unavailable", False)
    assert unknown.reason.startswith("NameResolutionError")


@pytest.mark.parametrize(("seconds", "timed_out"), [(0.9, False), (1.1, True)])
def test_a_failure_that_takes_longer_than_connecting_may_counts_as_a_time_out(
    seconds: float, timed_out: bool, nobody: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """For example, the name is looked up for long: none of our time-outs bounds that."""

    def look_up(*_: object, **__: object) -> None:
        clock.turn(seconds)
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    outcome = client(nobody, clock=clock, connect_timeout=1).notify(SESSION)
    assert (outcome.kind, outcome.timed_out) == ("unavailable", timed_out)


@pytest.mark.parametrize("status", ["204 No Content", "400 Bad Request", "503 Busy"])
def test_an_answer_is_no_time_out_however_late(status: str, clock: Clock) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        clock.turn(3600)
        connection.sendall(http(status))

    with wire(serve) as server:
        assert not client(server.url, clock=clock).notify(SESSION).timed_out


# -- privacy -----------------------------------------------------------------------------------


def test_urllib3_writes_no_key_into_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    after(http("200 OK", b"", "bad header without colon"))
    after(b"")
    assert SESSION.session_key not in caplog.text
