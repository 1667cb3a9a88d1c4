"""Any input gets a documented answer, and nothing but valid requests is sent to Elevate."""

import contextlib
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulated import FakeElevate
from handler import application as shared
from handler import end, sweep, track
from handler.events import InvalidEvent
from invoking import Context, sample
from local.interface import interface

# Any code point: astral, right-to-left, NUL, and surrogates without their other half.
TEXT = st.text(st.characters(codec=None), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
# What a caller may write where a valid value should be.
ANYTHING = JSON | st.sampled_from(
    ["UK", str(uuid.UUID(int=1)), "UK\r\nHost: evil.example", "x" * 300]
)
NAMES = (
    st.sampled_from(["market", "customerKey", "sessionKey", "userContext", "interactive", "at"])
    | TEXT
)
KEYS = st.uuids().map(str)
BODIES = st.one_of(
    st.builds(
        lambda customer, session, extra: json.dumps(
            {"market": "UK", "customerKey": customer, "sessionKey": session} | extra
        ),
        KEYS,
        KEYS | TEXT,
        st.just({}) | st.dictionaries(NAMES, ANYTHING, max_size=1),
    ),
    st.dictionaries(NAMES, ANYTHING, max_size=6).map(json.dumps),
    st.integers(1, 3000).map(lambda deep: '{"market":' * deep + "1" + "}" * deep),
    st.integers(1, 3000).map(lambda deep: "[" * deep),
    TEXT,
    st.sampled_from(["", "{}", "null", '{"market":"UK","market":"SE"}', "NaN", "x" * 20_000]),
)
QUERIES = st.dictionaries(
    st.sampled_from(
        [
            "market",
            "esales.market",
            "esales.customerKey",
            "esales.sessionKey",
            "customerKey",
            "sessionKey",
            "userContext",
        ]
    )
    | TEXT,
    st.lists(TEXT | st.just("UK"), min_size=1, max_size=3),
    max_size=5,
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "Content-Type", "CONTENT-TYPE"]) | TEXT,
    st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain"]) | TEXT,
    max_size=3,
)
OPERATIONS = {
    (method.upper(), path): set(map(int, operation["responses"]))
    for path, methods in interface()["paths"].items()
    for method, operation in methods.items()
    if method in {"get", "put", "post"}
}

quick = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(
    operation=st.sampled_from(sorted(OPERATIONS)),
    headers=st.just({"Content-Type": "application/json"}) | HEADERS | st.none(),
    body=BODIES | st.none(),
    query=QUERIES | st.none(),
    key=TEXT.map("~key~".__add__) | st.just(str(uuid.UUID(int=2))) | st.none(),
    encoded=st.booleans(),
)
def test_every_call_gets_a_documented_answer(
    application: shared.Application,
    elevate: FakeElevate,
    operation: tuple[str, str],
    headers: dict[str, str] | None,
    body: str | None,
    query: dict[str, list[str]] | None,
    key: str | None,
    encoded: bool,
) -> None:
    method, path = operation
    event = sample(
        "api_end",
        httpMethod=method,
        resource=path,
        headers=headers,
        body=body,
        isBase64Encoded=encoded,
        multiValueQueryStringParameters=query,
        pathParameters=None if key is None else {"sessionKey": key},
    )
    entrance = track if path == "/sessions/{sessionKey}" else end
    answer = entrance.handle(event, Context())
    assert answer is not None
    assert answer["statusCode"] in OPERATIONS[operation] - {500}
    answered = json.dumps(answer["headers"]) + answer["body"]
    if answer["statusCode"] >= 400:
        problem = json.loads(answer["body"])
        assert problem["status"] == answer["statusCode"]
        assert "~key~" not in answered
        assert str(uuid.UUID(int=2)) not in answered
    for sent in elevate.received:
        assert set(sent) == {"esales.market", "esales.customerKey", "esales.sessionKey"}
        assert sent["esales.market"] in {"UK", "SE"}


@pytest.mark.parametrize("handle", [end.handle, track.handle, sweep.handle])
@quick
@given(
    event=st.fixed_dictionaries(
        {},
        optional={
            "detail": JSON
            | st.dictionaries(NAMES, ANYTHING, max_size=4)
            | st.fixed_dictionaries({"sessions": JSON | st.lists(JSON, max_size=3)})
            | st.fixed_dictionaries({}, optional={"shards": JSON, "depth": JSON, "retry": JSON}),
            "detail-type": JSON,
            "time": JSON | st.sampled_from(["2001-02-30T00:00:00Z", "9999-12-31T23:59:59Z"]),
            "id": JSON,
        },
    )
)
def test_every_event_is_processed_or_raises_invalid_event(
    application: shared.Application,
    elevate: FakeElevate,
    handle: Callable[[Any, Any], Any],
    event: dict[str, Any],
) -> None:
    with contextlib.suppress(InvalidEvent):  # anything else would be a bug of ours
        handle(event, Context())


@pytest.mark.parametrize("handle", [end.handle, track.handle, sweep.handle])
@pytest.mark.parametrize("event", [None, "Session Ended", [{"detail": {}}], 7])
def test_what_is_not_an_event_is_refused_as_invalid(
    application: shared.Application,
    handle: Callable[[Any, Any], Any],
    event: Any,
    log: Callable[[], list[dict[str, Any]]],
) -> None:
    with pytest.raises(InvalidEvent):
        handle(event, Context())
    assert [line["message"] for line in log()] == ["refused"]
