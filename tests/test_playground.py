"""The playground's page and its server; the whole story is in tests/stack."""

import http.client
import json
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from local.playground import Playground
from local.service import Service
from local.simulated_elevate import SimulatedElevate
from registry_table import create_table

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def table(dynamodb: Any) -> str:
    name = f"playground-{uuid.uuid4()}"
    create_table(dynamodb, name)
    return name


@pytest.fixture
def playground(aws: str, table: str, simulated: SimulatedElevate) -> Iterator[Playground]:
    """Show a registry and an Elevate, without functions."""
    info = {
        "apiUrl": "http://127.0.0.1:9",
        "apiKey": "",
        "awsEndpointUrl": aws,
        "region": "eu-west-1",
        "tableName": table,
        "eventBusName": "default",
        "elevateUrl": simulated.url,
        "elevateIsSimulated": True,
        "markets": ["UK", "SE"],
    }
    with closing(Service(info)) as service, Playground() as playground:
        playground.show(service)
        yield playground


def ask(
    playground: Playground, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Send one request with these headers; return status, body and headers of the answer."""
    host = playground.url.removeprefix("http://")
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request(method, path, body, {"Host": host} | head)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


FAULT = json.dumps({"kind": "down"}).encode()
JSON = {"Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/state", None, {"Host": "shop.example"}, 421),
        ("GET", "/", None, {"Host": "127.0.0.1"}, 421),
        ("GET", "/state", None, {"Origin": "https://shop.example"}, 403),
        ("GET", "/../run.py", None, {}, 404),
        ("POST", "/fault", FAULT, JSON | {"Host": "shop.example"}, 421),
        ("POST", "/fault", FAULT, JSON | {"Origin": "https://shop.example"}, 403),
        ("POST", "/fault", FAULT, JSON | {"Origin": "null"}, 403),
        ("POST", "/fault", FAULT, {"Content_Type": "text/plain"}, 415),
        ("POST", "/fault", FAULT, {}, 415),
        ("POST", "/fault", b" " * 16_385, JSON, 413),
        ("POST", "/fault", b"[]", JSON, 400),
        ("POST", "/fault", b"{", JSON, 400),
        ("POST", "/track", b"{}", JSON, 400),
        ("POST", "/other", FAULT, JSON, 404),
    ],
)
def test_it_refuses_what_its_own_page_would_not_send(
    playground: Playground,
    simulated: SimulatedElevate,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
) -> None:
    # Given an Elevate whose fault shows whether anything was done
    simulated.fault({"kind": "slow"})
    # When somebody else asks
    answered, text, _ = ask(playground, method, path, body, **headers)
    # Then the answer says no, and why, and nothing was done.
    assert answered == status
    assert json.loads(text).keys() == {"error"}
    assert json.loads(ask(playground, "GET", "/state")[1])["elevate"]["fault"] == {"kind": "slow"}


def test_it_accepts_what_its_own_page_sends(playground: Playground) -> None:
    status, _, _ = ask(playground, "POST", "/fault", FAULT, **JSON, Origin=playground.url)
    assert status == 200
    assert json.loads(ask(playground, "GET", "/state")[1])["elevate"]["fault"] == {"kind": "down"}


def test_another_page_cannot_embed_it(playground: Playground) -> None:
    _, _, headers = ask(playground, "GET", "/")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_it_listens_on_one_loopback_address_only(playground: Playground) -> None:
    port = int(playground.url.rsplit(":", 1)[1])
    with socket.socket() as client:
        # A server that listens on all addresses answers on this one too.
        assert client.connect_ex(("127.0.0.2", port)) != 0


def test_it_says_what_it_waits_for_and_when_the_stack_has_gone(table: str) -> None:
    with Playground() as playground:
        playground.say("Building …")
        assert json.loads(ask(playground, "GET", "/state")[1]) == {"phase": "Building …"}
        assert ask(playground, "POST", "/fault", FAULT, **JSON)[0] == 404
        gone = {"awsEndpointUrl": "http://127.0.0.1:9", "region": "eu-west-1", "tableName": table}
        with closing(Service(gone | {"elevateIsSimulated": False, "markets": []})) as service:
            playground.show(service)
            status, text, _ = ask(playground, "GET", "/state")
        assert (status, "does not answer" in text.decode()) == (503, True)


def test_its_buttons_wait_for_the_stack(playground: Playground, page: Page) -> None:
    buttons = page.locator("#tools button")
    # Given a page whose first look at the stack is under way: it knows no market yet
    answers: list[Route] = []
    page.route("**/state", lambda route: answers.append(route), times=1)
    page.goto(playground.url)
    expect(buttons).to_have_count(4)
    # Then nothing can be pressed,
    for button in buttons.all():
        expect(button).to_be_disabled()
    # until the state has come.
    answers[0].continue_()
    for button in buttons.all():
        expect(button).to_be_enabled()
    expect(page.locator("#market")).to_have_value("UK")


def test_a_browser_that_leaves_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with Playground() as playground:
        # Given a browser in the middle of its request
        port = int(playground.url.rsplit(":", 1)[1])
        before = set(threading.enumerate())
        with socket.create_connection(("127.0.0.1", port)) as browser:
            browser.sendall(b"GET /state HTTP/1.1\r\n")
            thread = new_thread(before)
            # When it leaves without a farewell
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        thread.join(10)
    # Then the terminal shows nothing of it.
    assert not thread.is_alive()
    assert capsys.readouterr().err == ""


def new_thread(before: set[threading.Thread]) -> threading.Thread:
    """Return a thread that was not there before, as soon as one runs."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for thread in set(threading.enumerate()) - before:
            if thread.is_alive():  # not so until it has begun to run
                return thread
    raise AssertionError("no request arrived")


def put(dynamodb: Any, table: str, *rows: dict[str, Any]) -> None:
    """Write rows of the registry, 25 at a time."""
    requests = [{"PutRequest": {"Item": row}} for row in rows]
    for start in range(0, len(requests), 25):
        dynamodb.batch_write_item(RequestItems={table: requests[start : start + 25]})


def row(number: int, state: str = "open", **more: Any) -> dict[str, Any]:
    """Return a row of the registry that is due long after the test."""
    return {
        "sessionKey": {"S": f"{number:08}-0000-4000-8000-000000000000"},
        "market": {"S": "UK"},
        "state": {"S": state},
        "dueAt": {"N": str(4_000_000_000 + number)},
        "attempts": {"N": "0"},
        **more,
    }


def test_it_keeps_up_with_a_thousand_sessions(
    playground: Playground, page: Page, dynamodb: Any, table: str
) -> None:
    # Given a thousand sessions, one of which has a key that is HTML
    put(dynamodb, table, *(row(number) for number in range(999)))
    put(dynamodb, table, row(0) | {"sessionKey": {"S": HOSTILE}})
    page.goto(playground.url)
    expect(page.locator("#sessions tr")).to_have_count(1000)
    expect(page.get_by_title(HOSTILE)).to_have_count(1)
    # When one of them changes
    changed = {"lastStatus": {"N": "503"}, "lastReason": {"S": "busy"}, "attempts": {"N": "3"}}
    put(dynamodb, table, row(500, "retrying", **changed))
    # Then the page shows it and nothing else when asked for it,
    page.get_by_role("button", name="Retrying 1").click()
    expect(page.locator("#sessions tr")).to_have_count(1)
    expect(page.locator("#sessions tr")).to_contain_text("503 · busy · 3 attempts")
    # and forgets what the registry has forgotten.
    key = {name: row(500)[name] for name in ("sessionKey", "market")}
    dynamodb.delete_item(TableName=table, Key=key)
    expect(page.locator("#sessions tr")).to_have_count(0)
    page.get_by_role("button", name="All 999").click()
    expect(page.locator("#sessions tr")).to_have_count(999)


def test_it_shows_what_the_functions_log(playground: Playground, page: Page) -> None:
    page.goto(playground.url)
    playground.add_line(
        {
            "function": "end",
            "level": "WARNING",
            "message": "notification",
            "timestamp": datetime.now(UTC).isoformat(),
            "outcome": "unavailable",
            "correlation_id": "c1",
        }
    )
    line = page.locator("#lines li")
    expect(line).to_contain_text("notification")
    expect(line).to_contain_text("outcome=unavailable")
    assert "c1" in str(line.get_attribute("title"))


def test_it_fits_a_phone(playground: Playground, page: Page, dynamodb: Any, table: str) -> None:
    put(dynamodb, table, row(1), row(2, "ended"), row(3) | {"sessionKey": {"S": "k" * 255}})
    playground.add_line({"function": "end", "message": "notification", "session": "s" * 300})
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(playground.url)
    expect(page.locator("#sessions tr")).to_have_count(3)
    expect(page.locator("#lines li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for part in page.locator("button:visible").all():
        box = part.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_text_is_readable_in_light_and_dark(
    playground: Playground, page: Page, scheme: Any
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(playground.url)
    colours = page.evaluate(
        """() => Object.fromEntries([...document.styleSheets[0].cssRules[0].style]
             .filter((name) => name.startsWith("--"))
             .map((name) => [name, getComputedStyle(document.body).getPropertyValue(name)]))"""
    )
    assert (luminance(colours["--page"]) > 0.5) == (scheme == "light")
    for text, grounds in READ_ON.items():
        for ground in grounds.split():
            assert contrast(colours[f"--{text}"], colours[f"--{ground}"]) >= 4.5, (text, ground)


# Which text colours appear on which backgrounds.
READ_ON = {
    "text": "page card sunk tint plain-tint",
    "soft": "page card sunk tint plain-tint",
    "accent": "card tint sunk",
    "on-accent": "accent",
    "good": "card good-tint",
    "warn": "warn-tint",
    "bad": "bad-tint",
}


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, as WCAG 2 defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
