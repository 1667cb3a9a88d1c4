"""Elevate's own routes: its arguments in, its answers out, whichever dialect it speaks."""

import json
from typing import Any

import pytest

from emulated import FakeElevate
from handler import application as shared
from handler import end
from handler.application import Application
from invoking import Context, forget, sample

KEYS = {
    "market": "UK",
    "customerKey": "d9528030-509c-4e0f-b585-7168f1e9feca",
    "sessionKey": "b106299c-eac0-4f6f-96d2-93e57c255784",
}
EVENTS = {"web-v2": "api_elevate_v2", "storefront-v3": "api_elevate_storefront_v3"}
PREFIX = {"web-v2": "esales.", "storefront-v3": ""}


def call(route: str, **changes: Any) -> dict[str, Any]:
    """Call a route with the documented arguments, some changed; a None is left out."""
    arguments = {PREFIX[route] + n: v for n, v in (KEYS | changes).items() if v is not None}
    several = {n: v if isinstance(v, list) else [v] for n, v in arguments.items()}
    event = sample(EVENTS[route], multiValueQueryStringParameters=several)
    answer = end.handle(event, Context())
    assert answer
    return answer


def fields(answer: dict[str, Any]) -> list[str]:
    assert answer["statusCode"] == 400, answer
    return [error["field"] for error in json.loads(answer["body"])["errors"]]


@pytest.fixture
def elevate4(application: Application, monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setenv("ELEVATE_API", "storefront-v3")
    forget()
    return shared.application()


@pytest.mark.parametrize("name", ["api_elevate_v2", "api_elevate_storefront_v3"])
def test_the_samples_reach_elevate(
    name: str, application: Application, elevate: FakeElevate
) -> None:
    answer = end.handle(sample(name), Context())
    assert answer
    assert (answer["statusCode"], answer["body"]) == (204, "")
    assert elevate.received == [{f"esales.{n}": v for n, v in KEYS.items()}]


@pytest.mark.parametrize("route", PREFIX)
def test_each_route_loses_nothing_on_the_way_to_elevate_4(
    route: str, elevate4: Application, elevate: FakeElevate
) -> None:
    assert call(route)["statusCode"] == 204
    assert elevate.received == [KEYS]


def test_a_user_context_goes_through(elevate4: Application, elevate: FakeElevate) -> None:
    answer = call("storefront-v3", userContext="UNPERSONALIZED", customerKey=None, sessionKey="ö")
    assert answer["statusCode"] == 204
    sent = {"market": "UK", "sessionKey": "ö", "userContext": "UNPERSONALIZED"}
    assert elevate.received == [sent]


@pytest.mark.parametrize(
    "arguments",
    [
        {"userContext": "ANONYMOUS", "customerKey": None, "sessionKey": None},
        {"userContext": "SYNTHETIC", "customerKey": None, "sessionKey": None},
        {"userContext": "SYNTHETIC", "sessionKey": None},
    ],
)
def test_a_visitor_without_a_session_has_nothing_to_end(
    arguments: dict[str, Any], application: Application, elevate: FakeElevate
) -> None:
    assert call("storefront-v3", **arguments)["statusCode"] == 204
    assert elevate.received == []


def test_a_synthetic_visitor_may_have_keys(elevate4: Application, elevate: FakeElevate) -> None:
    """Such as those of a monitor, always the same."""
    keys = {"customerKey": "synthetic", "sessionKey": "monitor-1"}
    assert call("storefront-v3", userContext="SYNTHETIC", **keys)["statusCode"] == 204
    assert elevate.received == [{"market": "UK", "userContext": "SYNTHETIC", **keys}]


@pytest.mark.parametrize("key", ["customerKey", "sessionKey"])
def test_a_placeholder_is_refused_under_elevates_name_for_it(
    key: str, elevate4: Application, elevate: FakeElevate
) -> None:
    answer = call("storefront-v3", **{key: "undefined"})
    assert fields(answer) == [key]
    assert "undefined" in json.loads(answer["body"])["errors"][0]["detail"]
    assert elevate.received == []


@pytest.mark.parametrize("context", ["ANONYMOUS", "SYNTHETIC"])
@pytest.mark.parametrize("market", [None, "Atlantis"])
def test_a_visitor_without_a_session_still_needs_a_market(
    context: str, market: str | None, application: Application
) -> None:
    bare = {"customerKey": None, "sessionKey": None}
    answer = call("storefront-v3", userContext=context, market=market, **bare)
    assert fields(answer) == ["market"]


@pytest.mark.parametrize("key", ["customerKey", "sessionKey"])
def test_an_anonymous_visitor_has_no_keys(key: str, application: Application) -> None:
    without = {"customerKey": None, "sessionKey": None}
    answer = call("storefront-v3", userContext="ANONYMOUS", **without | {key: KEYS[key]})
    assert fields(answer) == [key]


@pytest.mark.parametrize("route", PREFIX)
@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("value", [None, "", "\x00", ["a", "b"]])
def test_what_elevate_would_refuse_is_refused_under_elevates_name_for_it(
    route: str, name: str, value: Any, application: Application, elevate: FakeElevate
) -> None:
    assert fields(call(route, **{name: value})) == [PREFIX[route] + name]
    assert elevate.received == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"userContext": "UNPERSONALIZED", "customerKey": None}, "userContext"),
        ({"sessionKey": "not a UUID"}, "sessionKey"),
        ({"userContext": "ANONYMOUS", "customerKey": None}, "sessionKey"),
        ({"userContext": "NOBODY"}, "userContext"),
        ({"market": "Atlantis"}, "market"),
    ],
)
def test_what_the_configured_dialect_cannot_express_is_refused(
    arguments: dict[str, Any], field: str, application: Application, elevate: FakeElevate
) -> None:
    assert field in fields(call("storefront-v3", **arguments))
    assert elevate.received == []


def test_bodies_and_unknown_arguments_are_ignored(
    application: Application, elevate: FakeElevate
) -> None:
    event = sample("api_elevate_v2", body="nonsense", headers={"Content-Type": "image/png"})
    event["multiValueQueryStringParameters"]["sessionKey"] = ["somebody else"]
    answer = end.handle(event, Context())
    assert answer
    assert answer["statusCode"] == 204
    assert elevate.received[0]["esales.sessionKey"] == KEYS["sessionKey"]


@pytest.mark.parametrize(("status", "expected"), [(204, 204), (400, 400), (503, 204)])
def test_the_answers_are_elevates(
    status: int, expected: int, application: Application, elevate: FakeElevate
) -> None:
    elevate.statuses = [status]
    assert call("web-v2")["statusCode"] == expected
    kept = application.ending.status(KEYS["sessionKey"])
    assert kept[0].state == {204: "ended", 400: "rejected", 503: "retrying"}[status]


def test_503_when_neither_elevate_nor_the_registry_can_take_it(
    application: Application, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    elevate.statuses = [503]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    answer = call("web-v2")
    assert answer["statusCode"] == 503
    assert int(answer["headers"]["Retry-After"]) >= 1
