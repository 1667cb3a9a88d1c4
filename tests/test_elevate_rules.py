"""The simulated Elevate is as strict as the documentation of Elevate's API."""

import time
from urllib.parse import urlencode
from uuid import uuid1

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.elevate_rules import STOREFRONT_V3, WEB_V2
from local.simulated_elevate import SimulatedElevate
from simulated import CUSTOMER, KEYS, SESSION, V2, V3, connected, end, send


def test_the_documented_example_is_answered_204(simulated: SimulatedElevate) -> None:
    # Given the documented request, to the letter
    target = (
        "/api/v2/notifications/end?esales.market=UK"
        "&esales.customerKey=d9528030-509c-4e0f-b585-7168f1e9feca"
        "&esales.sessionKey=b106299c-eac0-4f6f-96d2-93e57c255784"
    )
    # When it is sent
    before = time.time()
    with connected(simulated) as connection:
        status, body, headers = send(connection, "POST", target)
    # Then it is answered 204 without a body, and kept as it was
    assert (status, body) == (204, b"")
    assert "Content-Length" not in headers
    (kept,) = simulated.notifications()
    assert before <= kept.pop("time") <= time.time()
    assert kept == {
        "index": 1,
        "method": "POST",
        "path": WEB_V2,
        "query": V2,
        "rawQuery": target.partition("?")[2],
        "status": 204,
    }


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (WEB_V2, V2),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION.upper()}),
        (WEB_V2, V2 | {"esales.market": "Sverige & Norge/ü"}),
        (WEB_V2, dict(reversed(V2.items()))),
        (STOREFRONT_V3, V3),
        (STOREFRONT_V3, V3 | {"market": "Sverige & Norge/ü"}),
        (STOREFRONT_V3, V3 | {"userContext": "PERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"sessionKey": "ü" * 255}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "customerKey": "c", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", **KEYS, "userContext": "SYNTHETIC"}),
    ],
)
def test_a_notification_as_documented_is_answered_204(
    simulated: SimulatedElevate, path: str, query: dict[str, str]
) -> None:
    assert end(simulated, path, query) == 204


@pytest.mark.parametrize(
    ("path", "query"),
    [
        # an argument missing, empty, unknown, twice
        *((WEB_V2, {k: v for k, v in V2.items() if k != name}) for name in V2),
        *((WEB_V2, V2 | {name: ""}) for name in V2),
        (WEB_V2, V2 | {"esales.userContext": "PERSONALIZED"}),
        (WEB_V2, urlencode(V2) + "&esales.market=UK"),
        (WEB_V2, urlencode(V2) + "&nothing"),
        (WEB_V2, ""),
        *((STOREFRONT_V3, {k: v for k, v in V3.items() if k != name}) for name in V3),
        *((STOREFRONT_V3, V3 | {name: ""}) for name in V3),
        (STOREFRONT_V3, V3 | {"locale": "en"}),
        (STOREFRONT_V3, urlencode(V3) + "&market=UK"),
        (STOREFRONT_V3, ""),
        # the other dialect's names
        (WEB_V2, {"market": "UK", "customerKey": CUSTOMER, "sessionKey": SESSION}),
        (STOREFRONT_V3, V2),
        # names and markets are case sensitive
        (WEB_V2, {k.lower(): v for k, v in V2.items()}),
        (WEB_V2, V2 | {"esales.market": "uk"}),
        (STOREFRONT_V3, V3 | {"market": "uk"}),
        # markets that are not configured
        (WEB_V2, V2 | {"esales.market": "FR"}),
        (WEB_V2, V2 | {"esales.market": "UK "}),
        (STOREFRONT_V3, V3 | {"market": "Sverige"}),
        # web-v2 wants a UUID v4 with dashes
        (WEB_V2, V2 | {"esales.sessionKey": str(uuid1())}),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION.replace("-", "")}),
        (WEB_V2, V2 | {"esales.sessionKey": f"{{{SESSION}}}"}),
        (WEB_V2, V2 | {"esales.sessionKey": SESSION + "\n"}),
        (WEB_V2, V2 | {"esales.customerKey": "c9528030-509c-4e0f-c585-7168f1e9feca"}),
        (WEB_V2, V2 | {"esales.customerKey": "visitor-7"}),
        # storefront-v3 wants 1 to 255 characters
        (STOREFRONT_V3, V3 | {"customerKey": "c" * 256}),
        # what each userContext allows
        (STOREFRONT_V3, V3 | {"userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, {"market": "UK", "userContext": "UNPERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "ANONYMOUS"}),
        (STOREFRONT_V3, {"userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "", "userContext": "SYNTHETIC"}),
        (STOREFRONT_V3, {"market": "UK", "sessionKey": "s", "userContext": "PERSONALIZED"}),
        (STOREFRONT_V3, V3 | {"userContext": "personalized"}),
        (STOREFRONT_V3, V3 | {"userContext": ""}),
        # not UTF-8
        (STOREFRONT_V3, urlencode(V3 | {"sessionKey": "ü"}, encoding="latin-1")),
    ],
)
def test_anything_else_is_answered_400(
    simulated: SimulatedElevate, path: str, query: dict[str, str] | str
) -> None:
    # When it is sent
    assert end(simulated, path, query) == 400
    # Then it was received, and not delivered
    assert [kept["status"] for kept in simulated.notifications()] == [400]
    assert simulated.summary()["delivered"] == 0


@given(market=st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()))
def test_a_market_of_any_characters_arrives_intact(market: str) -> None:
    with SimulatedElevate(markets=(market,)) as simulated:
        assert end(simulated, WEB_V2, V2 | {"esales.market": market}) == 204
        assert end(simulated, WEB_V2, V2 | {"esales.market": market + "x"}) == 400
        kept, _ = simulated.notifications()
        assert kept["query"]["esales.market"] == market


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", WEB_V2, 405),
        ("HEAD", WEB_V2, 405),
        ("PUT", f"{WEB_V2}?{urlencode(V2)}", 405),
        ("DELETE", STOREFRONT_V3, 405),
        ("POST", "/", 404),
        ("HEAD", "/", 404),
        ("POST", f"{WEB_V2}/?{urlencode(V2)}", 404),
        ("POST", "//[/api", 404),
        ("POST", f"/api/v1/notifications/end?{urlencode(V2)}", 404),
        ("POST", f"/API/v2/notifications/end?{urlencode(V2)}", 404),
    ],
)
def test_other_methods_and_paths_are_refused_and_the_connection_stays_open(
    simulated: SimulatedElevate, method: str, target: str, status: int
) -> None:
    with connected(simulated) as connection:
        # When another method or path is asked for
        answer, body, headers = send(connection, method, target)
        # Then it is refused
        assert answer == status
        assert headers.get("Allow") == ("POST" if status == 405 else None)
        assert (body == b"") == (method == "HEAD")
        # And the same connection still works
        used = connection.sock
        assert send(connection, "POST", f"{WEB_V2}?{urlencode(V2)}")[0] == 204
        assert connection.sock is used
