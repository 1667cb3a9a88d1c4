"""One session, however its key is spelled; Elevate is sent the key as it was given."""

import json
from typing import Any

import pytest

from emulated import Clock, FakeElevate, Log
from endings import IDLE, Service, sweep
from handler import application as shared
from handler import end, track
from handler.application import Application
from invoking import Context, forget, sample, with_body
from sessions.dialects import WEB_V2
from sessions.schemas import session_from
from sessions.session import Activity, hashed

LOWER = "b106299c-eac0-4f6f-96d2-93e57c255784"
UPPER = LOWER.upper()
# How two systems of a shop may spell one key, in both orders.
SPELLINGS = [(LOWER, UPPER), (UPPER, LOWER), (UPPER, UPPER), (LOWER, LOWER)]


def tracked(key: str) -> int:
    answer = track.handle(sample("api_track", pathParameters={"sessionKey": key}), Context())
    assert answer
    return int(answer["statusCode"])


def states(key: str) -> list[str]:
    answer = track.handle(sample("api_status", pathParameters={"sessionKey": key}), Context())
    assert answer
    return [session["state"] for session in json.loads(answer["body"]).get("sessions", [])]


@pytest.fixture
def elevate4(application: Application, monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setenv("ELEVATE_API", "storefront-v3")
    forget()
    return shared.application()


@pytest.mark.parametrize(("in_track", "in_end"), SPELLINGS)
def test_an_end_finds_the_session_and_is_sent_as_it_was_given(
    in_track: str, in_end: str, application: Application, elevate: FakeElevate
) -> None:
    assert tracked(in_track) == 204
    end.handle(with_body("api_end", sessionKey=in_end), Context())
    assert elevate.keys() == [in_end]
    assert states(LOWER) == states(UPPER) == ["ended"]
    assert tracked(in_track) == 409
    end.handle(with_body("api_end", sessionKey=in_track), Context())
    assert elevate.keys() == [in_end], "it was over"


@pytest.mark.parametrize(("in_track", "in_end"), SPELLINGS)
def test_events_and_elevates_own_route_find_it_too(
    in_track: str, in_end: str, application: Application, elevate: FakeElevate
) -> None:
    detail = sample("session_active")["detail"] | {"sessionKey": in_track}
    track.handle(sample("session_active", detail=detail), Context())
    event = sample("api_elevate_v2")
    event["multiValueQueryStringParameters"]["esales.sessionKey"] = [in_end]
    end.handle(event, Context())
    assert elevate.keys() == [in_end]
    detail = {name: detail[name] for name in ("market", "customerKey", "sessionKey")}
    end.handle(sample("session_ended", detail=detail), Context())
    assert elevate.keys() == [in_end], "it was over"
    assert states(LOWER) == ["ended"]


def test_the_customer_key_is_sent_as_it_was_given(
    application: Application, elevate: FakeElevate
) -> None:
    customer = "D9528030-509C-4E0F-B585-7168F1E9FECA"
    end.handle(with_body("api_end", customerKey=customer), Context())
    assert [query["esales.customerKey"] for query in elevate.received] == [customer]


def test_a_session_has_one_hash_in_the_log(
    application: Application, elevate: FakeElevate, log: Log
) -> None:
    elevate.statuses = [503]
    for key in (LOWER, UPPER):
        end.handle(with_body("api_end", sessionKey=key), Context())
    assert [line["session"] for line in log()] == [hashed(LOWER)] * 2


@pytest.mark.parametrize(("first", "last"), SPELLINGS)
def test_a_sweep_sends_what_the_latest_track_gave(
    first: str, last: str, service: Service, clock: Clock, elevate: FakeElevate
) -> None:
    for key in (first, last):
        payload: dict[str, Any] = {"market": "UK", "sessionKey": key, "customerKey": LOWER}
        service.ending.track(Activity(session_from(payload, WEB_V2), int(clock.now)))
    clock.turn(IDLE)
    sweep(service)
    assert elevate.keys() == [last]


def test_on_elevate_4_two_spellings_are_two_sessions(
    elevate4: Application, elevate: FakeElevate
) -> None:
    assert tracked(LOWER) == 204
    end.handle(with_body("api_end", sessionKey=UPPER), Context())
    assert [query["sessionKey"] for query in elevate.received] == [UPPER]
    assert (states(LOWER), states(UPPER)) == (["open"], ["ended"])
