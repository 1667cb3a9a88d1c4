"""The track function, called with the sample events as API Gateway and EventBridge call it."""

import json
import time
import uuid
from typing import Any

import pytest

from emulated import Log
from handler import end, track
from handler.application import Application
from handler.events import InvalidEvent, happened_at
from invoking import Context, forget, moment, sample, with_body
from sessions import aws
from sessions.lifetime import DAY

pytestmark = pytest.mark.usefixtures("application")


def call(event: dict[str, Any]) -> dict[str, Any]:
    answer = track.handle(event, Context())
    assert answer is not None
    return answer


def state() -> dict[str, Any]:
    (shown,) = json.loads(call(sample("api_status"))["body"])["sessions"]
    return dict(shown)


def customer_key(application: Application) -> str:
    """Return the customerKey that a sweep would send."""
    key = {"sessionKey": {"S": sample("session_active")["detail"]["sessionKey"]}}
    table = application.settings.table_name
    row = aws.client("dynamodb").get_item(TableName=table, Key=key | {"market": {"S": "UK"}})
    return str(row["Item"]["customerKey"]["S"])


def test_the_sample_call_is_noted() -> None:
    assert call(sample("api_track"))["statusCode"] == 204
    assert state() == {
        "market": "UK",
        "state": "open",
        "dueAt": state()["dueAt"],
        "attempts": 0,
        "lastStatus": None,
        "lastReason": None,
    }
    due = time.strptime(state()["dueAt"], "%Y-%m-%dT%H:%M:%SZ")
    assert due > time.gmtime(time.time() + 29 * 60)


def test_an_unknown_session_is_404_and_another_market_too() -> None:
    assert call(sample("api_status"))["statusCode"] == 404
    call(sample("api_track"))
    other = sample("api_status", multiValueQueryStringParameters={"market": ["SE"]})
    assert call(other)["statusCode"] == 404


def test_tracking_a_session_that_is_over_is_a_conflict() -> None:
    end.handle(sample("api_end"), Context())
    assert call(sample("api_track"))["statusCode"] == 409


def test_the_path_is_decoded() -> None:
    encoded = sample("api_track")["pathParameters"]["sessionKey"].replace("-", "%2D")
    assert call(sample("api_track", pathParameters={"sessionKey": encoded}))["statusCode"] == 204
    assert call(sample("api_status"))["statusCode"] == 200


@pytest.mark.parametrize("path", ["%FF", "%FE", "a%C3", "%EF%BF%BD"])
def test_bytes_that_are_not_text_are_not_a_key(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them would become U+FFFD: different keys, one session."""
    monkeypatch.setenv("ELEVATE_API", "storefront-v3")
    forget()
    answer = call(sample("api_track", pathParameters={"sessionKey": path}))
    assert answer["statusCode"] == 400
    assert [e["field"] for e in json.loads(answer["body"])["errors"]] == ["sessionKey"]


def test_a_placeholder_in_the_path_is_refused_by_name_and_logged(log: Log) -> None:
    """One script of a shop writes the text undefined where it has no key."""
    nil = {"sessionKey": "00000000-0000-0000-0000-000000000000"}
    error = {"field": "sessionKey", "detail": "must not be a placeholder such as undefined"}
    for name in ("api_track", "api_status"):
        answer = call(sample(name, pathParameters=nil))
        assert (answer["statusCode"], json.loads(answer["body"])["errors"]) == (400, [error])
    assert [(line["message"], line["errors"]) for line in log()] == [("refused", [error])] * 2


@pytest.mark.parametrize("path", [None, {}, {"sessionKey": ""}, {"sessionKey": "x"}])
def test_a_path_without_a_key_is_refused(path: Any) -> None:
    assert call(sample("api_track", pathParameters=path))["statusCode"] == 400
    assert call(sample("api_status", pathParameters=path))["statusCode"] == 400


def test_a_session_key_in_the_body_is_refused() -> None:
    body = with_body("api_track", sessionKey="b106299c-eac0-4f6f-96d2-93e57c255784")
    assert call(body)["statusCode"] == 400


def test_the_sample_event_is_noted() -> None:
    track.handle(sample("session_active"), Context())
    assert state()["state"] == "open"


def test_an_event_may_hold_many_and_invalid_ones_make_it_a_dead_letter() -> None:
    detail = {"sessions": [sample("session_active")["detail"], {"interactive": "no"}]}
    with pytest.raises(InvalidEvent):
        track.handle(sample("session_active", detail=detail), Context())
    assert state()["state"] == "open"


def test_late_activity_of_a_session_that_is_over_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    end.handle(sample("api_end"), Context())
    track.handle(sample("session_active"), Context())
    assert '"TrackedTooLate":[1.0]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Session ended", "Session ended"),
        ("Beställning\n\x1b[31m {}", "Best?llning???31m ??"),
        ("x" * 500, "x" * 64),
        (None, "None"),
        ([], "??"),
    ],
)
def test_an_event_of_another_kind_is_logged_and_counted_and_nothing_else(
    given: Any, shown: str, log: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    track.handle(sample("session_active", **{"detail-type": given}), Context())
    (line,) = log()
    assert (line["message"], line["level"], line["detail_type"]) == (
        "unknown event",
        "ERROR",
        shown,
    )
    assert '"Invalid":[1.0]' in capsys.readouterr().out
    assert call(sample("api_status"))["statusCode"] == 404


def test_at_decides_which_customer_key_stays_whatever_the_order(
    application: Application,
) -> None:
    """A page view and the sign-in within one second, which EventBridge has swapped."""
    second = int(time.time()) - 1
    anonymous, signed_in = str(uuid.uuid4()), str(uuid.uuid4())
    for customer, milliseconds in ((signed_in, 700), (anonymous, 100)):
        at = f"{moment(second).removesuffix('Z')}.{milliseconds}+00:00"
        detail = sample("session_active")["detail"] | {"customerKey": customer, "at": at}
        track.handle(sample("session_active", time=moment(second), detail=detail), Context())
    assert customer_key(application) == signed_in


def test_at_counts_in_a_call_and_for_each_of_a_list(application: Application) -> None:
    an_hour_ago = int(time.time()) - 3600
    due = moment(an_hour_ago + application.settings.idle)
    assert call(with_body("api_track", at=moment(an_hour_ago)))["statusCode"] == 204
    assert state()["dueAt"] == due
    other = str(uuid.uuid4())
    detail = sample("session_active")["detail"]
    late = detail | {"sessionKey": other, "at": moment(an_hour_ago)}
    track.handle(sample("session_active", detail={"sessions": [late, detail]}), Context())
    assert state()["dueAt"] > due
    shown = call(sample("api_status", pathParameters={"sessionKey": other}))
    assert json.loads(shown["body"])["sessions"][0]["dueAt"] == due


def test_at_is_believed_within_reason(application: Application) -> None:
    call(with_body("api_track", at="9999-12-31T23:59:59.999-14:00"))
    now = time.time() + application.settings.idle
    assert moment(now - 60) < state()["dueAt"] <= moment(now + 1)
    other = {"sessionKey": str(uuid.uuid4())}
    call(with_body("api_track", at="0001-01-01T00:00:00+14:00") | {"pathParameters": other})
    (shown,) = json.loads(call(sample("api_status", pathParameters=other))["body"])["sessions"]
    old = now - 15 * DAY
    assert moment(old - 60) < shown["dueAt"] <= moment(old + 1)


@pytest.mark.parametrize(
    "at",
    [
        *("", "now", "2001-11-23", "2001-11-23T12:00:00.250", "2001-02-30T12:00:00Z", "\ud800"),
        *("2001-11-23T25:00:00Z", "2001-11-23T12:00:00.250Z" * 100, 1006516800, None, ["Z"]),
    ],
)
def test_what_is_no_time_is_refused_by_name(at: Any, log: Log) -> None:
    answer = call(with_body("api_track", at=at))
    detail = "must be an ISO 8601 time with its offset, such as 2001-11-23T12:00:00.250Z"
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["errors"] == [{"field": "at", "detail": detail}]
    detail = sample("session_active")["detail"] | {"at": at}
    with pytest.raises(InvalidEvent, match=r"sessions\[0\]\.at"):
        track.handle(sample("session_active", detail=detail), Context())
    assert call(sample("api_status"))["statusCode"] == 404


@pytest.mark.parametrize("moment", [None, "soon", 7, "2001-11-23T12:00:00", "9999-12-31T23:59:59Z"])
def test_an_event_without_a_usable_time_happened_now(moment: Any) -> None:
    assert abs(happened_at({"time": moment}) - time.time()) < 5


def test_an_event_has_its_own_time() -> None:
    an_hour_ago = int(time.time()) - 3600
    assert happened_at({"time": moment(an_hour_ago)}) == an_hour_ago


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"])
def test_what_happened_before_all_limits_of_elevates_happened_15_days_ago(moment: str) -> None:
    """It is as dead, and its times can be shown: .NET writes year 1 for a time that is not set."""
    assert abs(happened_at({"time": moment}) - (time.time() - 15 * DAY)) < 60
    track.handle(sample("session_active", time=moment), Context())
    assert state()["state"] == "open"


def test_the_idle_time_counts_from_the_time_of_the_event(application: Application) -> None:
    an_hour_ago = int(time.time()) - 3600
    track.handle(sample("session_active", time=moment(an_hour_ago)), Context())
    assert state()["dueAt"] == moment(an_hour_ago + application.settings.idle)
